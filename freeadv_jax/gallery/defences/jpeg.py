"""JPEG: Guo et al. (ICLR 2018), input transformations; the gradient is shattered.

The codec is a real one, on the host. BPDA with the identity breaks it completely (Athalye
et al., ICML 2018): 0 % are left.
"""

import io

import numpy as np
from jaxtyping import Array, Float

from freeadv_jax.analysis.plotting import missing_extra
from freeadv_jax.attacks.bpda import bpda
from freeadv_jax.attacks.host import on_host
from freeadv_jax.gallery.defence import Defence, Defended, before, by_pgd


def jpeg(images: Float[Array, "b h w c"], quality: int = 75) -> Float[Array, "b h w c"]:
    """Return images in [0, 1] after a round trip through the JPEG codec of Pillow.

    `quality` is that of the codec, 1 to 95. The gradient is zero, as that of its rounding.
    Raise InputError where Pillow is not installed.
    """
    _pillow()
    return on_host(lambda images: _through_the_codec(images, quality), images)


def _through_the_codec(images, quality):
    image = _pillow()
    decoded = np.empty_like(images)
    levels = np.round(255 * np.clip(images, 0, 1)).astype(np.uint8)
    for number, pixels in enumerate(levels):
        grey = pixels.shape[-1] == 1
        file = io.BytesIO()
        image.fromarray(pixels[..., 0] if grey else pixels).save(
            file, format="JPEG", quality=quality
        )
        decoded[number] = np.asarray(image.open(file)).reshape(pixels.shape) / 255
    return decoded


def _pillow():
    try:
        from PIL import Image
    except ImportError as fault:
        raise missing_extra("JPEG images", "pillow") from fault
    return Image


def _build(task):
    network = task.natural.logits_fn
    through = before(bpda(jpeg), network)
    return Defended(
        before(jpeg, network),
        {
            "BPDA": by_pgd(through),
            "BPDA on the margin": by_pgd(through, loss="margin"),
        },
        shown=jpeg,
    )


DEFENCE = Defence(
    name="jpeg",
    title="JPEG",
    paper="Guo et al., ICLR 2018",
    kind="shattered gradients",
    parameters="quality 75",
    broken_by="BPDA with the identity",
    masks=True,
    published=0.0,
    build=_build,
)
