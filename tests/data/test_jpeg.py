import io

import numpy as np
import pytest
from image_files import encoded, imagenette, picture
from PIL import Image

from freeadv_jax.data import jpeg

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def tf():
    return pytest.importorskip("tensorflow")


def photograph(height, width):
    """Detail at every scale, as in a photograph."""
    rng = np.random.default_rng(height * width)
    sum_ = np.zeros((height, width, 3))
    for size in (4, 16, 64):
        noise = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
        grown = Image.fromarray(noise).resize((width, height), Image.BICUBIC)
        sum_ += np.asarray(grown, float)
    return (sum_ / 3).round().astype(np.uint8)


def by_pillow(data, size):
    """torchvision's Resize(256/224 size) and CenterCrop(size), in its own words."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    short = round(size * 256 / 224)
    width, height = image.size
    if width <= height:
        sides = short, int(short * height / width)
    else:
        sides = int(short * width / height), short
    pixels = np.asarray(image.resize(sides, Image.BILINEAR), int)
    top, left = round((sides[1] - size) / 2), round((sides[0] - size) / 2)
    return pixels[top : top + size, left : left + size]


def decoded(data, size):
    return jpeg.center_decoder(size)(data).numpy()


@pytest.mark.parametrize("shape", [(375, 500), (501, 333), (60, 47), (300, 300)])
@pytest.mark.parametrize("size", [224, 64])
def test_test_pixels_are_those_of_pillow(tf, shape, size):
    data = encoded(photograph(*shape), subsampling=2)
    pixels = decoded(data, size)
    assert pixels.shape == (size, size, 3)
    assert pixels.dtype == np.uint8
    difference = np.abs(pixels.astype(int) - by_pillow(data, size))
    assert difference.max() <= 2
    assert difference.mean() < 0.3


def test_test_pixels_of_photographs_are_those_of_pillow(tf):
    folder = imagenette()
    if folder is None:
        pytest.skip("FREEADV_IMAGENETTE names no folder of photographs")
    files = sorted(folder.glob("val/*/*"))[::10]
    assert len(files) >= 10
    for file in files:
        data = file.read_bytes()
        difference = np.abs(decoded(data, 160).astype(int) - by_pillow(data, 160))
        assert difference.max() <= 3
        assert difference.mean() < 0.3


def of_kind(kind):
    pixels = photograph(50, 60)
    image = Image.fromarray(pixels)
    if kind == "CMYK":
        pixels[:] = pixels[:1, :1]  # Its colors are worth what its profile says.
        image = Image.fromarray(pixels).convert("CMYK")
    elif kind in ("L", "P", "RGBA", "I;16"):
        image = image.convert("L") if kind == "I;16" else image.convert(kind)
    if kind == "I;16":
        image = Image.fromarray(np.asarray(image, np.uint16) * 257)
    file = io.BytesIO()
    form = {"L": "JPEG", "CMYK": "JPEG", "BMP": "BMP", "GIF": "GIF"}.get(kind, "PNG")
    image.save(file, form)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["RGB", "L", "P", "RGBA", "I;16", "BMP", "GIF"])
def test_other_kinds_of_images_become_three_channels(tf, kind):
    data = of_kind(kind)
    pixels = decoded(data, 32)
    if kind == "I;16":
        data = of_kind("L")
    tolerance = 12 if kind in ("L", "I;16") else 2  # JPEG's own loss, in gray.
    assert np.abs(pixels.astype(int) - by_pillow(data, 32)).max() <= tolerance
    crop = jpeg.random_crop(data, tf.constant([0, 1], tf.int64), size=32, flip=True)
    assert crop.shape == (32, 32, 3)
    assert abs(crop.numpy().mean() - pixels.mean()) < 40


def test_four_inks_become_their_color(tf):
    pixels = decoded(of_kind("CMYK"), 32)
    expected = photograph(50, 60)[0, 0].astype(int)
    assert np.abs(pixels.astype(int) - expected).max() <= 4


def test_the_first_frame_of_several_is_taken(tf):
    frames = [Image.new("RGB", (40, 40), color) for color in ("red", "blue")]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert (decoded(file.getvalue(), 32) == (255, 0, 0)).all()


def coordinates(height, width):
    """An image that tells where each of its pixels lies: PNG loses nothing."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows, columns, 255 * (rows + columns >= 0)], axis=-1)
    return encoded(pixels.astype(np.uint8), "PNG")


