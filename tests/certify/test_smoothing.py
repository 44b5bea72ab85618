"""Randomised smoothing against the closed form on a linear model, and its files."""

import json
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from freeadv_jax import progress
from freeadv_jax.certify import smooth
from freeadv_jax.certify.smoothing import ABSTAINED
from freeadv_jax.errors import InputError

SHAPE = (5, 4, 3)
WEIGHTS = np.random.default_rng(0).normal(size=60).astype(np.float32)
IMAGES = np.random.default_rng(1).uniform(0.3, 0.7, (6, *SHAPE)).astype(np.float32)
CALL = {"sigma": 0.25, "samples": 2000, "batch_size": 500}


def two_sides(images):
    """Return logits 0 and the signed distance from a plane through (0.5, ..., 0.5)."""
    lead = (images - 0.5).reshape(len(images), -1) @ (WEIGHTS / np.linalg.norm(WEIGHTS))
    return jnp.stack([jnp.zeros_like(lead), lead], axis=-1)


def distances():
    flat = (IMAGES.astype(np.float64) - 0.5).reshape(6, -1)
    return flat @ (WEIGHTS / np.linalg.norm(WEIGHTS.astype(np.float64)))


def labels():
    return (distances() > 0).astype(np.int32)


@pytest.fixture(scope="module")
def smoothed():
    return smooth(two_sides, IMAGES, labels(), sigma=0.25, samples=20_000)


def test_radius_of_a_linear_model_is_just_below_its_distance(smoothed):
    """The probability of the class is that of the distance over sigma, so the radius is
    the distance but for the bound's allowance.
    """
    distance = np.abs(distances())
    p = norm.cdf(distance / 0.25)
    # Four standard errors of the share, and three for the confidence of 0.999.
    error = np.sqrt(p * (1 - p) / 20_000)
    lowest = 0.25 * norm.ppf(p - 8 * error)
    decided = smoothed.classes != ABSTAINED
    assert decided.sum() >= 4
    assert (smoothed.radii <= distance)[decided].all()
    assert (smoothed.radii >= lowest)[decided].all()
    assert (p < 0.53)[~decided].all()
    np.testing.assert_array_equal(smoothed.success, smoothed.classes == labels())
    assert smoothed.success[decided].all()


def test_votes_are_a_share_with_the_closed_forms_probability(smoothed):
    p = norm.cdf(np.abs(distances()) / 0.25)
    error = np.sqrt(p * (1 - p) / 20_000)
    decided = smoothed.classes != ABSTAINED
    apart = np.abs(smoothed.votes / 20_000 - p)
    np.testing.assert_array_less(apart[decided], 4.5 * error[decided])


def test_certified_accuracy_falls_with_the_radius(smoothed):
    radii = np.sort(smoothed.radii[smoothed.success])
    assert smoothed.certified_accuracy(0) == smoothed.success.mean()
    assert smoothed.certified_accuracy(radii[-1]) == 1 / 6
    assert smoothed.certified_accuracy(radii[-1] + 1e-6) == 0


def test_an_image_on_the_boundary_is_abstained_from():
    images = np.full((1, *SHAPE), 0.5, np.float32)
    found = smooth(two_sides, images, [1], **CALL)
    assert (found.classes[0], found.radii[0], found.success[0]) == (ABSTAINED, 0, False)


def test_bytes_are_their_pixels_and_another_batch_size_changes_nothing():
    images = np.uint8(np.round(255 * IMAGES[:2]))
    of_bytes = smooth(two_sides, images, labels()[:2], **CALL)
    call = CALL | {"batch_size": 333}
    of_floats = smooth(two_sides, images / np.float32(255), labels()[:2], **call)
    np.testing.assert_array_equal(of_bytes.votes, of_floats.votes)
    other = smooth(two_sides, images, labels()[:2], **CALL, seed=1)
    assert (other.votes != of_bytes.votes).any()


def test_a_killed_call_goes_on_where_it_was(tmp_path):
    class Killed(Exception):
        pass

    def kill(line):
        if "2/3" in line:
            raise Killed

    images, truth, file = IMAGES[:3], labels()[:3], tmp_path / "counts.json"
    whole = smooth(two_sides, images, truth, **CALL)
    with pytest.raises(Killed):
        _smooth_watched(images, truth, file, kill)
    # The second image was under way.
    kept = json.loads(file.read_text())
    assert kept["votes"] == whole.votes[:1].tolist()
    lines = []
    again = _smooth_watched(images, truth, file, lines.append)
    assert "1/3" in lines[0]
    assert "3/3" in lines[-1]
    for wanted, found in zip(whole, again, strict=True):
        np.testing.assert_array_equal(found, wanted)


def _smooth_watched(images, truth, file, watch):
    """Smooth with a line at every image, whatever the time since the last one."""
    clock = iter(range(0, 10**9, 60))
    with mock.patch.object(progress.time, "perf_counter", lambda: float(next(clock))):
        return smooth(two_sides, images, truth, **CALL, save=file, progress=watch)


def test_a_file_of_another_call_is_refused(tmp_path):
    file = tmp_path / "counts.json"
    smooth(two_sides, IMAGES[:1], labels()[:1], **CALL, save=file)
    before = file.read_bytes()
    with pytest.raises(InputError, match=r"counts.json is of another call .*sigma"):
        call = CALL | {"sigma": 0.5}
        smooth(two_sides, IMAGES[:1], labels()[:1], **call, save=file)
    with pytest.raises(InputError, match=r"is of another call .*images"):
        smooth(two_sides, IMAGES[1:2], labels()[1:2], **CALL, save=file)
    assert file.read_bytes() == before
    file.write_text('{"settings": {}, "classes": [0], "votes": ["x"]}')
    with pytest.raises(InputError, match="is damaged: it holds no counts"):
        smooth(two_sides, IMAGES[:1], labels()[:1], **CALL, save=file)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"sigma": 0}, r"sigma = 0: must be above 0, in \[0, 1\] pixels"),
        ({"alpha": 1}, "alpha = 1: must be a probability above 0 and below 1"),
        ({"samples": 0}, "samples = 0: must be a whole number, 1 or more"),
        ({"selection": -2}, "selection = -2: must be a whole number, 1 or more"),
        ({"batch_size": 0}, "batch_size = 0: must be a whole number, 1 or more"),
    ],
)
def test_bad_numbers_are_refused_in_one_line(fields, says):
    with pytest.raises(InputError, match=says):
        smooth(two_sides, IMAGES[:1], labels()[:1], **CALL | fields)


def test_logits_that_noise_makes_infinite_are_refused():
    def fragile(images):
        return jnp.log(images).reshape(len(images), -1)[:, :3]

    with pytest.raises(InputError, match="logits of noisy images are not finite"):
        smooth(fragile, IMAGES[:1], [0], **CALL)
