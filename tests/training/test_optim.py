import jax
import jax.numpy as jnp
import numpy as np
import optax

from freeadv_jax.training.optim import adamw, clipped, learning_rate_schedule, sgd


def test_step_schedule_drops_tenfold_at_the_updates_of_the_paper():
    rate = learning_rate_schedule("step", peak=0.1, updates=80_000, turns=(0.5, 0.75))
    updates = [0, 39_999, 40_000, 59_999, 60_000, 79_999]
    expected = [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    np.testing.assert_allclose([rate(u) for u in updates], expected, rtol=1e-6)


def test_triangular_schedule_rises_to_its_peak_and_falls_to_zero():
    rate = learning_rate_schedule("triangular", peak=0.2, updates=100, turns=(0.4,))
    np.testing.assert_allclose(
        [rate(u) for u in (0, 20, 40, 70, 100)], [0, 0.1, 0.2, 0.1, 0], atol=1e-8
    )


def test_cosine_schedule_falls_from_its_peak_to_zero():
    rate = learning_rate_schedule("cosine", peak=0.4, updates=90, turns=())
    np.testing.assert_allclose(
        [rate(u) for u in (0, 30, 45, 60, 90)], [0.4, 0.3, 0.2, 0.1, 0], atol=1e-7
    )


def test_warm_up_rises_evenly_to_the_schedule_and_does_not_change_the_rest():
    flat = {"peak": 0.4, "updates": 100, "turns": (0.5,)}
    rate = learning_rate_schedule("step", **flat, warmup=0.1)
    np.testing.assert_allclose(
        [rate(u) for u in (0, 4, 9, 10, 49, 50)],
        [0.04, 0.2, 0.4, 0.4, 0.4, 0.04],
        rtol=1e-6,
    )


def after_three_updates(tx):
    params = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full((2,), 5.0)}
    params |= {name: jnp.full((1, 3, 2), 2.0) for name in ("pos_embed", "stem")}
    state = tx.init(params)
    for gradient in (1.0, -2.0, 0.5):
        gradients = {name: jnp.full_like(p, gradient) for name, p in params.items()}
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return params


def run(decayed, nesterov=False):
    tx = sgd(
        lambda update: 0.1 / (jnp.asarray(update, float) + 1),
        momentum=0.9,
        nesterov=nesterov,
        weight_decay=0.01,
        decayed=decayed,
    )
    return after_three_updates(tx)


def oracle(value, decay, nesterov=False):
    trace = 0.0
    for update, gradient in enumerate((1.0, -2.0, 0.5)):
        gradient += decay * value
        trace = 0.9 * trace + gradient
        step = gradient + 0.9 * trace if nesterov else trace
        value -= 0.1 / (update + 1) * step
    return value


def test_decay_is_added_before_the_momentum_and_spares_biases():
    params = run("kernels")
    np.testing.assert_allclose(params["kernel"], oracle(3.0, 0.01), rtol=1e-6)
    np.testing.assert_allclose(params["bias"], oracle(5.0, 0.0), rtol=1e-6)
    np.testing.assert_allclose(params["stem"], oracle(2.0, 0.01), rtol=1e-6)
    # Three axes, and no kernel.
    np.testing.assert_allclose(params["pos_embed"], oracle(2.0, 0.0), rtol=1e-6)


def test_decay_of_all_reaches_the_biases():
    np.testing.assert_allclose(run("all")["bias"], oracle(5.0, 0.01), rtol=1e-6)


def test_nesterov_looks_ahead():
    params = run("all", nesterov=True)
    np.testing.assert_allclose(params["bias"], oracle(5.0, 0.01, True), rtol=1e-6)


def adamw_oracle(value, decay):
    mean, square = 0.0, 0.0
    for update, gradient in enumerate((1.0, -2.0, 0.5), start=1):
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.99 * square + 0.01 * gradient**2
        direction = mean / (1 - 0.9**update)
        direction /= (square / (1 - 0.99**update)) ** 0.5 + 1e-8
        value -= 0.1 / update * (direction + decay * value)
    return value


def test_adamw_decays_the_kernels_apart_from_the_gradient():
    tx = adamw(
        lambda update: 0.1 / (jnp.asarray(update, float) + 1),
        momentum=0.9,
        beta2=0.99,
        nesterov=False,
        weight_decay=0.2,
        decayed="kernels",
    )
    # optax's Adam mixes integers and floats.
    with jax.numpy_dtype_promotion("standard"):
        params = after_three_updates(tx)
    np.testing.assert_allclose(params["kernel"], adamw_oracle(3.0, 0.2), rtol=1e-5)
    np.testing.assert_allclose(params["bias"], adamw_oracle(5.0, 0.0), rtol=1e-5)
    np.testing.assert_allclose(params["pos_embed"], adamw_oracle(2.0, 0.0), rtol=1e-5)


def test_the_gradient_of_all_weights_together_is_clipped():
    gradients = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}
    for norm, factor in ((1.0, 1 / 5), (10.0, 1.0), (0.0, 1.0)):
        tx = clipped(optax.sgd(1.0), norm)
        updates, _ = tx.update(gradients, tx.init(gradients), gradients)
        np.testing.assert_allclose(updates["a"], [-3 * factor, 0], rtol=1e-6)
        np.testing.assert_allclose(updates["b"], [[-4 * factor]], rtol=1e-6)
