"""Errors on corrupted images in results.json: kept, continued, extended and replaced."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from corruption_files import write_corruptions

from freeadv_jax.attacks.named import attack_by_name
from freeadv_jax.corrupted.images import KINDS, StoredImages
from freeadv_jax.errors import InputError
from freeadv_jax.runs.corruption import corrupted_images, record_corruptions
from freeadv_jax.runs.results import ResultsFolder, evaluate_and_record, table

LEVELS = np.linspace(5, 250, 20).astype(int)
IMAGES = np.broadcast_to(LEVELS[:, None, None, None], (20, 4, 4, 3)).astype(np.uint8)
LABELS = (LEVELS > 127).astype(np.int32)


def logits_of(steepness, images):
    excess = steepness * (images.mean((1, 2, 3)) - 0.5)
    return jnp.stack([-excess, excess], axis=-1)


logits_fn = jax.tree_util.Partial(logits_of, jnp.float32(2.0))


class Counted:
    """Corruptions that count the images they give, and fail after so many parts."""

    def __init__(self, source, *, parts=None):
        self.labels, self.image_shape = source.labels, source.image_shape
        self.about, self._source, self._parts = source.about, source, parts
        self.given = 0

    def part(self, kind, severity, chosen):
        if self._parts == 0:
            raise KeyboardInterrupt
        self._parts = None if self._parts is None else self._parts - 1
        found = self._source.part(kind, severity, chosen)
        self.given += len(found)
        return found


@pytest.fixture
def source(tmp_path):
    return StoredImages.open(write_corruptions(tmp_path / "c", IMAGES, LABELS))


def evaluated(folder, source, *, examples=20):
    """Evaluate without an attack, and then with corruptions."""
    into = ResultsFolder(folder, {"training": {"updates": 8}})
    attack = attack_by_name(
        "natural", norm="linf", epsilon=0.1, step_size=0.1, num_classes=2
    )
    folder.mkdir(exist_ok=True)
    how = {"into": into, "batch_size": 8, "examples": examples}
    evaluate_and_record(logits_fn, IMAGES, LABELS, [attack], seed=0, **how)
    return record_corruptions(logits_fn, IMAGES, LABELS, source, **how)


def test_results_hold_the_errors_and_evaluation_the_outcomes(tmp_path, source, capsys):
    results = evaluated(tmp_path / "run", source)
    assert results == json.loads((tmp_path / "run/results.json").read_text())
    record = results["corruptions"]
    assert list(record["kinds"]) == list(KINDS)
    assert record["natural"]["correct"] == 20
    assert record["examples"] == 20
    with np.load(tmp_path / "run/evaluation.npz") as arrays:
        for kind, made in record["kinds"].items():
            for severity, row in made["severities"].items():
                found = arrays[f"corruptions/{kind}/{severity}"]
                assert found.sum() == row["correct"]
    assert f"corruptions: mean error {record['mean_error']:.2%}" in table(results)
    assert "corruptions 1500/1500 images (100%)" in capsys.readouterr().out


def test_the_same_command_again_makes_nothing_twice(tmp_path, source):
    first = evaluated(tmp_path / "run", source)
    counted = Counted(source)
    assert evaluated(tmp_path / "run", counted) == first
    assert counted.given == 0


def test_more_images_are_added_and_fewer_change_nothing(tmp_path, source):
    evaluated(tmp_path / "run", source, examples=12)
    counted = Counted(source)
    extended = evaluated(tmp_path / "run", counted, examples=20)
    assert counted.given == 75 * 8
    whole = evaluated(tmp_path / "whole", source)
    assert extended["corruptions"] == whole["corruptions"]
    assert evaluated(tmp_path / "run", source, examples=12) == extended


def test_an_interrupted_evaluation_continues(tmp_path, source, monkeypatch):
    monkeypatch.setattr("freeadv_jax.runs.outcomes.SECONDS_BETWEEN_SAVES", 0)
    with pytest.raises(KeyboardInterrupt):
        evaluated(tmp_path / "run", Counted(source, parts=30))
    assert "corruptions" not in json.loads((tmp_path / "run/results.json").read_text())
    counted = Counted(source)
    continued = evaluated(tmp_path / "run", counted)
    # The state was saved after each part or, while a save takes long, a part later.
    assert 75 * 20 - 30 * 20 <= counted.given < 75 * 20
    whole = evaluated(tmp_path / "whole", source)
    assert continued["corruptions"] == whole["corruptions"]


def test_another_source_replaces_the_outcomes(tmp_path, source, capsys):
    before = evaluated(tmp_path / "run", source)["corruptions"]
    folder = write_corruptions(tmp_path / "d", IMAGES // 2, LABELS)
    counted = Counted(StoredImages.open(folder))
    after = evaluated(tmp_path / "run", counted)["corruptions"]
    assert counted.given == 75 * 20
    assert after["images"] != before["images"]
    assert after["mean_error"] > before["mean_error"]
    assert "the outcomes of others are replaced" in capsys.readouterr().out


def test_files_of_other_images_are_refused(tmp_path):
    folder = str(write_corruptions(tmp_path / "c", IMAGES, 1 - LABELS))
    with pytest.raises(InputError, match="20 of 20 labels differ"):
        corrupted_images(IMAGES, LABELS, files=folder)
    with pytest.raises(InputError, match="32 x 32 pixels or more"):
        corrupted_images(IMAGES, LABELS, files="")


def test_fewer_images_of_another_source_lose_nothing(tmp_path, source):
    evaluated(tmp_path / "run", source)
    folder = write_corruptions(tmp_path / "d", IMAGES // 2, LABELS)
    before = (tmp_path / "run" / "evaluation.npz").read_bytes()
    with pytest.raises(InputError, match="corrupted images of another source"):
        evaluated(tmp_path / "run", StoredImages.open(folder), examples=10)
    assert (tmp_path / "run" / "evaluation.npz").read_bytes() == before
