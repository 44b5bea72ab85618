import jax
import numpy as np
import optax
from linear_model import Linear
from test_free import softmax

from freeadv_jax.attacks.threat import Linf
from freeadv_jax.training.gaussian import gaussian_train_step


def step(state, batch, *, gaussian_sigma):
    return gaussian_train_step(
        state,
        batch,
        model=Linear(),
        tx=optax.sgd(0.1),
        threat=Linf(0.1),
        step_size=0.1,
        gaussian_sigma=gaussian_sigma,
    )


def test_update_is_the_gradient_at_the_noisy_images(batch, make_state):
    """Noisy pixels outside [0, 1] stay there."""
    state = make_state()
    after, metrics = step(state, batch, gaussian_sigma=0.5)
    kernel = np.array(state.params["Dense_0"]["kernel"], np.float64)
    images = np.array(batch["image"], np.float64) / 255
    noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))
    noisy = images + 0.5 * np.array(noise(state.attack_keys()), np.float64)
    assert noisy.min() < -0.2
    assert noisy.max() > 1.2
    pixels, labels = noisy.reshape(8, -1), np.eye(3)[np.array(batch["label"])]
    p = softmax(pixels @ kernel)
    kernel -= 0.1 * pixels.T @ (p - labels) / 8
    np.testing.assert_allclose(after.params["Dense_0"]["kernel"], kernel, atol=1e-6)
    loss = -np.log((p * labels).sum(axis=1)).mean()
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)


def test_noise_differs_from_image_to_image_and_from_step_to_step(batch, make_state):
    first = make_state()
    second, _ = step(first, batch, gaussian_sigma=0.5)
    keys = [
        jax.random.key_data(key) for s in (first, second) for key in s.attack_keys()
    ]
    assert len({key.tobytes() for key in map(np.asarray, keys)}) == 16
