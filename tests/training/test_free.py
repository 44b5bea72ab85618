from functools import partial

import flax.linen as nn
import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.interpreters import partial_eval
from linear_model import Linear

from freeadv_jax.attacks.threat import L2, Linf, make_threat
from freeadv_jax.models.conv import Conv
from freeadv_jax.training.free import free_train_step
from freeadv_jax.training.optim import sgd

EPSILON = 8 / 255


def softmax(logits):
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def oracle(kernel, delta, images, labels, *, replays, rate, momentum, decay, epsilon):
    """Compute Algorithm 1 for a linear model in NumPy."""
    trace = np.zeros_like(kernel)
    for _ in range(replays):
        attacked = (images + delta).reshape(len(images), -1)
        pixels = attacked.clip(0, 1)
        error = softmax(pixels @ kernel) - np.eye(kernel.shape[1])[labels]
        through_clip = (attacked > 0) & (attacked < 1)
        at_bound = 0.5 * ((attacked == 0) | (attacked == 1))
        g_adv = error @ kernel.T * (through_clip + at_bound)
        trace = momentum * trace + pixels.T @ error / len(images) + decay * kernel
        kernel = kernel - rate * trace
        delta = delta + epsilon * np.sign(g_adv).reshape(delta.shape)
        delta = delta.clip(-epsilon, epsilon)
    return kernel, delta


def test_weights_are_averaged_after_every_update(batch, make_state):
    """The warm-up limits the decay to 41 / 50 at step 40, and has no effect at step
    10,000.
    """
    for step, decay in ((40, 41 / 50), (10_000, 0.99)):
        state = make_state(step=jnp.array(step))
        state = state.replace(average=jax.tree.map(jnp.copy, state.variables))
        average = np.array(state.params["Dense_0"]["kernel"], np.float64)
        make_step = partial(
            free_train_step,
            model=Linear(),
            tx=optax.sgd(0.1),
            threat=Linf(EPSILON),
            step_size=EPSILON,
            average_decay=0.99,
        )
        after, _ = make_step(state, batch, replays=3)
        plain = state.replace(average={})
        for _ in range(3):
            plain, _ = make_step(plain, batch, replays=1)
            kernel = np.array(plain.params["Dense_0"]["kernel"], np.float64)
            average = decay * average + (1 - decay) * kernel
            plain = plain.replace(step=jnp.array(step))
        np.testing.assert_allclose(
            after.variables["params"]["Dense_0"]["kernel"], average, atol=1e-6
        )
        np.testing.assert_allclose(after.params["Dense_0"]["kernel"], kernel, atol=1e-6)


def test_step_agrees_with_a_numpy_oracle_in_float64(batch, make_state):
    with jax.enable_x64(True):
        model = Linear(dtype=jnp.float64)
        tx = sgd(
            lambda _: 0.1,
            momentum=0.9,
            nesterov=False,
            weight_decay=0.01,
            decayed="kernels",
        )
        state = make_state(model, tx)
        # The next minibatch must start from the delta of the last one, so it is not
        # zero here.
        start = np.random.default_rng(1).uniform(-EPSILON, EPSILON, (8, 4, 4, 1))
        start[:4] = 0
        labels = np.array(batch["label"])
        after, _ = free_train_step(
            state.replace(delta=jnp.array(start)),
            batch | {"label": jnp.array(labels, int)},
            model=model,
            tx=tx,
            threat=Linf(EPSILON),
            step_size=EPSILON,
            replays=4,
        )
        kernel, delta = oracle(
            np.array(state.params["Dense_0"]["kernel"]),
            start,
            np.array(batch["image"], float) / 255,
            labels,
            replays=4,
            rate=0.1,
            momentum=0.9,
            decay=0.01,
            epsilon=EPSILON,
        )
        assert after.delta.dtype == jnp.float64
        np.testing.assert_allclose(
            after.params["Dense_0"]["kernel"], kernel, rtol=0, atol=1e-14
        )
        np.testing.assert_array_equal(after.delta, delta)
        assert int(after.step) == 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_four_replays_are_four_steps_of_one_replay_to_the_bit(norm, batch, make_state):
    step = partial(
        free_train_step,
        model=Linear(),
        tx=optax.sgd(0.1, 0.9),
        threat=make_threat(norm, EPSILON),
        step_size=EPSILON,
    )
    start = make_state(tx=optax.sgd(0.1, 0.9))
    # XLA would fuse a compiled loop of one step differently from a loop of four.
    with jax.disable_jit():
        at_once, metrics = step(start, batch, replays=4)
        one_by_one, losses = start, []
        for _ in range(4):
            one_by_one, single = step(one_by_one, batch, replays=1)
            losses.append(float(single["loss"]))
    same = at_once.replace(step=one_by_one.step)
    jax.tree.map(np.testing.assert_array_equal, same, one_by_one)
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-6)
    assert np.abs(at_once.delta).max() > 0


