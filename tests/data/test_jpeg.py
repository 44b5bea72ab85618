import io
import struct

import numpy as np
import pytest
from image_files import encoded, imagenette, picture
from PIL import Image

from freeadv_jax.data import jpeg, pillow

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def tf():
    return pytest.importorskip("tensorflow")


def photograph(height, width):
    """Return an image with detail at every scale, as in a photograph."""
    rng = np.random.default_rng(height * width)
    sum_ = np.zeros((height, width, 3))
    for size in (4, 16, 64):
        noise = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
        grown = Image.fromarray(noise).resize((width, height), Image.BICUBIC)
        sum_ += np.asarray(grown, float)
    return (sum_ / 3).round().astype(np.uint8)


def by_pillow(data, size):
    """Return the pixels that torchvision gives for Resize(256/224 size) and
    CenterCrop(size).
    """
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
def test_center_crops_have_the_pixels_of_pillow(tf, shape, size):
    data = encoded(photograph(*shape), subsampling=2)
    pixels = decoded(data, size)
    assert pixels.shape == (size, size, 3)
    assert pixels.dtype == np.uint8
    difference = np.abs(pixels.astype(int) - by_pillow(data, size))
    assert difference.max() <= 2
    assert difference.mean() < 0.3


def test_center_crops_of_photographs_have_the_pixels_of_pillow(tf):
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


COLORED = Image.fromarray(photograph(50, 60))


def translucent():
    """Return a picture whose alpha runs from transparent to opaque."""
    image = COLORED.copy()
    ramp = np.linspace(0, 255, 60).round().astype(np.uint8)
    image.putalpha(Image.fromarray(np.tile(ramp, (50, 1))))
    return image


def palette(colors, image=COLORED):
    return image.convert("P", palette=Image.Palette.ADAPTIVE, colors=colors)


