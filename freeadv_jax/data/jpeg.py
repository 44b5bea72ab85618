"""Decode images to pixels of one size: random crops to train on, the center to test on.

The pixels of an image are those of Pillow's `Image.open(file).convert("RGB")`, in
training and in evaluation alike:

- An alpha channel, or a transparent color, is dropped; the colors stored beneath it stay.
- An EXIF orientation is not applied, as in torchvision's ImageFolder.
- Of an animation the first frame is taken.
- One exception: 16-bit gray keeps its upper 8 bits, as 16-bit color does in Pillow too,
  where Pillow turns everything above 255 to white.

TensorFlow decodes JPEG and PNG, to the same values and faster. Pillow decodes CMYK JPEG,
GIF, BMP and WebP, which TensorFlow decodes to other values or refuses. Both libraries are
imported by these functions and not before.
"""

import functools
import math

from freeadv_jax.data import pillow
from freeadv_jax.data.pillow import AREA, RATIO, RESIZED, TRIES

# Pillow's pixels; TensorFlow's own choice is the faster and less exact IFAST.
_DCT = "INTEGER_ACCURATE"
_PNG = b"\x89PNG\r\n\x1a\n"
_CMYK_CHANNELS = 4
# The formats of a folder's files that TensorFlow does not decode. TensorFlow hands
# Pillow's error on as one of the `undecodable` errors, for it is a ValueError.
_PILLOWS = ("JPEG", "GIF", "BMP", "WEBP")


def random_crop(encoded, seed, *, size: int, flip: bool):
    """Return a random resized crop uint8[size, size, 3] of an encoded image.

    `flip` mirrors it with probability 1/2. The crop is a function of the image and of
    `seed`, int64[2]. A JPEG is decoded within the crop alone; where its color is
    subsampled, values at the border of the crop then differ by a few of the 256 levels.
    """
    import tensorflow as tf

    # 10 tries of area, ratio, top and left; one more number for the flip.
    uniform = tf.random.stateless_uniform([4 * TRIES + 1], seed, alg="philox")
    tries, mirrored = tf.reshape(uniform[:-1], [4, TRIES]), uniform[-1] < 0.5

    def crop_of_jpeg():
        window = _crop_window(tf.io.extract_jpeg_shape(encoded), tries)
        return tf.io.decode_and_crop_jpeg(
            encoded, tf.stack(window), channels=3, dct_method=_DCT
        )

    def crop_of_pixels():
        pixels = _decode_other(encoded)
        top, left, height, width = _crop_window(tf.shape(pixels), tries)
        return pixels[top : top + height, left : left + width]

    pixels = tf.cond(_is_plain_jpeg(encoded), crop_of_jpeg, crop_of_pixels)
    pixels = _resize(pixels, [size, size])
    if flip:
        pixels = tf.cond(mirrored, lambda: pixels[:, ::-1], lambda: pixels)
    return tf.ensure_shape(pixels, [size, size, 3])


def _crop_window(shape, tries):
    """Return (top, left, height, width) of the first try that lies within the image.

    Without one, return the largest center crop of an allowed ratio.
    """
    import tensorflow as tf

    height, width = (tf.cast(side, tf.float32) for side in (shape[0], shape[1]))
    area = height * width * (AREA[0] + (AREA[1] - AREA[0]) * tries[0])
    low, high = map(math.log, RATIO)
    ratio = tf.exp(low + (high - low) * tries[1])
    heights, widths = tf.round(tf.sqrt(area / ratio)), tf.round(tf.sqrt(area * ratio))
    fits = (1 <= heights) & (heights <= height) & (1 <= widths) & (widths <= width)
    at = tf.argmax(tf.cast(fits, tf.int32))

    def drawn():
        rest = tf.stack([height - heights[at], width - widths[at]]) + 1
        # The product with a number just below 1 may be rounded up to `rest` itself.
        corner = tf.minimum(tf.floor(tries[2:, at] * rest), rest - 1)
        return tf.stack([corner[0], corner[1], heights[at], widths[at]])

    def central():
        size = tf.stack(
            [
                tf.minimum(height, tf.round(width / RATIO[0])),
                tf.minimum(width, tf.round(height * RATIO[1])),
            ]
        )
        corner = tf.floor((tf.stack([height, width]) - size) / 2)
        return tf.concat([corner, size], 0)

    return tf.unstack(tf.cast(tf.cond(tf.reduce_any(fits), drawn, central), tf.int32))


@functools.cache
def center_decoder(size: int):
    """Return a function from an encoded image to its center, uint8[size, size, 3].

    The short side is resized to 8/7 of `size` first. The function is compiled once and
    may be called from several threads.
    """
    import tensorflow as tf

    short = round(RESIZED * size)

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
    def decode(encoded):
        pixels = _decode(encoded)
        shape = tf.shape(pixels)[:2]
        sides = short * shape // tf.reduce_min(shape)
        pixels = _resize(pixels, sides)
        # Halves are rounded to the even side, as in torchvision.
        corner = tf.cast(tf.round((sides - size) / 2), tf.int32)
        pixels = pixels[corner[0] : corner[0] + size, corner[1] : corner[1] + size]
        return tf.ensure_shape(pixels, [size, size, 3])

    return decode


@functools.cache
def whole_decoder():
    """Return a function from an encoded image to all of its pixels, uint8[h, w, 3]."""
    import tensorflow as tf

    return tf.function(_decode, input_signature=[tf.TensorSpec([], tf.string)])


def undecodable() -> type[Exception]:
    """Return the class of the errors that a decoder raises for a damaged image."""
    import tensorflow as tf

    return tf.errors.OpError


def _decode(encoded):
    import tensorflow as tf

    return tf.cond(
        _is_plain_jpeg(encoded),
        lambda: tf.io.decode_jpeg(encoded, channels=3, dct_method=_DCT),
        lambda: _decode_other(encoded),
    )


def _is_plain_jpeg(encoded):
    """Return whether the image is a JPEG that TensorFlow decodes as Pillow does."""
    import tensorflow as tf

    return tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: tf.io.extract_jpeg_shape(encoded)[2] != _CMYK_CHANNELS,
        lambda: False,
    )


def _decode_other(encoded):
    """Decode any image but a JPEG of one or three channels; gray becomes colored."""
    import tensorflow as tf

    pixels = tf.cond(
        tf.strings.substr(encoded, 0, len(_PNG)) == _PNG,
        lambda: tf.io.decode_png(encoded, channels=3),
        # Not numpy_function, which outside of a graph cuts zeros off the end.
        lambda: tf.py_function(
            lambda image: pillow.decode(image.numpy(), _PILLOWS), [encoded], tf.uint8
        ),
    )
    return tf.ensure_shape(pixels, [None, None, 3])


def _resize(pixels, sides):
    """Resize bilinearly and average where it shrinks, as Pillow does."""
    import tensorflow as tf

    resized = tf.image.resize(pixels, sides, antialias=True)
    return tf.saturate_cast(tf.round(resized), tf.uint8)
