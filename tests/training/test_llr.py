import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_oracle import ascended, flat, softmax, step_in_float64

from freeadv_jax.training.llr import llr_train_step


def entropies(kernel, pixels, labels):
    logits = pixels @ kernel
    chosen = logits[np.arange(len(labels)), labels]
    return jnp.log(jnp.exp(logits).sum(1)) - chosen


def image_gradients(kernel, pixels, labels):
    """Return (p - y) @ kernel.T, the gradient of each cross-entropy in its pixels."""
    exponentials = jnp.exp(pixels @ kernel)
    p = exponentials / exponentials.sum(1, keepdims=True)
    return (p - np.eye(kernel.shape[1])[labels]) @ kernel.T


def llr_loss(kernel, natural, other, labels, weight, mu):
    """Return the mean of the loss, with a gradient in the pixels that is a formula."""
    slope = jnp.sum((other - natural) * image_gradients(kernel, natural, labels), 1)
    at_image, at_other = (entropies(kernel, x, labels) for x in (natural, other))
    error = jnp.abs(at_other - at_image - slope)
    return jnp.mean(at_image + weight * error + mu * jnp.abs(slope))


@pytest.mark.parametrize(("weight", "mu"), [(0.0, 0.0), (4.0, 3.0)])
def test_loss_and_update_agree_with_formulas_in_float64(weight, mu, batch, make_state):
    (kernel, images, labels, start), after, loss = step_in_float64(
        llr_train_step, make_state, batch, llr_lambda=weight, llr_mu=mu
    )
    natural, targets = flat(images), np.eye(3)[labels]
    p, rows = softmax(natural @ kernel), np.arange(8)
    slopes = (p - targets) @ kernel.T

    def gradient(pixels):
        """Return that of the linearity error in the attacked pixels."""
        q = softmax(pixels @ kernel)
        gained = np.log(p[rows, labels] / q[rows, labels])
        error = gained - ((pixels - natural) * slopes).sum(1)
        return np.sign(error)[:, None] * ((q - targets) @ kernel.T - slopes)

    other = flat(ascended(images, start, gradient))
    with jax.enable_x64(True):
        expected, change = jax.value_and_grad(llr_loss)(
            jnp.array(kernel), natural, other, labels, weight, mu
        )
        np.testing.assert_allclose(loss, expected, rtol=1e-12)
        np.testing.assert_allclose(after, kernel - 0.1 * change, rtol=0, atol=1e-13)
