"""Random resize and pad: Xie et al. (ICLR 2018); the gradient is random.

Each image is resized to a random size and put at a random place of the frame. EOT over 30
draws breaks it completely (Athalye et al., ICML 2018): 0 % are left. The paper enlarges
299 pixels to at most 331. Here images are made smaller, so that the frame and with it the
network stay as they are.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from freeadv_jax.gallery.defence import Defence, Defended, before, by_pgd

SAMPLES = 10


def resize_and_pad(
    images: Float[Array, "b h w c"], keys: Key[Array, " b"], smallest: float = 0.875
) -> Float[Array, "b h w c"]:
    """Return each image resized to a random size, at a random place among zeros.

    The sides are `smallest` to 1 times those of the frame, in whole pixels, and both have
    the same factor. Each image is drawn with its own key.
    """
    height, width, _ = images.shape[1:]

    def one(image, key):
        size_key, place_key = jax.random.split(key)
        low = round(smallest * height)
        side = jax.random.randint(size_key, (), low, height + 1)
        side = side.astype(jnp.float32)
        factor = side / height
        free = jnp.stack([height - side, width - jnp.ceil(factor * width)])
        place = jnp.floor(jax.random.uniform(place_key, (2,)) * (free + 1))
        return jax.image.scale_and_translate(
            image,
            image.shape,
            (0, 1),
            jnp.stack([factor, factor]),
            place,
            "linear",
        )

    return jax.vmap(one)(images, keys)


def _build(task):
    network = task.natural.logits_fn
    defended = before(resize_and_pad, network)
    return Defended(
        defended,
        {
            f"EOT over {SAMPLES} draws": by_pgd(defended, samples=SAMPLES),
            "EOT on the margin": by_pgd(defended, samples=SAMPLES, loss="margin"),
        },
        random=True,
        shown=resize_and_pad,
    )


DEFENCE = Defence(
    name="resize-and-pad",
    title="Random resize and pad",
    paper="Xie et al., ICLR 2018",
    kind="random gradients",
    parameters="sides of 7/8 to 1",
    broken_by="EOT",
    masks=True,
    published=0.0,
    build=_build,
)
