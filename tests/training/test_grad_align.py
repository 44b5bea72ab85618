import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_free import softmax

from freeadv_jax.attacks.threat import Linf
from freeadv_jax.models.interface import as_model
from freeadv_jax.training.grad_align import grad_align_train_step
from freeadv_jax.training.state import create_state

EPSILON = 0.1


def init(key, image_shape):
    one, two = jax.random.split(key)
    return {
        "a": jax.random.normal(one, (16, 5)) / 4,
        "b": jax.random.normal(two, (5, 3)),
    }


def apply(variables, images):
    return jnp.tanh(images.reshape(len(images), -1) @ variables["a"]) @ variables["b"]


def setting(batch):
    model = as_model((init, apply))
    tx = optax.sgd(0.1)
    shape = {"batch_size": 8, "image_shape": (4, 4, 1)}
    return model, tx, create_state(model, tx, seed=0, **shape)


def step(batch, alignment):
    model, tx, state = setting(batch)
    after, metrics = grad_align_train_step(
        state,
        batch,
        model=model,
        tx=tx,
        threat=Linf(EPSILON),
        step_size=EPSILON,
        grad_align_lambda=alignment,
    )
    return state, after, metrics


def loss_of(weights, images, noisy, adversarial, labels, alignment):
    """Return the loss in float64 NumPy, and the gradient of the images by hand."""
    a, b = weights

    def gradient(x):
        hidden = np.tanh(x @ a)
        return ((softmax(hidden @ b) - labels) @ b.T * (1 - hidden**2)) @ a.T

    one, other = gradient(images), gradient(noisy)
    cosine = (one * other).sum(1)
    cosine /= np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    p = softmax(np.tanh(adversarial @ a) @ b)
    return np.mean(-np.log((p * labels).sum(1)) + alignment * (1 - cosine)), gradient


@pytest.mark.parametrize("alignment", [0.0, 0.5])
def test_update_is_the_derivative_of_the_loss_by_finite_differences(alignment, batch):
    """Without its weight it is FGSM training."""
    state, after, metrics = step(batch, alignment)
    weights = [np.array(state.params[name], np.float64) for name in "ab"]
    images = (np.array(batch["image"], np.float64) / 255).reshape(8, -1)
    labels = np.eye(3)[np.array(batch["label"])]
    eta = np.array(Linf(EPSILON).random_start(state.attack_keys(), (4, 4, 1)))
    noisy = (images + eta.reshape(8, -1)).clip(0, 1)
    _, gradient = loss_of(weights, images, noisy, images, labels, 0.0)
    adversarial = (images + EPSILON * np.sign(gradient(images))).clip(0, 1)
    fixed = images, noisy, adversarial, labels, alignment
    loss, _ = loss_of(weights, *fixed)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    moved = [np.array(after.params[name], np.float64) for name in "ab"]
    rng = np.random.default_rng(0)
    for _ in range(3):
        along = [rng.normal(size=w.shape) for w in weights]
        up, down = (
            loss_of([w + s * 1e-5 * d for w, d in zip(weights, along)], *fixed)[0]
            for s in (1, -1)
        )
        wanted = (up - down) / 2e-5
        found = -sum(
            ((m - w) / 0.1 * d).sum() for m, w, d in zip(moved, weights, along)
        )
        np.testing.assert_allclose(found, wanted, rtol=1e-3)
