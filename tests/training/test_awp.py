import jax.numpy as jnp
import numpy as np
import pytest
from linear_oracle import attacked, flat, softmax, step_in_float64

from freeadv_jax.training.awp import awp_train_step, weight_perturbation
from freeadv_jax.training.optim import sgd


@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.5])
def test_the_update_takes_the_gradient_at_the_perturbed_weights(
    gamma, batch, make_state
):
    """It agrees with NumPy in float64. The decay is that of the weights themselves."""
    tx = sgd(
        lambda _: 0.1, momentum=0.9, nesterov=False, weight_decay=0.01, decayed="all"
    )
    (kernel, images, labels, start), after, loss = step_in_float64(
        awp_train_step, make_state, batch, tx=tx, awp_gamma=gamma
    )
    pixels = flat(attacked(kernel, images, labels, start))
    targets = np.eye(3)[labels]

    def gradient(weights):
        return pixels.T @ (softmax(pixels @ weights) - targets) / 8

    slope = gradient(kernel)
    ratio = np.linalg.norm(kernel) / np.linalg.norm(slope)
    perturbed = kernel + gamma * ratio * slope
    expected = kernel - 0.1 * (gradient(perturbed) + 0.01 * kernel)
    np.testing.assert_allclose(after, expected, rtol=0, atol=1e-13)
    probabilities = softmax(pixels @ perturbed)[np.arange(8), labels]
    np.testing.assert_allclose(loss, -np.log(probabilities).mean(), rtol=1e-12)


def test_layers_move_by_gamma_times_their_norm_and_vectors_stay():
    rng = np.random.default_rng(0)
    params, gradient = (
        {
            "kernel": rng.normal(size=(3, 3, 2, 4)).astype(np.float32),
            "dense": rng.normal(size=(4, 5)).astype(np.float32),
            "unused": rng.normal(size=(2, 2)).astype(np.float32),
            "bias": rng.normal(size=4).astype(np.float32),
        }
        for _ in range(2)
    )
    gradient["unused"] *= 0
    params, gradient = (
        {name: jnp.array(x) for name, x in tree.items()} for tree in (params, gradient)
    )
    moved = weight_perturbation(params, gradient, gamma=0.01)
    for name in ("kernel", "dense"):
        norms = [np.linalg.norm(np.ravel(tree[name])) for tree in (moved, params)]
        np.testing.assert_allclose(norms[0], 0.01 * norms[1], rtol=1e-5)
        cosine = np.vdot(moved[name], gradient[name]) / norms[0]
        np.testing.assert_allclose(
            cosine, np.linalg.norm(np.ravel(gradient[name])), rtol=1e-5
        )
    assert not moved["unused"].any()
    assert not moved["bias"].any()
