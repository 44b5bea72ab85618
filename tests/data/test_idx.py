import gzip
import struct

import numpy as np
import pytest

from freeadv_jax.data.arrays import load_arrays
from freeadv_jax.errors import InputError

RNG = np.random.default_rng(1)
IMAGES = RNG.integers(0, 256, (30, 28, 28), np.uint8)
LABELS = RNG.integers(0, 10, 30, np.uint8)


def idx_bytes(array):
    header = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
    return header + array.tobytes()


CONTENTS = {
    "train-images-idx3-ubyte": idx_bytes(IMAGES[:20]),
    "train-labels-idx1-ubyte": idx_bytes(LABELS[:20]),
    "t10k-images-idx3-ubyte": idx_bytes(IMAGES[20:]),
    "t10k-labels-idx1-ubyte": idx_bytes(LABELS[20:]),
}


def write(folder, *, gz=False, dots=False, **changed):
    for name, content in CONTENTS.items():
        content = changed.get(name.replace("-", "_"), content)
        name = name.replace("-idx", ".idx") if dots else name
        if gz:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


@pytest.mark.parametrize("dots", [False, True])
@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_files_are_read_plain_and_gzipped_under_both_spellings(
    tmp_path, name, gz, dots
):
    write(tmp_path, gz=gz, dots=dots)
    loaded = load_arrays(name, tmp_path, validation_examples=0)
    np.testing.assert_array_equal(loaded.train.images[..., 0], IMAGES[:20])
    np.testing.assert_array_equal(loaded.train.labels, LABELS[:20])
    np.testing.assert_array_equal(loaded.test.images[..., 0], IMAGES[20:])
    np.testing.assert_array_equal(loaded.test.labels, LABELS[20:])
    assert loaded.image_shape == (28, 28, 1)
    assert loaded.class_names[9] == {"mnist": "9", "fashion_mnist": "Ankle boot"}[name]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "train-images-idx3-ubyte",
            idx_bytes(IMAGES[:20])[:-1],
            r" has 15,695 bytes: must have exactly 15,696 \(a header of 16 and 20 x 28 x 28 ",
        ),
        (
            "t10k-labels-idx1-ubyte",
            idx_bytes(LABELS[20:]) + b"0",
            "/t10k-labels-idx1-ubyte has 19 bytes: must have exactly 18 ",
        ),
        (
            "train-labels-idx1-ubyte",
            idx_bytes(IMAGES[:20]),
            "/train-labels-idx1-ubyte starts with bytes 00000803: must be 00000801 ",
        ),
        (
            "train-images-idx3-ubyte",
            b"",
            "/train-images-idx3-ubyte starts with bytes none: must be 00000803 ",
        ),
        (
            "train-images-idx3-ubyte",
            b"\0\0\x08\x03\0\0",
            "ubyte has 6 bytes: must have a header of 16 or more$",
        ),
        (
            "train-labels-idx1-ubyte",
            idx_bytes(LABELS[:19]),
            "ubyte with train-labels-idx1-ubyte: 20 images and 19 labels: must be ",
        ),
        (
            "t10k-labels-idx1-ubyte",
            idx_bytes(np.full(10, 10, np.uint8)),
            "ubyte: label 10 of image 0 is out of range: must be 0 to 9$",
        ),
        (
            "train-images-idx3-ubyte",
            idx_bytes(np.zeros((20, 28, 29), np.uint8)),
            "ubyte holds images of 28x29 pixels: must be 28x28$",
        ),
    ],
)
def test_a_damaged_idx_file_is_named_with_what_it_must_be(
    tmp_path, file, content, message
):
    write(tmp_path, **{file.replace("-", "_"): content})
    with pytest.raises(InputError, match=message):
        load_arrays("mnist", tmp_path, validation_examples=0)


@pytest.mark.parametrize("damage", ["cut", "no gzip", "checksum"])
def test_a_damaged_gzip_file_is_named(tmp_path, damage):
    write(tmp_path, gz=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    good = path.read_bytes()
    bad = {
        "cut": good[: len(good) // 2],
        "no gzip": b"<html>404</html>",
        "checksum": good[:-8] + b"\0\0\0\0" + good[-4:],
    }
    path.write_bytes(bad[damage])
    message = (
        r"/train-images-idx3-ubyte.gz is damaged or unreadable \(.+\): must be an "
    )
    with pytest.raises(InputError, match=message):
        load_arrays("mnist", tmp_path, validation_examples=0)


def test_a_missing_idx_file_is_named_with_all_allowed_spellings(tmp_path):
    write(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    message = (
        "^'.+' lacks t10k-labels-idx1-ubyte: must hold t10k-labels-idx1-ubyte or "
        "t10k-labels-idx1-ubyte.gz or t10k-labels.idx1-ubyte or "
        "t10k-labels.idx1-ubyte.gz$"
    )
    with pytest.raises(InputError, match=message):
        load_arrays("mnist", tmp_path, validation_examples=0)
