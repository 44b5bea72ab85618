"""Decode images by Pillow alone: the functions of `jpeg`, without TensorFlow.

The pixels before a resize are those of `jpeg`, and random crops are those of the same
seed. Pillow rounds to 8 bits between the two directions of a resize; a value then differs
from TensorFlow's by a level or two of 256. A JPEG is decoded whole, so that the
border of its crop has the values of the whole image.
"""

import functools
import io
import math

import numpy as np
from jaxtyping import UInt8

from freeadv_jax.data.philox import stateless_uniform
from freeadv_jax.errors import one_line

# A random resized crop: its part of the area, and its width over its height (Szegedy et
# al., CVPR 2015; the same numbers as torchvision's RandomResizedCrop).
AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
TRIES = 10
# The short side before a center crop of 224.
RESIZED = 256 / 224
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")


class Undecodable(ValueError):
    """An image that Pillow cannot decode."""


def decode(
    encoded: bytes, formats: tuple[str, ...] = FORMATS
) -> UInt8[np.ndarray, "h w 3"]:
    """Return the pixels of an encoded image; raise Undecodable where there are none."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded), formats=formats) as image:
            if image.mode.startswith("I;16"):  # Pillow would turn all above 255 white.
                gray = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
                return np.repeat(gray[:, :, None], 3, axis=2)
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow raises nearly anything for damaged files.
        raise Undecodable(one_line(error)) from error


def random_crop(
    encoded: bytes, seed: tuple[int, int], *, size: int, flip: bool
) -> UInt8[np.ndarray, "size size 3"]:
    """Return a random resized crop of an encoded image; see `jpeg.random_crop`."""
    pixels = decode(encoded)
    # 10 tries of area, ratio, top and left; one more number for the flip.
    uniform = stateless_uniform(seed, 4 * TRIES + 1)
    tries, mirrored = uniform[:-1].reshape(4, TRIES), uniform[-1] < 0.5
    top, left, height, width = _crop_window(pixels.shape, tries)
    crop = _resize(pixels[top : top + height, left : left + width], (size, size))
    return crop[:, ::-1] if flip and mirrored else crop


@functools.cache
def center_decoder(size: int):
    """Return a function from an encoded image to its center, uint8[size, size, 3]."""
    short = round(RESIZED * size)

    def decode_center(encoded):
        pixels = decode(encoded)
        sides = np.array(pixels.shape[:2])
        pixels = _resize(pixels, short * sides // sides.min())
        # Halves are rounded to the even side, as in torchvision.
        top, left = (round((side - size) / 2) for side in pixels.shape[:2])
        return pixels[top : top + size, left : left + size]

    return decode_center


def whole_decoder():
    """Return a function from an encoded image to all of its pixels, uint8[h, w, 3]."""
    return decode


def undecodable() -> type[Exception]:
    """Return the class of the errors that a decoder raises for a damaged image."""
    return Undecodable


def _crop_window(shape, tries):
    """Return (top, left, height, width) of the first try that lies within the image.

    Without one, return the largest center crop of an allowed ratio.
    """
    height, width = np.float32(shape[0]), np.float32(shape[1])
    area = (
        height
        * width
        * (np.float32(AREA[0]) + np.float32(AREA[1] - AREA[0]) * tries[0])
    )
    low, high = (np.float32(math.log(ratio)) for ratio in RATIO)
    ratio = np.exp(low + (high - low) * tries[1])
    heights, widths = np.rint(np.sqrt(area / ratio)), np.rint(np.sqrt(area * ratio))
    fits = (1 <= heights) & (heights <= height) & (1 <= widths) & (widths <= width)
    if fits.any():
        at = fits.argmax()
        sides = np.array([heights[at], widths[at]])
        rest = np.array([height, width]) - sides + 1
        # The product with a number just below 1 may be rounded up to `rest` itself.
        corner = np.minimum(np.floor(tries[2:, at] * rest), rest - 1)
    else:
        sides = np.array(
            [
                min(height, np.rint(width / np.float32(RATIO[0]))),
                min(width, np.rint(height * np.float32(RATIO[1]))),
            ]
        )
        corner = np.floor((np.array([height, width]) - sides) / 2)
    return (*corner.astype(int).tolist(), *sides.astype(int).tolist())


def _resize(pixels, sides):
    """Resize bilinearly and average where it shrinks."""
    from PIL import Image

    height, width = map(int, sides)
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image)