def file_of(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def turned():
    """Return EXIF data that ask for a quarter turn."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def bitmap(bits, pixels, *, colors=b"", compression=0):
    """Return a BMP of 60x50 pixels of a kind that Pillow cannot write."""
    start = 54 + len(colors)
    header = struct.pack("<IiiHHI", 40, 60, 50, 1, bits, compression)
    header += struct.pack("<IiiII", len(pixels), 2835, 2835, 0, 0)
    head = b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start)
    return head + header + colors + pixels


def bitmap_of_32_bits():
    """Return a BMP as of a screenshot: the fourth byte of a pixel is 0 and no alpha."""
    pixels = np.asarray(COLORED)[::-1, :, ::-1]
    return bitmap(32, np.pad(pixels, ((0, 0), (0, 0), (0, 1))).tobytes())


def bitmap_of_16_bits():
    red, green, blue = (np.asarray(COLORED)[::-1].astype(int) >> 3).transpose(2, 0, 1)
    return bitmap(16, (red << 10 | green << 5 | blue).astype("<u2").tobytes())


def bitmap_of_4_bits():
    image = palette(16)
    rows = np.asarray(image)[::-1].astype(np.uint8)
    pixels = np.pad(rows[:, ::2] << 4 | rows[:, 1::2], ((0, 0), (0, 2)))
    colors = np.zeros((16, 4), np.uint8)
    given = np.array(image.getpalette(), np.uint8).reshape(-1, 3)[:16, ::-1]
    colors[: len(given), :3] = given
    return bitmap(4, pixels.tobytes(), colors=colors.tobytes())


def bitmap_of_runs():
    """Return a run-length encoded BMP: each row is ten runs of six pixels."""
    rows = b"".join(
        b"".join(bytes([6, (row + 10 * run) % 256]) for run in range(10)) + b"\0\0"
        for row in range(50)
    )
    grays = b"".join(bytes([value, value, value, 0]) for value in range(256))
    return bitmap(8, rows + b"\0\1", colors=grays, compression=1)


def inks():
    pixels = np.random.default_rng(2).integers(0, 256, (50, 60, 4), np.uint8)
    return Image.fromarray(pixels, "CMYK")


KINDS = {
    "JPEG": lambda: file_of(COLORED, "JPEG", subsampling=2),
    "JPEG, progressive": lambda: file_of(COLORED, "JPEG", progressive=True),
    "JPEG, gray": lambda: file_of(COLORED.convert("L"), "JPEG"),
    "JPEG, CMYK": lambda: file_of(inks(), "JPEG"),
    "JPEG, to be turned": lambda: file_of(COLORED, "JPEG", exif=turned()),
    "PNG": lambda: file_of(COLORED, "PNG"),
    "PNG, gray": lambda: file_of(COLORED.convert("L"), "PNG"),
    "PNG, 1 bit": lambda: file_of(COLORED.convert("1"), "PNG"),
    "PNG, palette": lambda: file_of(palette(256), "PNG"),
    "PNG, palette of 2 bits": lambda: file_of(palette(4), "PNG", bits=2),
    "PNG, palette with alpha": lambda: file_of(
        palette(16), "PNG", transparency=bytes(range(0, 160, 10))
    ),
    "PNG, alpha": lambda: file_of(translucent(), "PNG"),
    "PNG, gray with alpha": lambda: file_of(translucent().convert("LA"), "PNG"),
    "PNG, transparent color": lambda: file_of(
        COLORED, "PNG", transparency=COLORED.getpixel((3, 3))
    ),
    "PNG, to be turned": lambda: file_of(COLORED, "PNG", exif=turned()),
    "PNG, animated": lambda: file_of(
        COLORED, "PNG", save_all=True, append_images=[Image.new("RGB", (60, 50))]
    ),
    "GIF": lambda: file_of(palette(256), "GIF"),
    "GIF, gray": lambda: file_of(COLORED.convert("L"), "GIF"),
    "GIF, transparent color": lambda: file_of(palette(16), "GIF", transparency=3),
    "BMP, 24 bit": lambda: file_of(COLORED, "BMP"),
    "BMP, 24 bit and padding": lambda: file_of(COLORED, "BMP") + b"\0\0",
    "BMP, gray": lambda: file_of(COLORED.convert("L"), "BMP"),
    "BMP, palette": lambda: file_of(palette(64), "BMP"),
    "BMP, 1 bit": lambda: file_of(COLORED.convert("1"), "BMP"),
    "BMP, 4 bit": bitmap_of_4_bits,
    "BMP, 16 bit": bitmap_of_16_bits,
    "BMP, 32 bit": bitmap_of_32_bits,
    "BMP, alpha": lambda: file_of(translucent(), "BMP"),
    "BMP, runs": bitmap_of_runs,
    "WebP": lambda: file_of(COLORED, "WEBP"),
    "WebP, lossless": lambda: file_of(COLORED, "WEBP", lossless=True),
    "WebP, alpha": lambda: file_of(translucent(), "WEBP"),
    "WebP, lossless with alpha": lambda: file_of(translucent(), "WEBP", lossless=True),
    "WebP, to be turned": lambda: file_of(COLORED, "WEBP", exif=turned()),
    "WebP, animated": lambda: file_of(
        COLORED, "WEBP", save_all=True, append_images=[Image.new("RGB", (60, 50))]
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_has_the_pixels_of_pillow(tf, kind):
    data = KINDS[kind]()
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert expected.shape == (50, 60, 3)
    np.testing.assert_array_equal(jpeg.whole_decoder()(data), expected)
    # Training sees the same pixels: those of a lossless copy, cropped alike. Within a
    # crop alone, the subsampled color of a JPEG is interpolated without its neighbors.
    copy = file_of(Image.fromarray(expected), "PNG")
    tolerance = 6 if kind in ("JPEG", "JPEG, progressive", "JPEG, to be turned") else 0
    for number in range(3):
        one, other = (
            jpeg.random_crop(file, tf.constant([5, number], tf.int64), **CROP)
            for file in (data, copy)
        )
        difference = np.abs(one.numpy().astype(int) - other.numpy())
        assert difference.max() <= tolerance
        assert difference.mean() < 0.2
    np.testing.assert_array_equal(decoded(data, 32), decoded(copy, 32))


CROP = {"size": 32, "flip": True}


def test_gray_of_16_bits_keeps_its_upper_8(tf):
    gray = np.asarray(COLORED.convert("L"))
    wide = Image.fromarray(gray.astype(np.uint16) << 8 | 77)
    for codec in (jpeg, pillow):
        pixels = codec.whole_decoder()(file_of(wide, "PNG"))
        np.testing.assert_array_equal(pixels, np.repeat(gray[..., None], 3, axis=-1))


@pytest.mark.parametrize("kind", KINDS)
def test_without_tensorflow_the_same_crops_differ_by_rounding(tf, kind):
    data = KINDS[kind]()
    np.testing.assert_array_equal(
        jpeg.whole_decoder()(data), pillow.whole_decoder()(data)
    )
    apart = [decoded(data, 32).astype(int) - pillow.center_decoder(32)(data)]
    for number in range(20):
        crop = jpeg.random_crop(data, tf.constant([5, number], tf.int64), **CROP)
        apart.append(
            crop.numpy().astype(int) - pillow.random_crop(data, (5, number), **CROP)
        )
    # Within a crop alone, TensorFlow interpolates a JPEG's color without its neighbors.
    assert np.abs(apart).max() <= (20 if kind.startswith("JPEG") else 2)
    assert np.abs(apart).mean() < 0.3


@pytest.mark.parametrize("kind", ["JPEG, CMYK", "PNG", "GIF", "BMP, runs", "WebP"])
@pytest.mark.parametrize("part", [0, 0.02, 0.5])
def test_a_damaged_image_is_an_error_that_callers_expect(tf, kind, part):
    data = KINDS[kind]()
    data = data[: int(part * len(data))]
    with pytest.raises(jpeg.undecodable()):
        jpeg.whole_decoder()(data)
    with pytest.raises(jpeg.undecodable()):
        jpeg.random_crop(data, tf.constant([0, 1], tf.int64), **CROP)


def test_other_formats_are_not_guessed_by_their_contents(tf):
    with pytest.raises(jpeg.undecodable(), match="cannot identify image file"):
        jpeg.whole_decoder()(file_of(COLORED, "TIFF"))


def test_the_first_frame_of_several_is_taken(tf):
    frames = [Image.new("RGB", (40, 40), color) for color in ("red", "blue")]
    file = file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decoded(file, 32) == (255, 0, 0)).all()


def coordinates(height, width):
    """Return a lossless image whose pixels hold their own row and column."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows, columns, 255 * (rows + columns >= 0)], axis=-1)
    return encoded(pixels.astype(np.uint8), "PNG")


def windows(tf, data, number, size=64, flip=True):
    """Return (top, bottom, left, right, mirrored) of crops, to about half a pixel."""
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
    # The outermost pixels of a crop are half a step of the resizing inside of it.
    heights = (bottom - top) * 64 / 63
    widths = (right - left) * 64 / 63
    areas = heights * widths / (height * width)
    ratios = widths / heights
    assert 0.07 < areas.min() < 0.1
    assert 0.9 < areas.max() < 1.02
    assert 0.72 < ratios.min() < 0.78
    assert 1.3 < ratios.max() < 1.4
    # Areas are uniform, and so are the logarithms of ratios; large crops fit less often.
    small = areas[areas < 0.5]
    np.testing.assert_allclose(small.mean(), 0.29, atol=0.015)
    np.testing.assert_allclose(np.log(ratios[areas < 0.5]).mean(), 0, atol=0.02)
    assert 0.45 < mirrored.mean() < 0.55
    # Crops reach every part of the image, up to its edges.
    assert top.min() < 3
    assert bottom.max() > height - 4
    assert left.min() < 3
    assert right.max() > width - 4
    free = (height - heights)[areas < 0.5]
    np.testing.assert_allclose((top[areas < 0.5] / free).mean(), 0.5, atol=0.03)


def test_nothing_is_mirrored_without_flip(tf):
    *_, mirrored = windows(tf, coordinates(90, 90), 50, flip=False)
    assert not mirrored.any()


@pytest.mark.parametrize(
    ("shape", "cut"), [((12, 250), (12, 16)), ((250, 12), (16, 12))]
)
def test_a_very_long_image_gives_its_center(tf, shape, cut):
    """A crop of 8 % of the area would be higher or wider than such an image."""
    height, width = shape
    top, bottom, left, right, _ = windows(tf, coordinates(height, width), 5)
    for low, high, side, part in (
        (top, bottom, height, cut[0]),
        (left, right, width, cut[1]),
    ):
        np.testing.assert_allclose((low + high) / 2, (side - 1) / 2, atol=1.5)
        np.testing.assert_allclose(high - low, part - 1, atol=1.5)


def test_a_crop_of_a_jpeg_equals_the_crop_of_its_pixels(tf):
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
