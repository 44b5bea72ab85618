import numpy as np
import optax
import pytest
from linear_model import Linear
from test_free import softmax

from freeadv_jax.attacks.threat import L2, Linf
from freeadv_jax.training.n_fgsm import n_fgsm_train_step

EPSILON = 0.1
BALL = Linf(EPSILON)


def step(state, batch, *, threat=BALL, noise=2.0):
    return n_fgsm_train_step(
        state,
        batch,
        model=Linear(),
        tx=optax.sgd(0.1),
        threat=threat,
        step_size=EPSILON,
        n_fgsm_noise=noise,
    )


@pytest.mark.parametrize("threat", [Linf(EPSILON), L2(EPSILON)])
def test_update_is_the_gradient_one_step_beyond_the_noise(threat, batch, make_state):
    state = make_state()
    after, metrics = step(state, batch, threat=threat)
    kernel = np.array(state.params["Dense_0"]["kernel"], np.float64)
    images = np.array(batch["image"], np.float64) / 255
    labels = np.eye(3)[np.array(batch["label"])]
    wide = type(threat)(2 * EPSILON)
    eta = np.array(wide.random_start(state.attack_keys(), images.shape[1:]))
    noisy = (images + eta).clip(0, 1).reshape(8, -1)
    gradient = (softmax(noisy @ kernel) - labels) @ kernel.T
    if threat.norm == "linf":
        direction = np.sign(gradient)
    else:
        direction = gradient / np.linalg.norm(gradient, axis=1, keepdims=True)
    pixels = (noisy + EPSILON * direction).clip(0, 1)
    p = softmax(pixels @ kernel)
    kernel -= 0.1 * pixels.T @ (p - labels) / 8
    np.testing.assert_allclose(after.params["Dense_0"]["kernel"], kernel, atol=1e-6)
    loss = -np.log((p * labels).sum(axis=1)).mean()
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
