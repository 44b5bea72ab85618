"""Encoded images to pixels of one size: for training at random, for testing the same.

The only module that decodes, with TensorFlow, which is imported here and not before.
"""

import functools
import math

# Of a random resized crop: part of the area, and width over height (Szegedy et al.,
# CVPR 2015, as torchvision has it).
AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
TRIES = 10
# The short side before a center crop of 224.
RESIZED = 256 / 224
# Pillow's pixels; TensorFlow's own choice is the faster and less exact IFAST.
_DCT = "INTEGER_ACCURATE"


def random_crop(encoded, seed, *, size: int, flip: bool):
    """A random resized crop uint8[size, size, 3] of an encoded image, perhaps mirrored.

    A function of the image and of `seed`, int64[2]. Of a JPEG the crop alone is
    decoded.
    """
    import tensorflow as tf

    # 10 tries of area, ratio, top and left; one more number for the flip.
    uniform = tf.random.stateless_uniform([4 * TRIES + 1], seed, alg="philox")
    tries, mirrored = tf.reshape(uniform[:-1], [4, TRIES]), uniform[-1] < 0.5

    def of_jpeg():
        window = _crop_window(tf.io.extract_jpeg_shape(encoded), tries)
        return tf.io.decode_and_crop_jpeg(
            encoded, tf.stack(window), channels=3, dct_method=_DCT
        )

    def of_other():
        pixels = _decode_other(encoded)
        top, left, height, width = _crop_window(tf.shape(pixels), tries)
        return pixels[top : top + height, left : left + width]

    pixels = tf.cond(tf.io.is_jpeg(encoded), of_jpeg, of_other)
    pixels = _resize(pixels, [size, size])
    if flip:
        pixels = tf.cond(mirrored, lambda: pixels[:, ::-1], lambda: pixels)
    return tf.ensure_shape(pixels, [size, size, 3])


def _crop_window(shape, tries):
    """(top, left, height, width) of the first of the tries that lies in the image.

    If none does, of the largest center crop of an allowed ratio.
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
        # A product of a number just below 1 may be rounded up to `rest` itself.
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
    """encoded image -> uint8[size, size, 3], its center after resizing to 8/7 of that.

    Compiled once; safe to call from several threads.
    """
    import tensorflow as tf

    short = round(RESIZED * size)

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
    def decode(encoded):
        pixels = _decode(encoded)
        shape = tf.shape(pixels)[:2]
        sides = short * shape // tf.reduce_min(shape)
        pixels = _resize(pixels, sides)
        # Halves to the even side, as torchvision rounds them.
        corner = tf.cast(tf.round((sides - size) / 2), tf.int32)
        pixels = pixels[corner[0] : corner[0] + size, corner[1] : corner[1] + size]
        return tf.ensure_shape(pixels, [size, size, 3])

    return decode


@functools.cache
def whole_decoder():
    """encoded image -> uint8[h, w, 3]."""
    import tensorflow as tf

    return tf.function(_decode, input_signature=[tf.TensorSpec([], tf.string)])


def undecodable() -> type[Exception]:
    """What a decoder raises where an image is damaged."""
    import tensorflow as tf

    return tf.errors.OpError


def _decode(encoded):
    import tensorflow as tf

    return tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: tf.io.decode_jpeg(encoded, channels=3, dct_method=_DCT),
        lambda: _decode_other(encoded),
    )


def _decode_other(encoded):
    """PNG, GIF (its first frame) and BMP; gray ones become colored."""
    import tensorflow as tf

    pixels = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    return tf.ensure_shape(pixels, [None, None, 3])


def _resize(pixels, sides):
    """Bilinear, averaging where it shrinks, like Pillow."""
    import tensorflow as tf

    resized = tf.image.resize(pixels, sides, antialias=True)
    return tf.saturate_cast(tf.round(resized), tf.uint8)
