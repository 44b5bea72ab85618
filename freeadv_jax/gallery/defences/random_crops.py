"""Random crops: Guo et al. (ICLR 2018); the gradient is random.

A random part of each image is enlarged to the size of the whole, and the logits are
averaged over crops. EOT breaks it completely (Athalye et al., ICML 2018): 0 % are left.
The network is trained on crops, as in the paper.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from freeadv_jax.gallery.defence import Defence, Defended, before, by_pgd

SAMPLES = 10


def random_crop(
    images: Float[Array, "b h w c"], keys: Key[Array, " b"], part: float = 0.75
) -> Float[Array, "b h w c"]:
    """Return a random crop of each image, enlarged to the size of the image.

    The sides of the crop are `part` of the image's; its place is drawn with the image's
    key.
    """
    height, width, _ = images.shape[1:]
    free = (1 - part) * jnp.array([height, width], images.dtype)
    factors = jnp.full(2, 1 / part, images.dtype)

    def one(image, key):
        place = -factors * jax.random.uniform(key, (2,)) * free
        return jax.image.scale_and_translate(
            image, image.shape, (0, 1), factors, place, "linear"
        )

    return jax.vmap(one)(images, keys)


def _cropped(key, images):
    return random_crop(images, jax.random.split(key, len(images)))


def _build(task):
    network = task.tuned("random-crops", _cropped).logits_fn
    defended = before(random_crop, network)
    return Defended(
        defended,
        {
            f"EOT over {SAMPLES} draws": by_pgd(defended, samples=SAMPLES),
            "EOT on the margin": by_pgd(defended, samples=SAMPLES, loss="margin"),
        },
        random=True,
        shown=random_crop,
    )


DEFENCE = Defence(
    name="random-crops",
    title="Random crops",
    paper="Guo et al., ICLR 2018",
    kind="random gradients",
    parameters="3/4 of each side",
    broken_by="EOT",
    masks=True,
    published=0.0,
    build=_build,
)
