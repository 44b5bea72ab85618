"""Defensive distillation: Papernot et al. (IEEE S&P 2016); saturated logits.

A network learns the class probabilities of another one of its kind, both at temperature
100, and is used at temperature 1. Its logits are then so large that the cross-entropy has no
gradient in float32. Carlini & Wagner (IEEE S&P 2017) attacked the logits before the
temperature: nothing is left. The attacks of this library are not stopped by it in the
first place, because they maximise log odds, which do not saturate.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from freeadv_jax.gallery.defence import Defence, Defended, by_pgd

TEMPERATURE = 100.0


def scaled(logits_fn, factor: float):
    """Return a model with its logits multiplied by `factor`."""
    return jax.tree_util.Partial(_scaled, jnp.float32(factor), logits_fn)


def _scaled(factor, logits_fn, images: Float[Array, "b h w c"]):
    return factor * logits_fn(images)


def _build(task):
    # A network trained at temperature T has logits T times as large as usual. They are
    # written as T times those of a network of the usual size, which is what is trained:
    # the optimum is the same, and so are the learning rates.
    teacher = task.natural.logits_fn

    def loss(logits_fn, images, labels, key):
        del labels, key
        logits = logits_fn(images)
        taught = jax.nn.softmax(teacher(images))
        return -jnp.sum(taught * jax.nn.log_softmax(logits), axis=-1), logits

    student = task.train_on("distillation", loss).logits_fn
    used = scaled(student, TEMPERATURE)
    attacked = scaled(used, 1 / TEMPERATURE)
    return Defended(
        used,
        {
            "PGD on the logits / 100": by_pgd(attacked),
            "PGD on their margin": by_pgd(attacked, loss="margin"),
        },
    )


DEFENCE = Defence(
    name="distillation",
    title="Defensive distillation",
    paper="Papernot et al., IEEE S&P 2016",
    kind="saturated logits",
    parameters="temperature 100",
    broken_by="PGD on the logits before the temperature",
    masks=True,
    published=None,
    build=_build,
)
