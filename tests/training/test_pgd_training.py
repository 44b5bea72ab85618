from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from linear_model import Linear
from test_free import softmax

from freeadv_jax.attacks.threat import Linf
from freeadv_jax.models.small_cnn import SmallCNN
from freeadv_jax.training.free import free_train_step
from freeadv_jax.training.pgd import pgd_train_step

EPSILON = 0.1


@pytest.mark.parametrize("steps", [1, 7])
def test_step_is_sgd_on_images_attacked_as_numpy_attacks_them(steps, batch, make_state):
    """With one step of 1.25 epsilon the method is FGSM-RS."""
    step_size = 1.25 * EPSILON if steps == 1 else EPSILON / 4
    threat, state = Linf(EPSILON), make_state()
    after, _ = pgd_train_step(
        state,
        batch,
        model=Linear(),
        tx=optax.sgd(0.1),
        threat=threat,
        step_size=step_size,
        steps=steps,
    )
    kernel = np.array(state.params["Dense_0"]["kernel"], np.float64)
    images = np.array(batch["image"], np.float64) / 255
    labels = np.eye(3)[np.array(batch["label"])]
    start = threat.random_start(state.attack_keys(), (4, 4, 1))
    delta = (images + np.array(start)).clip(0, 1) - images
    for _ in range(steps):
        error = softmax((images + delta).reshape(8, -1) @ kernel) - labels
        gradient = (error @ kernel.T).reshape(images.shape)
        delta = (delta + step_size * np.sign(gradient)).clip(-EPSILON, EPSILON)
        delta = (images + delta).clip(0, 1) - images
    pixels = (images + delta).reshape(8, -1)
    kernel -= 0.1 * pixels.T @ (softmax(pixels @ kernel) - labels) / 8
    np.testing.assert_allclose(after.params["Dense_0"]["kernel"], kernel, atol=1e-7)


def test_inner_attack_does_not_change_the_running_averages(batch, make_state):
    """The averages move once in each step, however many passes the attack takes."""
    model = SmallCNN(num_classes=3, batch_norm=True, features=(4,), hidden=4)
    state = make_state(model)
    options = {"model": model, "tx": optax.sgd(0.1)}
    free = partial(
        free_train_step, **options, threat=Linf(0.0), step_size=0.0, replays=1
    )
    # The ball is too small to change the images, and so the averages, visibly.
    pgd = partial(pgd_train_step, **options, threat=Linf(1e-7), step_size=1e-7, steps=7)
    plain, attacked = (jax.jit(step)(state, batch)[0] for step in (free, pgd))
    moved = jax.tree.map(
        lambda a, b: float(abs(a - b).max()), plain.collections, state.collections
    )
    assert min(jax.tree.leaves(moved)) > 1e-3
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        attacked.collections,
        plain.collections,
    )


def test_inner_attack_uses_the_statistics_of_its_batch(batch, make_state):
    """Even absurd running averages do not change the update."""
    model = SmallCNN(num_classes=3, batch_norm=True, features=(4,), hidden=4)
    state = make_state(model)
    absurd = jax.tree.map(lambda x: jnp.full_like(x, 1e30), state.collections)
    losses = [
        pgd_train_step(
            state.replace(collections=batch_stats),
            batch,
            model=model,
            tx=optax.sgd(0.1),
            threat=Linf(EPSILON),
            step_size=EPSILON / 4,
            steps=steps,
        )[1]["loss"]
        for batch_stats, steps in [
            (state.collections, 7),
            (absurd, 7),
            (state.collections, 0),
        ]
    ]
    assert losses[0] == losses[1] > losses[2] + 0.01


def test_random_start_is_new_each_step_and_for_each_image(make_state):
    threat = Linf(EPSILON)
    first, second = (
        np.array(
            threat.random_start(
                make_state(step=jnp.int32(step)).attack_keys(), (4, 4, 1)
            )
        )
        for step in (0, 1)
    )
    assert len(np.unique(first.round(6))) > 120
    assert not np.isclose(first, second).any()
