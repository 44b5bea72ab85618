"""The error on corrupted images: counted by kind and severity, and shown as a table."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest
from corruption_files import stand_in, write_corruptions

import freeadv_jax as fa
from freeadv_jax.corrupted.accuracy import _mean_error, error_table
from freeadv_jax.corrupted.images import KINDS, SEVERITIES
from freeadv_jax.errors import InputError

# Each image is of one level; class 1 is above half of white.
LEVELS = np.array([20, 60, 120, 130, 135, 145, 170, 250])
IMAGES = np.broadcast_to(LEVELS[:, None, None, None], (8, 32, 32, 3)).astype(np.uint8)
LABELS = (LEVELS > 127).astype(np.int32)


def logits_fn(images):
    excess = images.mean((1, 2, 3)) - 0.5
    return jnp.stack([-excess, excess], axis=-1)


def expected(kind, severity):
    """Return which images stay on their side after `write_corruptions`."""
    darker = np.maximum(LEVELS - 10 * severity - KINDS.index(kind), 0)
    return (darker > 127) == LABELS


@pytest.fixture
def folder(tmp_path):
    return write_corruptions(tmp_path / "c", IMAGES, LABELS)


@pytest.mark.parametrize("batch_size", [3, 200])
def test_exactly_the_images_that_cross_the_boundary_are_errors(batch_size, folder):
    result = fa.corruptions(logits_fn, files=folder, batch_size=batch_size)
    assert list(result.correct) == [(k, s) for k in KINDS for s in SEVERITIES]
    for (kind, severity), correct in result.correct.items():
        np.testing.assert_array_equal(correct, expected(kind, severity))
        row = result.record["kinds"][kind]["severities"][str(severity)]
        assert (row["correct"], row["examples"]) == (correct.sum(), 8)
        assert row["interval"][0] < row["accuracy"] < row["interval"][1]
    shares = np.stack([*result.correct.values()])
    assert 0 < result.mean_error < 1
    np.testing.assert_allclose(result.mean_error, 1 - shares.mean())
    assert result.record["natural"] is None
    assert set(result.record["images"]["sha256"]) == set(KINDS)


def test_the_interval_of_the_mean_counts_images_and_not_their_corruptions(folder):
    result = fa.corruptions(logits_fn, files=folder)
    of_images = 1 - np.stack([*result.correct.values()]).mean(axis=0)
    half = 1.959964 * of_images.std(ddof=1) / np.sqrt(8)
    low, high = result.record["interval"]
    np.testing.assert_allclose([low, high], of_images.mean() + np.array([-half, half]))


def test_the_accuracy_without_corruption_stands_beside(folder):
    result = fa.corruptions(logits_fn, IMAGES, LABELS, files=folder, kinds=["fog"])
    assert result.record["natural"]["correct"] == 8
    assert list(result.record["kinds"]) == ["fog"]
    assert len(result.correct) == 5


def test_the_table_has_the_errors_in_percent(folder):
    result = fa.corruptions(
        logits_fn, IMAGES, LABELS, files=folder, kinds=["gaussian_noise", "fog"]
    )
    low, high = result.record["interval"]
    assert str(result).splitlines() == [
        (
            f"corruptions: mean error 40.00%, 95 % interval {low:.2%} - {high:.2%}, 8 images; "
            "without corruption 0.00%"
        ),
        "error                   mean        1        2        3        4        5",
        "gaussian_noise        37.50%   25.00%   37.50%   37.50%   37.50%   50.00%",
        "fog                   42.50%   37.50%   37.50%   37.50%   50.00%   50.00%",
        "mean                  40.00%   31.25%   37.50%   37.50%   43.75%   50.00%",
    ]


def test_corruptions_are_made_of_the_images_where_no_files_are_given(monkeypatch):
    library = stand_in()
    monkeypatch.setitem(sys.modules, "imagecorruptions", library)
    lines = []
    options = {"kinds": ["snow", "fog"], "batch_size": 1, "progress": lines.append}
    result = fa.corruptions(logits_fn, IMAGES, LABELS, **options)
    assert library.calls == [
        (kind, severity)
        for kind in ("snow", "fog")
        for severity in SEVERITIES
        for _ in range(8)
    ]
    assert result.record["images"]["seed"] == 0
    assert 0 < result.mean_error < 1
    last = lines[-1]
    assert last.startswith("corruptions 80/80 images (100%)  kind fog-5  error ")
    assert "images/s" in last
    again = fa.corruptions(logits_fn, IMAGES / 255, LABELS, kinds=["snow", "fog"])
    assert again.record == result.record


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"images": None, "labels": None, "files": None}, "give images and labels, or"),
        ({"labels": 1 - LABELS}, "is not of these images: 8 of 8 labels differ"),
        ({"images": IMAGES[:, :16]}, "holds images [32, 32, 3]: must be [16, 32, 3]"),
        (
            {"images": np.tile(IMAGES, (2, 1, 1, 1)), "labels": np.tile(LABELS, 2)},
            "holds 8 images, fewer than the 16 without corruption",
        ),
        ({"labels": None}, "give images and labels, or the folder of corrupted files"),
        ({"files": "nowhere"}, "nowhere lacks gaussian_noise.npy, "),
        (
            {"logits_fn": lambda x: logits_fn(x)[:, :1]},
            "must be a logit for each class",
        ),
        (
            {"logits_fn": lambda x: logits_fn(x) / 0},
            "logits for image 0 are not finite",
        ),
        ({"kinds": ["rain"]}, "kind of corruption 'rain' is unknown"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_unusable_input_is_refused_in_one_line(change, reason, folder):
    given = {"images": IMAGES, "labels": LABELS, "files": folder} | change
    with pytest.raises(InputError) as raised:
        fa.corruptions(given.pop("logits_fn", logits_fn), **given)
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


def test_labels_that_the_model_has_no_class_for_are_refused(tmp_path):
    folder = write_corruptions(tmp_path / "c", IMAGES, LABELS + 2)
    with pytest.raises(InputError, match="labels range from 2 to 3: the model has 2"):
        fa.corruptions(logits_fn, files=folder)


def test_one_image_has_no_interval():
    record = {
        "mean_error": 0.5,
        "interval": [0.0, 1.0],
        "examples": 1,
        "natural": None,
        "kinds": {"fog": {"mean_error": 0.5, "severities": {"1": {"accuracy": 0.5}}}},
    }
    assert "95 % interval 0.00% - 100.00%, 1 images" in error_table(record)


def test_images_that_err_alike_still_have_an_interval():
    mean, (low, high) = _mean_error(np.ones((3, 50), bool))
    assert (mean, low) == (0, 0)
    assert 0.05 < high < 0.1
