import zlib

import numpy as np
import pytest
from image_files import encoded, number_of, picture

from freeadv_jax.data import jpeg
from freeadv_jax.data.encoded import EncodedImages
from freeadv_jax.data.split import Split
from freeadv_jax.errors import InputError

FILES = [encoded(picture(number)) for number in range(10)]


@pytest.fixture
def images():
    return EncodedImages.of(FILES, size=24)


def test_shape_type_and_slices_need_no_decoding(images, monkeypatch):
    monkeypatch.setattr(jpeg, "center_decoder", None)
    assert (len(images), images.shape, images.dtype) == (10, (10, 24, 24, 3), np.uint8)
    part = images[2:8][np.array([5, 0])]
    assert part.shape == (2, 24, 24, 3)
    assert list(part.items) == [FILES[7], FILES[2]]
    split = Split(images, np.arange(10, dtype=np.int32)).take(np.array([4, 1]))
    assert list(split.images.items) == [FILES[4], FILES[1]]
    assert EncodedImages.of([], size=24).shape == (0, 24, 24, 3)


@pytest.mark.tensorflow
def test_pixels_are_decoded_in_order_and_can_be_assigned_to_an_array(images):
    pytest.importorskip("tensorflow")
    pixels = np.asarray(images)
    assert pixels.dtype == np.uint8
    assert [number_of(image) for image in pixels] == list(range(10))
    batch = np.zeros((6, 24, 24, 3), np.uint8)
    batch[np.array([4, 1])] = images[np.array([3, 9])]
    np.testing.assert_array_equal(batch[[4, 1]], pixels[[3, 9]])
    assert not batch[[0, 2, 3, 5]].any()
    assert np.asarray(images[:2], np.float32).dtype == np.float32
    assert np.asarray(EncodedImages.of([], size=24)).shape == (0, 24, 24, 3)
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(images, copy=False)


@pytest.mark.tensorflow
def test_files_give_the_same_images_as_their_bytes(images, tmp_path):
    pytest.importorskip("tensorflow")
    paths = [tmp_path / f"{number}.jpg" for number in range(10)]
    for path, data in zip(paths, FILES):
        path.write_bytes(data)
    files = EncodedImages.of(paths, size=24)
    np.testing.assert_array_equal(np.asarray(files), np.asarray(images))
    assert files.fingerprint() == images.fingerprint()


@pytest.mark.tensorflow
def test_an_image_that_cannot_be_decoded_is_named(tmp_path):
    pytest.importorskip("tensorflow")
    half = FILES[1][: len(FILES[1]) // 2]
    images = EncodedImages.of([FILES[0], half, FILES[2]], size=24, source="a part")
    with pytest.raises(InputError, match="^an image of a part cannot be decoded$"):
        np.asarray(images[1:])
    path = tmp_path / "half.jpg"
    path.write_bytes(half)
    with pytest.raises(InputError, match=f"^{path} cannot be decoded$"):
        np.asarray(EncodedImages.of([path], size=24))


def test_the_fingerprint_is_the_checksum_of_all_contents_one_after_the_other():
    contents = [bytes([number % 256, number // 256]) for number in range(600)]
    images = EncodedImages.of(contents, size=24)
    expected = zlib.crc32((24).to_bytes(4, "little") + b"".join(contents))
    assert images.fingerprint() == expected


def test_the_fingerprint_depends_on_contents_order_and_size(images):
    prints = [
        images.fingerprint(),
        images[::-1].fingerprint(),
        images[:9].fingerprint(),
        EncodedImages(images.items, 25).fingerprint(),
        EncodedImages.of([*FILES[:9], FILES[0]], size=24).fingerprint(),
    ]
    assert len(set(prints)) == 5
    assert images.fingerprint() == EncodedImages.of(FILES, size=24).fingerprint()
