"""The transformations of the gallery do what their papers say, and return images."""

import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from freeadv_jax.gallery.defences.bit_depth import reduce_bit_depth
from freeadv_jax.gallery.defences.jpeg import jpeg
from freeadv_jax.gallery.defences.random_crops import random_crop
from freeadv_jax.gallery.defences.resize_and_pad import resize_and_pad
from freeadv_jax.gallery.defences.thermometer import narrow_ramps, ramps, thermometer
from freeadv_jax.gallery.defences.total_variation import (
    minimise_total_variation,
    solve,
)

IMAGES = np.random.default_rng(0).uniform(0, 1, (3, 8, 8, 3)).astype(np.float32)
GIVEN = jnp.asarray(IMAGES)
KEYS = jax.random.split(jax.random.key(0), 3)


@pytest.mark.parametrize("bits", [1, 3])
def test_bit_depth_leaves_the_nearest_of_its_levels(bits):
    levels = np.linspace(0, 1, 2**bits)
    nearest = levels[abs(IMAGES[..., None] - levels).argmin(axis=-1)]
    np.testing.assert_allclose(reduce_bit_depth(GIVEN, bits), nearest, atol=1e-6)


def test_jpeg_is_the_codec_of_pillow():
    for channels in (1, 3):
        images = IMAGES[..., :channels]
        found = np.asarray(jax.jit(jpeg)(images))
        for image, decoded in zip(images, found, strict=True):
            pixels = np.round(255 * image).astype(np.uint8).squeeze()
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, format="JPEG", quality=75)
            expected = np.asarray(Image.open(file)).reshape(image.shape)
            np.testing.assert_allclose(decoded * 255, expected, atol=1e-4)


def test_jpeg_keeps_an_image_of_one_colour_and_has_no_gradient():
    grey = np.full((2, 8, 8, 3), 128 / 255, np.float32)
    np.testing.assert_allclose(jpeg(jnp.asarray(grey)), grey, atol=1e-6)
    gradient = jax.grad(lambda images: jpeg(images).sum())(GIVEN)
    assert not np.any(gradient)


def test_bit_k_of_the_thermometer_says_that_a_value_exceeds_k_eighths():
    code = np.asarray(thermometer(GIVEN)).reshape(*IMAGES.shape, 8)
    above = IMAGES[..., None] > np.arange(8) / 8
    np.testing.assert_array_equal(code, above)
    smooth = np.asarray(ramps(GIVEN)).reshape(code.shape)
    np.testing.assert_allclose(
        smooth, np.maximum(IMAGES[..., None] - np.arange(8) / 8, 0), atol=1e-6
    )


def test_narrow_ramps_go_half_a_level_to_each_side_of_a_threshold():
    # The threshold of bit 3 is 3 / 8.
    values = jnp.array([0.3125, 0.34375, 0.375, 0.40625, 0.4375]).reshape(1, 1, 5, 1)
    bit = narrow_ramps(values).reshape(5, 8)[:, 3]
    np.testing.assert_allclose(bit, [0, 0.25, 0.5, 0.75, 1], atol=1e-6)
    slopes = jax.vmap(jax.jacobian(lambda x: narrow_ramps(x.reshape(1, 1, 1, 1))))(
        jnp.linspace(0.01, 0.93, 40)
    )
    # Exactly one bit has a gradient.
    np.testing.assert_array_equal((slopes.reshape(40, 8) == 8).sum(axis=1), 1)
    np.testing.assert_array_equal((slopes.reshape(40, 8) == 0).sum(axis=1), 7)


def test_total_variation_falls_and_an_even_image_stays():
    def variation(images):
        return sum(abs(np.diff(images, axis=axis)).sum() for axis in (1, 2))

    smooth = np.asarray(minimise_total_variation(GIVEN, KEYS))
    assert variation(smooth) < 0.7 * variation(IMAGES)
    assert 0 <= smooth.min() <= smooth.max() <= 1
    even = np.full_like(IMAGES, 0.25)
    np.testing.assert_allclose(
        minimise_total_variation(jnp.asarray(even), KEYS), even, atol=1e-5
    )


def test_only_the_solver_itself_passes_a_gradient():
    def slope(function):
        return jax.grad(lambda x: jnp.sum(function(x, KEYS) ** 2))(jnp.asarray(GIVEN))

    np.testing.assert_array_equal(
        solve(GIVEN, KEYS), minimise_total_variation(GIVEN, KEYS)
    )
    assert np.abs(slope(solve)).max() > 0.1
    assert not np.any(slope(minimise_total_variation))


def test_total_variation_keeps_the_kept_pixels_where_it_weighs_nothing():
    same = minimise_total_variation(GIVEN, KEYS, keep=1.0, weight=0.0)
    np.testing.assert_allclose(same, IMAGES, atol=1e-6)


@pytest.mark.parametrize(
    "defence", [random_crop, functools.partial(resize_and_pad, smallest=0.4)]
)
def test_each_image_is_drawn_with_its_own_key(defence):
    alike = jnp.repeat(GIVEN[:1], 3, axis=0)
    one, _, other = np.asarray(defence(alike, KEYS))
    assert abs(one - other).max() > 0.1
    again = np.asarray(defence(alike, KEYS))
    np.testing.assert_array_equal(one, again[0])


def test_a_crop_of_the_whole_image_is_the_image():
    np.testing.assert_allclose(random_crop(GIVEN, KEYS, part=1.0), IMAGES, atol=1e-5)


def test_resized_images_of_ones_lie_whole_among_zeros():
    sides = set()
    for seed in range(8):
        keys = jax.random.split(jax.random.key(seed), 3)
        shown = np.asarray(resize_and_pad(jnp.ones_like(GIVEN), keys, smallest=0.5))
        for image in shown[..., 0]:
            inside = image > 0.5
            rows, columns = inside.any(axis=1).sum(), inside.any(axis=0).sum()
            assert rows == columns
            assert inside.sum() == rows * columns
            sides.add(int(rows))
    assert sides == {4, 5, 6, 7, 8}
