"""K-PGD on a linear model in NumPy, and what a step in float64 needs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from linear_model import Linear

from freeadv_jax.attacks.threat import Linf

EPSILON, STEP_SIZE, STEPS = 0.1, 0.03, 5
THREAT = Linf(EPSILON)


def softmax(logits):
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def flat(images):
    return images.reshape(len(images), -1)


def ascended(images, start, gradient, *, steps=STEPS):
    """Return images after sign steps along `gradient(attacked images) -> [b, n]`."""
    delta = (images + start).clip(0, 1) - images
    for _ in range(steps):
        slope = gradient(flat(images + delta)).reshape(images.shape)
        delta = (delta + STEP_SIZE * np.sign(slope)).clip(-EPSILON, EPSILON)
        delta = (images + delta).clip(0, 1) - images
    return images + delta


def attacked(kernel, images, labels, start, **options):
    """Return images after K-PGD on the cross-entropy of `pixels @ kernel`."""
    targets = np.eye(kernel.shape[1])[labels]
    return ascended(
        images,
        start,
        lambda pixels: (softmax(pixels @ kernel) - targets) @ kernel.T,
        **options,
    )


def step_in_float64(train_step, make_state, batch, *, tx=None, **settings):
    """Return the inputs of a step on a linear model, the state after it and its loss.

    The inputs are the kernel [n, k], images [b, h, w, c], labels [b] and random starts.
    """
    with jax.enable_x64(True):
        model, tx = Linear(dtype=jnp.float64), tx or optax.sgd(0.1)
        state = make_state(model, tx)
        start = THREAT.random_start(state.attack_keys(), state.delta.shape[1:])
        labels = np.array(batch["label"])
        step = functools.partial(
            train_step,
            model=model,
            tx=tx,
            threat=THREAT,
            step_size=STEP_SIZE,
            steps=STEPS,
            **settings,
        )
        after, metrics = jax.jit(step)(state, batch | {"label": jnp.array(labels, int)})
        kernel = after.params["Dense_0"]["kernel"]
        assert kernel.dtype == start.dtype == jnp.float64
        before = np.array(state.params["Dense_0"]["kernel"])
        images = np.array(batch["image"], float) / 255
        inputs = before, images, labels, np.array(start)
        return inputs, np.array(kernel), float(metrics["loss"])