def test_epsilon_zero_and_one_replay_is_plain_sgd(batch, make_state):
    state = make_state()
    after, metrics = free_train_step(
        state,
        batch,
        model=Linear(),
        tx=optax.sgd(0.1),
        threat=Linf(0.0),
        step_size=0.0,
        replays=1,
    )
    kernel = np.array(state.params["Dense_0"]["kernel"], np.float64)
    pixels = np.array(batch["image"], float).reshape(8, -1) / 255
    probability, labels = softmax(pixels @ kernel), np.array(batch["label"])
    kernel -= 0.1 * pixels.T @ (probability - np.eye(3)[labels]) / 8
    np.testing.assert_allclose(after.params["Dense_0"]["kernel"], kernel, atol=1e-7)
    loss = -np.log(probability[np.arange(8), labels]).mean()
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    accuracy = np.mean(probability.argmax(1) == labels)
    np.testing.assert_allclose(metrics["accuracy"], accuracy)
    assert not after.delta.any()


class ThreeConvolutions(nn.Module):
    @nn.compact
    def __call__(self, images, *, train):
        for features in (4, 5, 6):
            images = nn.relu(Conv(features, 3)(images))
        return images.mean((1, 2))


def count_convolutions(jaxpr):
    count = 0
    for equation in jaxpr.eqns:
        count += equation.primitive.name in ("conv_general_dilated", "dot_general")
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            count += count_convolutions(inner)
    return count


@pytest.mark.parametrize(("epsilon", "expected"), [(0.0, 8), (EPSILON, 9)])
def test_free_costs_one_convolution_more_than_natural(
    epsilon, expected, batch, make_state
):
    """Three layers need 3L - 1 = 8 without the gradient of the images, and 3L = 9 with
    it.
    """
    model = ThreeConvolutions()
    step = partial(
        free_train_step,
        model=model,
        tx=optax.sgd(0.1),
        threat=Linf(epsilon),
        step_size=epsilon,
        replays=4,
    )
    jaxpr = jax.make_jaxpr(step)(make_state(model), batch).jaxpr
    live, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    assert count_convolutions(live) == expected


def test_a_pixel_pushed_out_of_the_box_is_stuck_unless_straight_through(
    batch, make_state
):
    """The delta stays within epsilon in both cases."""
    below = jnp.full((8, 4, 4, 1), -EPSILON)
    stuck, free = (
        free_train_step(
            make_state(delta=below),
            batch,
            model=Linear(),
            tx=optax.sgd(0.1),
            threat=Linf(EPSILON),
            step_size=EPSILON,
            replays=1,
            straight_through=straight_through,
        )[0].delta
        for straight_through in (False, True)
    )
    outside = np.array(batch["image"]) < 8
    np.testing.assert_array_equal(stuck[outside], np.float32(-EPSILON))
    assert np.mean(free[outside] == 0) > 0.2
    np.testing.assert_array_equal(stuck[~outside], free[~outside])


@pytest.mark.parametrize("start", ["zero", "random"])
def test_a_zero_or_random_start_replaces_the_delta_of_the_last_minibatch(
    start, batch, make_state
):
    threat = Linf(EPSILON)
    step = partial(
        free_train_step,
        model=Linear(),
        tx=optax.sgd(0.1),
        threat=threat,
        step_size=EPSILON / 3,
        replays=2,
    )
    carried = jnp.full((8, 4, 4, 1), EPSILON / 2)
    begun = make_state(delta=carried, step=jnp.array(5))
    keys = begun.attack_keys()
    first = {
        "zero": jnp.zeros_like(carried),
        "random": threat.random_start(keys, (4, 4, 1)),
    }[start]
    found, _ = step(begun, batch, start=start)
    expected, _ = step(begun.replace(delta=first), batch)
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    np.testing.assert_array_equal(found.delta, expected.delta)
    assert np.mean(found.delta != step(begun, batch)[0].delta) > 0.5


def test_l2_delta_stays_in_its_ball_and_reaches_its_edge(batch, make_state):
    state, _ = free_train_step(
        make_state(),
        batch,
        model=Linear(),
        tx=optax.sgd(0.1),
        threat=L2(0.5),
        step_size=0.5,
        replays=3,
    )
    norms = np.linalg.norm(np.array(state.delta).reshape(8, -1), axis=1)
    np.testing.assert_allclose(norms, 0.5, rtol=1e-6)