def windows(tf, data, number, size=64, flip=True):
    """(top, bottom, left, right, mirrored) of crops, in pixels, about a half off."""
    crops = tf.data.Dataset.range(number).map(
        lambda draw: jpeg.random_crop(
            data, tf.stack([tf.zeros_like(draw), draw]), size=size, flip=flip
        ),
        num_parallel_calls=2,
    )
    crops = np.stack(list(crops.as_numpy_iterator()))
    rows = crops[:, [0, -1], size // 2, 0].astype(float)
    columns = crops[:, size // 2, [0, -1], 1].astype(float)
    mirrored = columns[:, 0] > columns[:, 1]
    return rows[:, 0], rows[:, 1], columns.min(1), columns.max(1), mirrored


def test_crops_have_the_areas_and_ratios_of_inception_and_half_are_mirrored(tf):
    height, width = 200, 250
    top, bottom, left, right, mirrored = windows(tf, coordinates(height, width), 2000)
    # The outermost pixels of a crop lie half a step of the resizing inside of it.
    heights = (bottom - top) * 64 / 63
    widths = (right - left) * 64 / 63
    areas = heights * widths / (height * width)
    ratios = widths / heights
    assert 0.07 < areas.min() < 0.1
    assert 0.9 < areas.max() < 1.02
    assert 0.72 < ratios.min() < 0.78
    assert 1.3 < ratios.max() < 1.4
    # Areas are even, ratios are even in their logarithm; large crops less often fit.
    small = areas[areas < 0.5]
    np.testing.assert_allclose(small.mean(), 0.29, atol=0.015)
    np.testing.assert_allclose(np.log(ratios[areas < 0.5]).mean(), 0, atol=0.02)
    assert 0.45 < mirrored.mean() < 0.55
    # Everywhere in the image, up to its edges.
    assert top.min() < 3
    assert bottom.max() > height - 4
    assert left.min() < 3
    assert right.max() > width - 4
    free = (height - heights)[areas < 0.5]
    np.testing.assert_allclose((top[areas < 0.5] / free).mean(), 0.5, atol=0.03)


def test_nothing_is_mirrored_unless_asked_for(tf):
    *_, mirrored = windows(tf, coordinates(90, 90), 50, flip=False)
    assert not mirrored.any()


@pytest.mark.parametrize(
    ("shape", "cut"), [((12, 250), (12, 16)), ((250, 12), (16, 12))]
)
def test_an_image_too_long_for_any_try_gives_its_center(tf, shape, cut):
    """Where 8 % of the area are a crop higher or wider than the image."""
    height, width = shape
    top, bottom, left, right, _ = windows(tf, coordinates(height, width), 5)
    for low, high, side, part in (
        (top, bottom, height, cut[0]),
        (left, right, width, cut[1]),
    ):
        np.testing.assert_allclose((low + high) / 2, (side - 1) / 2, atol=1.5)
        np.testing.assert_allclose(high - low, part - 1, atol=1.5)


def test_of_a_jpeg_the_crop_is_the_one_of_its_pixels(tf):
    data = encoded(photograph(120, 150))
    pixels = tf.io.decode_jpeg(data, dct_method="INTEGER_ACCURATE").numpy()
    lossless = encoded(pixels, "PNG")
    for number in range(20):
        draw = tf.constant([7, number], tf.int64)
        one, other = (
            jpeg.random_crop(file, draw, size=48, flip=True).numpy()
            for file in (data, lossless)
        )
        np.testing.assert_array_equal(one, other)


def test_a_crop_is_a_function_of_seed_and_draw(tf):
    data = encoded(picture(3))
    draws = [(0, 0), (0, 1), (1, 0), (2**32 - 1, 2**40)]
    crops = [
        jpeg.random_crop(data, tf.constant(draw, tf.int64), size=32, flip=True).numpy()
        for draw in draws * 2
    ]
    for place, crop in enumerate(crops[:4]):
        np.testing.assert_array_equal(crop, crops[place + 4])
        assert all((crop != other).any() for other in crops[:place])
