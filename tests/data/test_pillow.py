"""Images decoded by Pillow alone: crops, centers, and what is refused."""

import numpy as np
import pytest
from image_files import encoded, picture

from freeadv_jax.data import pillow


def coordinates(height, width):
    """Return a lossless image whose pixels hold their own row and column."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows, columns, 255 + 0 * rows], axis=-1)
    return encoded(pixels.astype(np.uint8), "PNG")


def windows(data, number, size=32, flip=True):
    """Return (top, bottom, left, right, mirrored) of crops, to about half a pixel."""
    crops = np.stack(
        [
            pillow.random_crop(data, (0, draw), size=size, flip=flip)
            for draw in range(number)
        ]
    )
    rows = crops[:, [0, -1], size // 2, 0].astype(float)
    columns = crops[:, size // 2, [0, -1], 1].astype(float)
    mirrored = columns[:, 0] > columns[:, 1]
    return rows[:, 0], rows[:, 1], columns.min(1), columns.max(1), mirrored


def test_crops_have_the_areas_and_ratios_of_inception_and_half_are_mirrored():
    height, width = 200, 250
    top, bottom, left, right, mirrored = windows(coordinates(height, width), 1500)
    heights, widths = (bottom - top) * 32 / 31, (right - left) * 32 / 31
    areas, ratios = heights * widths / (height * width), widths / heights
    assert 0.07 < areas.min() < 0.1
    assert 0.9 < areas.max() < 1.03
    assert 0.72 < ratios.min() < 0.79
    assert 1.29 < ratios.max() < 1.4
    np.testing.assert_allclose(areas[areas < 0.5].mean(), 0.29, atol=0.015)
    assert 0.45 < mirrored.mean() < 0.55
    assert (top.min() < 4, left.min() < 4) == (True, True)
    assert (bottom.max() > height - 5, right.max() > width - 5) == (True, True)


def test_nothing_is_mirrored_without_flip():
    *_, mirrored = windows(coordinates(90, 90), 50, flip=False)
    assert not mirrored.any()


@pytest.mark.parametrize(
    ("shape", "cut"), [((12, 250), (12, 16)), ((250, 12), (16, 12))]
)
def test_a_very_long_image_gives_its_center(shape, cut):
    height, width = shape
    top, bottom, left, right, _ = windows(coordinates(height, width), 5)
    for low, high, side, part in (
        (top, bottom, height, cut[0]),
        (left, right, width, cut[1]),
    ):
        np.testing.assert_allclose((low + high) / 2, (side - 1) / 2, atol=1.5)
        np.testing.assert_allclose(high - low, part - 1, atol=1.5)


def test_a_center_crop_keeps_seven_eighths_of_the_short_side():
    pixels = pillow.center_decoder(35)(coordinates(80, 120))
    assert pixels.shape == (35, 35, 3)
    # The short side is 40 then: two source pixels for each, from pixel 2.5 on.
    np.testing.assert_allclose(pixels[[0, -1], 17, 0], [4.5, 72.5], atol=1.5)
    np.testing.assert_allclose(pixels[17, [0, -1], 1], [24.5, 92.5], atol=1.5)


def test_a_crop_is_a_function_of_seed_and_draw():
    data = encoded(picture(3))
    draws = [(0, 0), (0, 1), (1, 0), (2**32 - 1, 2**40)]
    crops = [pillow.random_crop(data, d, size=32, flip=True) for d in draws * 2]
    for place, crop in enumerate(crops[:4]):
        np.testing.assert_array_equal(crop, crops[place + 4])
        assert all((crop != other).any() for other in crops[:place])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("part", [0, 0.02, 0.5])
def test_a_damaged_image_is_an_error_that_callers_expect(kind, part):
    data = encoded(picture(3), kind)
    with pytest.raises(pillow.undecodable()):
        pillow.decode(data[: int(part * len(data))])


def test_other_formats_are_not_guessed_by_their_contents():
    with pytest.raises(pillow.undecodable(), match="cannot identify image file"):
        pillow.decode(encoded(picture(3), "TIFF"))
