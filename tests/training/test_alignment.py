"""The alignment of gradients: its value, the methods that have it, and the step it bounds."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from linear_model import Linear
from test_free import softmax

from freeadv_jax.attacks.threat import L2, Linf
from freeadv_jax.config import base_config
from freeadv_jax.training.alignment import alignment, bounded_step
from freeadv_jax.training.fgsm_pgi import fgsm_pgi_train_step
from freeadv_jax.training.free import free_train_step
from freeadv_jax.training.methods import METHODS
from freeadv_jax.training.n_fgsm import n_fgsm_train_step
from freeadv_jax.training.pgd import fgsm_rs_train_step, pgd_train_step

EPSILON = 0.1
OPTIONS = {"model": Linear(), "tx": optax.sgd(0.1), "threat": Linf(EPSILON)}


def test_it_is_the_mean_cosine_whatever_the_size_of_the_gradients():
    before = jnp.array([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0], [1e-30, 0.0]])
    after = jnp.array([[4.0, 3.0], [-2.0, 0.0], [1.0, 1.0], [1e30, 0.0]])
    # The cosines are 24 / 25, -1, 0 and 1.
    np.testing.assert_allclose(alignment(before, after), 0.96 / 4, rtol=1e-6)


@pytest.mark.parametrize(
    ("mean", "share"), [(1.0, 1.0), (0.99, 1.0), (0.9, 0.2), (0.0, 0.02), (-1.0, 0.01)]
)
def test_the_step_shrinks_with_what_is_missing_to_alignment(mean, share, make_state):
    state = make_state(alignment={"mean": jnp.float32(mean)})
    step = bounded_step(state, 16 / 255, 0.02)
    np.testing.assert_allclose(step, share * 16 / 255, rtol=1e-5)
    assert bounded_step(make_state(), 16 / 255, 0.0) == 16 / 255


def test_free_compares_the_gradients_of_successive_replays(batch, make_state):
    """The cosines of three replays are two; the running mean moves by a twentieth."""
    state = make_state(alignment={"mean": jnp.float32(0.5)})
    step = partial(free_train_step, **OPTIONS, step_size=EPSILON)
    after, metrics = step(state, batch, replays=3)
    kernels, deltas, single = [], [], state
    for _ in range(3):
        kernels.append(np.array(single.params["Dense_0"]["kernel"], np.float64))
        deltas.append(np.array(single.delta, np.float64))
        single, one = step(single, batch, replays=1)
        assert set(one) == {"loss", "accuracy"}
    images = np.array(batch["image"], np.float64) / 255
    labels = np.eye(3)[np.array(batch["label"])]
    gradients = []
    for kernel, delta in zip(kernels, deltas, strict=True):
        attacked = (images + delta).reshape(8, -1)
        error = softmax(attacked.clip(0, 1) @ kernel) - labels
        inside = (attacked > 0) & (attacked < 1)
        at_bound = 0.5 * ((attacked == 0) | (attacked == 1))
        gradient = error @ kernel.T * (inside + at_bound)
        gradients.append(gradient / np.linalg.norm(gradient, axis=1, keepdims=True))
    values = [
        (one * other).sum(axis=1).mean() for one, other in itertools.pairwise(gradients)
    ]
    np.testing.assert_allclose(metrics["alignment"], np.mean(values), atol=1e-5)
    mean = 0.5
    for value in values:
        mean += 0.05 * (value - mean)
    np.testing.assert_allclose(after.alignment["mean"], mean, atol=1e-6)


@pytest.mark.parametrize("threat", [Linf(EPSILON), L2(0.5)], ids=["linf", "l2"])
def test_fgsm_rs_is_pgd_with_one_step(threat, batch, make_state):
    options = OPTIONS | {"threat": threat, "step_size": 1.25 * threat.epsilon}
    ours, _ = fgsm_rs_train_step(make_state(), batch, **options)
    pgd, _ = pgd_train_step(make_state(), batch, **options, steps=1)
    for one, other in zip(*map(jax.tree.leaves, (ours, pgd)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-7)


STEPS = {
    "free": partial(free_train_step, replays=1),
    "fgsm-rs": fgsm_rs_train_step,
    "n-fgsm": partial(n_fgsm_train_step, n_fgsm_noise=2.0),
    "fgsm-pgi": partial(fgsm_pgi_train_step, pgi_lambda=10.0),
}


@pytest.mark.parametrize("method", STEPS)
def test_a_bad_alignment_halves_the_step(method, batch, make_state):
    step = partial(STEPS[method], **OPTIONS)
    bad = make_state(alignment={"mean": jnp.float32(0.5)})
    cured, metrics = step(bad, batch, step_size=EPSILON, misalignment=0.25)
    halved, _ = step(make_state(), batch, step_size=EPSILON / 2)
    whole, _ = step(make_state(), batch, step_size=EPSILON)
    kernels = [each.params["Dense_0"]["kernel"] for each in (cured, halved, whole)]
    np.testing.assert_allclose(cured.delta, halved.delta, atol=1e-7)
    np.testing.assert_allclose(kernels[0], kernels[1], atol=1e-7)
    if method == "free":  # One replay trains before its step.
        assert np.abs(cured.delta - whole.delta).max() > EPSILON / 3
    else:
        assert np.abs(kernels[0] - kernels[2]).max() > 1e-4
        moved = 0.5 + 0.05 * (metrics["alignment"] - 0.5)
        np.testing.assert_allclose(cured.alignment["mean"], moved, rtol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_the_metrics_that_it_declares(name, batch, make_state):
    method, attack = METHODS[name], base_config().attack
    settings = {setting: attack[setting] for setting in method.settings}
    if method.scheduled:
        settings["updates"] = 8
    step = partial(method.step, **OPTIONS, step_size=EPSILON, **settings)
    _, metrics = jax.eval_shape(step, make_state(), batch)
    aligned = name in ("free", "fgsm-rs", "n-fgsm", "fgsm-pgi", "grad-align")
    assert method.aligned(attack) == ("alignment" in metrics) == aligned
    assert metrics.keys() - {"alignment"} == {"loss", "accuracy"}
