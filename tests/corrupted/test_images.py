"""Corruptions made of images, and folders of corrupted images."""

import hashlib
import sys

import numpy as np
import pytest
from corruption_files import stand_in, write_corruptions

from freeadv_jax.corrupted.images import (
    KINDS,
    SEVERITIES,
    MadeImages,
    StoredImages,
    check_kinds,
)
from freeadv_jax.errors import InputError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 32, 32, 3)).astype(np.uint8)
LABELS = np.arange(6, dtype=np.int32) % 3


@pytest.fixture
def library(monkeypatch):
    module = stand_in()
    monkeypatch.setitem(sys.modules, "imagecorruptions", module)
    return module


def made(images=IMAGES, seed=0):
    return MadeImages(images, LABELS, seed)


def test_there_are_fifteen_kinds_at_five_severities():
    assert len(set(KINDS)) == 15
    assert SEVERITIES == (1, 2, 3, 4, 5)


@pytest.mark.parametrize("kind", ["gaussian_noise", "impulse_noise"])
def test_a_corrupted_image_depends_on_seed_kind_severity_and_place_alone(kind, library):
    whole = made().part(kind, 2, slice(0, 6))
    assert whole.dtype == np.uint8
    np.random.seed(5)
    pieces = [made().part(kind, 2, slice(first, first + 2)) for first in (0, 2, 4)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    others = [
        made(seed=1).part(kind, 2, slice(0, 6)),
        made().part(kind, 3, slice(0, 6)),
        made().part("fog", 2, slice(0, 6)),
    ]
    for other in others:
        assert (other != whole).any()
    # Equal images at two places get noise of their own.
    twice = made(np.stack([IMAGES[0]] * 6)).part(kind, 2, slice(0, 2))
    assert (twice[0] != twice[1]).any()


def test_numpys_generator_goes_on_as_if_nothing_had_been_drawn(library):
    np.random.seed(3)
    expected = np.random.normal(size=4)
    np.random.seed(3)
    made().part("snow", 1, slice(0, 2))
    np.testing.assert_array_equal(np.random.normal(size=4), expected)


def test_floats_are_corrupted_as_the_levels_nearest_to_them(library):
    floats = (IMAGES / 255).astype(np.float32)
    np.testing.assert_array_equal(
        made(floats).part("frost", 4, slice(0, 6)),
        made().part("frost", 4, slice(0, 6)),
    )


def test_grey_images_keep_one_channel(library):
    assert made(IMAGES[..., :1]).part("fog", 1, slice(2, 5)).shape == (3, 32, 32, 1)


@pytest.mark.parametrize("shape", [(6, 31, 32, 3), (6, 32, 28, 3), (6, 32, 32, 4)])
def test_images_that_the_library_cannot_corrupt_are_refused(shape, library):
    with pytest.raises(InputError, match="made of 32 x 32 pixels or more and 1 or 3"):
        made(np.zeros(shape, np.uint8))


def test_without_the_library_the_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(InputError, match=r"pip install 'freeadv_jax\[corruptions\]'"):
        made()


@pytest.mark.corruptions
@pytest.mark.parametrize("kind", KINDS)
def test_the_library_makes_each_kind_the_same_again_and_severity_5_harder(kind):
    pytest.importorskip("imagecorruptions")
    rows, columns = np.mgrid[:32, :32]
    smooth = np.stack([rows * 4 + 60, columns * 4 + 40, rows + columns + 90], axis=-1)
    source = MadeImages(np.stack([smooth.astype(np.uint8)] * 6), LABELS, 0)
    mild, hard = (source.part(kind, severity, slice(0, 6)) for severity in (1, 5))
    assert mild.shape == hard.shape == (6, 32, 32, 3)
    np.testing.assert_array_equal(source.part(kind, 5, slice(4, 6)), hard[4:])
    changes = [np.abs(x.astype(float) - smooth).mean() for x in (mild, hard)]
    assert 0 < changes[0] < changes[1]
    assert source.about()["version"]


@pytest.mark.parametrize("labels_once", [True, False])
def test_a_folder_gives_the_images_of_a_severity(labels_once, tmp_path):
    folder = write_corruptions(tmp_path / "c", IMAGES, LABELS, labels_once=labels_once)
    source = StoredImages.open(folder)
    np.testing.assert_array_equal(source.labels, LABELS)
    assert source.labels.dtype == np.int32
    assert source.image_shape == (32, 32, 3)
    darker = np.maximum(IMAGES[2:5].astype(int) - 40 - KINDS.index("snow"), 0)
    np.testing.assert_array_equal(source.part("snow", 4, slice(2, 5)), darker)
    digest = hashlib.sha256((folder / "fog.npy").read_bytes()).hexdigest()
    assert source.about()["sha256"]["fog"] == digest
    assert list(source.about()["sha256"]) == list(KINDS)


def damage(folder, name):
    """Damage a folder and return what the line about it says."""
    fog, labels = np.load(folder / "fog.npy"), np.load(folder / "labels.npy")
    if name == "missing":
        (folder / "fog.npy").unlink()
        return "lacks fog.npy"
    if name == "code":
        np.save(folder / "fog.npy", np.array([print], object), allow_pickle=True)
        return "fog.npy cannot be read as an array of numbers"
    if name == "truncated":
        path = folder / "fog.npy"
        path.write_bytes(path.read_bytes()[:-100])
        return "fog.npy cannot be read as an array of numbers"
    if name == "text":
        (folder / "fog.npy").write_text("no numbers")
        return "fog.npy cannot be read as an array of numbers"
    if name == "floats":
        np.save(folder / "fog.npy", fog.astype(np.float32))
        return "fog.npy holds float32 [30, 32, 32, 3]: must be uint8 [5 n, "
    if name == "shape":
        np.save(folder / "fog.npy", fog[:25])
        return "fog.npy holds uint8 [25, 32, 32, 3]: must be uint8 [5 n, height"
    if name == "labels":
        labels[7] += 1
        np.save(folder / "labels.npy", labels)
        return "the labels differ from severity to severity"
    if name == "few labels":
        np.save(folder / "labels.npy", labels[:5])
        return "labels.npy: 5 labels for 30 images of a kind"
    np.save(folder / "labels.npy", labels.astype(np.float32))
    return "labels.npy holds float32 [30]: must be whole numbers"


@pytest.mark.parametrize(
    "name",
    [
        "missing",
        "code",
        "truncated",
        "text",
        "floats",
        "shape",
        "labels",
        "few labels",
        "float labels",
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(name, tmp_path):
    folder = write_corruptions(tmp_path / "c", IMAGES, LABELS)
    reason = damage(folder, name)
    with pytest.raises(InputError) as raised:
        StoredImages.open(folder)
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_unknown_kind_is_refused():
    assert check_kinds(["fog", "snow"]) == ("fog", "snow")
    with pytest.raises(
        InputError, match="kind of corruption 'fogg' is unknown; did you"
    ):
        check_kinds(["fogg"])
    with pytest.raises(InputError, match="kinds is empty: give at least one of gaussi"):
        check_kinds([])


def test_a_kind_is_taken_once_and_one_may_stand_alone():
    assert check_kinds("fog") == ("fog",)
    assert check_kinds(["fog", "snow", "fog"]) == ("fog", "snow")
