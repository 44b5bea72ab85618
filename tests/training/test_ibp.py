"""IBP and CROWN-IBP: the loss and its gradient in NumPy, the schedule, BatchNorm."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from linear_oracle import softmax

from freeadv_jax.attacks.threat import Linf
from freeadv_jax.training.ibp import crown_ibp_train_step, ibp_train_step, schedule
from freeadv_jax.training.methods import natural_train_step

EPSILON, SCALE = 0.1, 1.5
BUDGET = {
    "updates": 10,
    "certified_scale": SCALE,
    "certified_warmup": 0.2,
    "certified_rampup": 0.4,
    "certified_kappa": 0.2,
}
HALFWAY = 4


class TwoLayers(nn.Module):
    """Two dense layers with ReLU between them."""

    @nn.compact
    def __call__(self, images, *, train):
        dense = partial(nn.Dense, dtype=jnp.float64, param_dtype=jnp.float64)
        hidden = dense(5, bias_init=nn.initializers.normal(0.3))
        return dense(3)(nn.relu(hidden(images.reshape(len(images), -1))))


def worst_logits(weights, pixels, label, epsilon, beta):
    """Return minus the bounds of the margins of one image."""
    first, bias, second, shift = weights
    low, high = np.maximum(pixels - epsilon, 0), np.minimum(pixels + epsilon, 1)
    middle = (low + high) / 2 @ first + bias
    radius = (high - low) / 2 @ np.abs(first)
    below, above = middle - radius, middle + radius
    rows = second[:, [label]] - second
    constants = shift[label] - shift
    up, down = np.maximum(rows, 0), np.minimum(rows, 0)
    interval = np.maximum(below, 0) @ up + np.maximum(above, 0) @ down + constants
    # CROWN: a line below and one above each ReLU (Zhang et al. 2018, section 3.3).
    both = (below < 0) & (above > 0)
    upper = np.where(both, above / (above - below), above > 0)
    lower = np.where(both, above > -below, above > 0)
    at_pixels = first @ (up * lower[:, None] + down * upper[:, None])
    constants = constants + bias @ (up * lower[:, None] + down * upper[:, None])
    constants = constants - np.where(both, upper * below, 0) @ down
    crown = low @ np.maximum(at_pixels, 0) + high @ np.minimum(at_pixels, 0) + constants
    return -((1 - beta) * interval + beta * crown)


def loss(weights, images, labels, *, epsilon, kappa, beta):
    """Return the loss of a batch, with the formulas of the papers."""
    pixels, rows = images.reshape(len(images), -1), np.arange(len(images))
    first, bias, second, shift = weights
    natural = np.maximum(pixels @ first + bias, 0) @ second + shift
    worst = np.stack(
        [
            worst_logits(weights, x, label, epsilon, beta)
            for x, label in zip(pixels, labels, strict=True)
        ]
    )
    natural, worst = (
        -np.log(softmax(logits)[rows, labels]) for logits in (natural, worst)
    )
    return np.mean(kappa * natural + (1 - kappa) * worst)


def slopes(function, weights, step=1e-6):
    """Return the gradient in each array by central differences."""
    found = []
    for array in weights:
        slope = np.zeros_like(array)
        for place in np.ndindex(array.shape):
            kept = array[place]
            ends = []
            for moved in (kept + step, kept - step):
                array[place] = moved
                ends.append(function(weights))
            array[place] = kept
            slope[place] = (ends[0] - ends[1]) / (2 * step)
        found.append(slope)
    return found


def arrays(params):
    return [
        np.array(params[layer][name])
        for layer in ("Dense_0", "Dense_1")
        for name in ("kernel", "bias")
    ]


@pytest.mark.parametrize(
    ("step", "beta"),
    [
        (ibp_train_step, 0.0),
        # Halfway from 1 to 0.4.
        (partial(crown_ibp_train_step, crown_ibp_beta=0.4), 0.7),
    ],
    ids=["ibp", "crown-ibp"],
)
def test_loss_and_gradient_agree_with_numpy_in_float64(step, beta, batch, make_state):
    with jax.enable_x64(True):
        state = make_state(TwoLayers(), step=jnp.int32(HALFWAY))
        before = arrays(state.params)
        step = partial(step, model=TwoLayers(), tx=optax.sgd(0.1), **BUDGET)
        labels = np.array(batch["label"])
        after, metrics = jax.jit(partial(step, threat=Linf(EPSILON), step_size=0.0))(
            state, batch | {"label": jnp.array(labels, int)}
        )
        images = np.array(batch["image"], np.float64) / 255
        expected = partial(
            loss,
            images=images,
            labels=labels,
            epsilon=EPSILON * SCALE / 2,
            kappa=0.6,
            beta=beta,
        )
        np.testing.assert_allclose(metrics["loss"], expected(before), rtol=1e-7)
        moved = zip(arrays(after.params), before, slopes(expected, before), strict=True)
        for new, old, slope in moved:
            assert np.abs(slope).max() > 0.01
            np.testing.assert_allclose((old - new) / 0.1, slope, atol=1e-7)


def test_the_radius_rises_and_the_weights_fall_between_warm_up_and_end_of_ramp():
    of_update = partial(
        schedule,
        updates=100,
        epsilon=0.2,
        warmup=0.1,
        rampup=0.4,
        kappa=0.5,
        beta=0.2,
    )
    found = [tuple(map(float, of_update(n))) for n in (0, 10, 30, 50, 99)]
    expected = [
        (0, 1, 1),
        (0, 1, 1),
        (0.1, 0.75, 0.6),
        (0.2, 0.5, 0.2),
        (0.2, 0.5, 0.2),
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_schedule_without_ramp_jumps_after_the_warm_up():
    of_update = partial(
        schedule, updates=10, epsilon=0.2, warmup=0.2, rampup=0.0, kappa=0.0
    )
    found = [float(of_update(n).epsilon) for n in (0, 2, 3)]
    np.testing.assert_allclose(found, [0, 0, 0.2], rtol=1e-6)


class Normalised(nn.Module):
    """A dense layer with BatchNorm and ReLU, and another."""

    @nn.compact
    def __call__(self, images, *, train):
        hidden = nn.Dense(4, use_bias=False)(images.reshape(len(images), -1))
        hidden = nn.BatchNorm(use_running_average=not train, momentum=0.5)(hidden)
        return nn.Dense(3)(nn.relu(hidden))


def compiled(step, *, epsilon, **settings):
    """Return a step of a state and a batch."""
    parts = {"model": Normalised(), "tx": optax.sgd(0.1), "step_size": 0.0}
    return jax.jit(partial(step, threat=Linf(epsilon), **parts, **settings))


def test_the_warm_up_is_natural_training(batch, make_state):
    """That goes for the running averages of BatchNorm too, which move once."""
    state = make_state(Normalised())
    ours, _ = compiled(ibp_train_step, epsilon=EPSILON, **BUDGET)(state, batch)
    theirs, _ = compiled(natural_train_step, epsilon=EPSILON)(state, batch)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=0, atol=1e-6),
        (ours.params, ours.collections),
        (theirs.params, theirs.collections),
    )


def test_bounds_are_those_of_the_running_averages(batch, make_state):
    """Averages with a huge mean switch off all hidden units, and then no pixel matters."""
    state = make_state(Normalised(), step=jnp.int32(9))
    off = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.full_like(x, 1e30) if "mean" in str(path) else x,
        state.collections,
    )
    losses = []
    for radius in (0.01, 0.3):
        budget = BUDGET | {"certified_kappa": 0.0}
        step = compiled(ibp_train_step, epsilon=radius, **budget)
        losses += [
            float(step(state.replace(collections=averages), batch)[1]["loss"])
            for averages in (state.collections, off)
        ]
    small, without, large, still_without = losses
    assert large > small + 0.01
    assert without == still_without
