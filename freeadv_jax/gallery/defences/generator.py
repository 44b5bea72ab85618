"""Projection on a generator's range: Defense-GAN of Samangouei et al. (ICLR 2018).

The network sees the nearest image that a generator can make, found by gradient descent from
several random starts. The gradient through the descent is random, and vanishes or explodes
where the descent is long. BPDA with the identity left 55 % on MNIST (Athalye et al., ICML
2018), at a mean squared change of 0.005 a pixel, which is 1.98 in L2. That is 0.34 times the
median distance of a test image of MNIST to the nearest image of another class, and so is the
radius here. The generator is the decoder of a small variational autoencoder of digits.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from freeadv_jax.attacks.bpda import bpda
from freeadv_jax.gallery.defence import Defence, Defended, before, by_pgd

LATENT, STARTS, STEPS = 8, 4, 50
# The draws that an adaptive attack averages.
SAMPLES = 10
_HIDDEN, _UPDATES, _BATCH, _RATE, _MOMENTUM = 64, 3000, 64, 0.5, 0.7


def fit_generator(images: Float[np.ndarray, "n h w c"], *, seed: int = 0):
    """Return the weights of a generator: the decoder of a variational autoencoder.

    Kingma & Welling (ICLR 2014). `images` are in [0, 1].
    """
    pixels = math.prod(images.shape[1:])
    shapes = [
        (pixels, _HIDDEN),
        (_HIDDEN, 2 * LATENT),
        (LATENT, _HIDDEN),
        (_HIDDEN, pixels),
    ]
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    weights = [
        (jax.random.normal(key, shape) / shape[0] ** 0.5, jnp.zeros(shape[1]))
        for key, shape in zip(keys, shapes)
    ]
    tx = optax.rmsprop(2e-3, momentum=0.9)
    flat = jnp.asarray(images).reshape(len(images), -1)

    def loss(weights, batch, key):
        code = _layers(weights[:2], batch)
        mean, log_deviation = jnp.split(code, 2, axis=-1)
        latent = mean + jnp.exp(log_deviation) * jax.random.normal(key, mean.shape)
        drawn = jax.nn.sigmoid(_layers(weights[2:], latent))
        # A deviation of 0.1 a pixel.
        error = 50 * jnp.sum((drawn - batch) ** 2, axis=-1)
        prior = mean**2 + jnp.exp(2 * log_deviation) - 2 * log_deviation
        return jnp.mean(error + 0.5 * jnp.sum(prior, axis=-1))

    def update(number, carried):
        weights, state = carried
        key = jax.random.fold_in(jax.random.key(seed + 1), number)
        chosen = flat[jax.random.randint(key, (_BATCH,), 0, len(flat))]
        gradient = jax.grad(loss)(weights, chosen, jax.random.fold_in(key, 1))
        changes, state = tx.update(gradient, state, weights)
        return optax.apply_updates(weights, changes), state

    run = jax.jit(lambda carried: jax.lax.fori_loop(0, _UPDATES, update, carried))
    return run((weights, tx.init(weights)))[0][2:]


def project(
    weights, images: Float[Array, "b h w c"], keys: Key[Array, " b"]
) -> Float[Array, "b h w c"]:
    """Return the images of the generator that are nearest, found by gradient descent.

    `weights` are those of `fit_generator`. The descent makes 50 steps with momentum from
    each of 4 random starts, and the best end counts. JAX can differentiate it; the gradient
    is that of all steps.
    """
    flat = images.reshape(len(images), -1)
    draw = functools.partial(jax.random.normal, shape=(STARTS, LATENT))
    latents = jnp.moveaxis(jax.vmap(draw)(keys), 1, 0)

    def errors(latents):
        made = jax.nn.sigmoid(_layers(weights, latents))
        return jnp.mean((made - flat) ** 2, axis=-1)

    def descend(carried, _):
        latents, speed = carried
        gradient = jax.grad(lambda latents: errors(latents).sum())(latents)
        speed = _MOMENTUM * speed - _RATE * flat.shape[1] * gradient / 10
        return (latents + speed, speed), None

    begun = latents, jnp.zeros_like(latents)
    (latents, _), _ = jax.lax.scan(descend, begun, None, length=STEPS)
    best = errors(latents).argmin(axis=0)
    chosen = jnp.take_along_axis(latents, best[None, :, None], axis=0)[0]
    return jax.nn.sigmoid(_layers(weights, chosen)).reshape(images.shape)


def _layers(weights, inputs):
    (matrix, bias), (last, last_bias) = weights
    return jax.nn.relu(inputs @ matrix + bias) @ last + last_bias


def _build(task):
    network = task.natural.logits_fn
    weights = fit_generator(
        task.train.images.astype(np.float32) / np.float32(255), seed=task.seed
    )
    projected = functools.partial(project, weights)
    defended = before(projected, network)
    margin = {"loss": "margin", "samples": SAMPLES}
    return Defended(
        defended,
        {
            "BPDA and EOT": by_pgd(before(bpda(projected), network), **margin),
            # The descent is short enough to be differentiated.
            "EOT through the descent": by_pgd(defended, samples=SAMPLES),
            "EOT through the descent, on the margin": by_pgd(defended, **margin),
        },
        random=True,
        shown=projected,
    )


DEFENCE = Defence(
    name="generator",
    title="Generator's range (Defense-GAN)",
    paper="Samangouei et al., ICLR 2018",
    kind="random, vanishing or exploding gradients",
    parameters=f"{LATENT} latent numbers, {STEPS} steps from {STARTS} random starts",
    broken_by="BPDA with the identity, and EOT through the whole descent",
    masks=True,
    published=0.55,
    data="digits",
    norm="l2",
    epsilon={"digits": 0.64},
    build=_build,
)
