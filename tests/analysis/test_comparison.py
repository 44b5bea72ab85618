"""Which runs can be compared, and what they are called."""

import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import tiny_config

from freeadv_jax.analysis import command, comparison
from freeadv_jax.analysis.comparison import (
    first_examples,
    method_name,
    number,
    open_subjects,
    threat_text,
)
from freeadv_jax.data import jpeg
from freeadv_jax.data.encoded import EncodedImages
from freeadv_jax.data.split import Split
from freeadv_jax.errors import InputError
from freeadv_jax.files import read_json, write_json
from freeadv_jax.runs.load import load


def change_config(workdir, field, value):
    """The run says of itself that it was made so."""
    record = read_json(workdir / "run.json")
    *groups, name = field.split(".")
    part = record["config"]
    for group in groups:
        part = part[group]
    part[name] = value
    write_json(workdir / "run.json", record)


@pytest.fixture
def pair(trained_pair, tmp_path):
    return [shutil.copytree(run, tmp_path / run.name) for run in trained_pair]


def test_models_are_those_of_the_folders_and_called_by_their_methods(pair):
    subjects = open_subjects(pair)
    assert [subject.label for subject in subjects] == ["Natural", "Free-2"]
    examples = first_examples(subjects, data="", examples=20)
    images = jnp.asarray(examples.images / np.float32(255))
    jitted = jax.jit(lambda logits_fn, images: logits_fn(images))
    for subject, workdir in zip(subjects, pair):
        np.testing.assert_allclose(
            jitted(subject.logits_fn, images), load(workdir)(images), atol=1e-5
        )
    assert examples.class_names == tuple("0123456789")


def test_images_that_the_data_set_keeps_encoded_come_as_pixels(pair, monkeypatch):
    def decoder(size):
        """An image of the level that its only byte says, as TensorFlow gives it."""
        return lambda encoded: types.SimpleNamespace(
            numpy=lambda: np.full((size, size, 3), encoded[0], np.uint8)
        )

    images = EncodedImages.of([bytes([level]) for level in range(9)], size=4)
    test = Split(images, np.arange(9, dtype=np.int32))
    dataset = types.SimpleNamespace(test=test, class_names=tuple("abcdefghi"))
    monkeypatch.setattr(jpeg, "center_decoder", decoder)
    monkeypatch.setattr(comparison, "load_dataset", lambda **_: dataset)
    found = first_examples(open_subjects(pair[:1]), data="", examples=5)
    assert found.images.astype(np.float32).shape == (5, 4, 4, 3)
    assert found.images[:, 0, 0, 0].tolist() == found.labels.tolist()


def test_weights_have_the_checksum_the_evaluation_gave_them(pair):
    for subject, workdir in zip(open_subjects(pair), pair):
        with np.load(workdir / "evaluation.npz") as file:
            assert f'"model": {subject.checksum},' in str(file["about"])


def test_seeds_share_a_kind_and_other_recipes_do_not(pair, tmp_path):
    seed = shutil.copytree(pair[1], tmp_path / "seed")
    change_config(seed, "seed", 7)
    first, second = open_subjects([pair[1], seed])
    assert (first.kind, second.kind) == ("Free-2", "Free-2")
    assert (first.label, second.label) == ("Free-2, seed 0", "Free-2, seed 7")
    change_config(seed, "optimizer.learning_rate", 0.3)
    kinds = [subject.kind for subject in open_subjects([*pair, seed])]
    assert kinds == ["Natural", "Free-2, recipe 1", "Free-2, recipe 2"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("data.dir", "/data"), ("data.manual_dir", "/archives"), ("data.prefetch", 9)],
)
def test_where_and_how_data_is_read_makes_no_other_recipe(pair, tmp_path, field, value):
    seed = shutil.copytree(pair[1], tmp_path / "seed")
    change_config(seed, "seed", 7)
    change_config(seed, field, value)
    kinds = [subject.kind for subject in open_subjects([pair[1], seed])]
    assert kinds == ["Free-2", "Free-2"]


def test_runs_alike_in_all_are_told_apart_by_their_folders(pair, tmp_path):
    again = shutil.copytree(pair[0], tmp_path / "again")
    labels = [subject.label for subject in open_subjects([*pair, again])]
    assert labels == ["Natural (natural)", "Free-2", "Natural (again)"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data.name", "mnist", "different data sets: .* has digits, .* has mnist"),
        ("attack.epsilon", 0.1, "different threats: .* epsilon 0.2, .* epsilon 0.1"),
        ("attack.norm", "l2", "different threats: .* L-inf .* L2"),
    ],
)
def test_runs_of_different_sets_or_threats_are_refused(pair, field, value, message):
    change_config(pair[1], field, value)
    with pytest.raises(InputError, match=message):
        open_subjects(pair)


def test_folder_without_a_run_and_one_given_twice_are_refused(pair, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no run"):
        open_subjects([pair[0], tmp_path / "empty"])
    with pytest.raises(InputError, match="is given twice"):
        open_subjects([pair[0], pair[0]])


def test_radii_and_methods_are_written_as_people_do():
    assert [number(x) for x in (8 / 255, 0.2, 0.5, 0.0123)] == [
        "8/255",
        "0.2",
        "0.5",
        "0.0123",
    ]
    assert threat_text("l2", 0.5) == "L2 epsilon 0.5"
    names = [
        method_name(tiny_config(method=method))
        for method in ("natural", "free", "pgd", "fgsm-rs", "trades")
    ]
    assert names == ["Natural", "Free-2", "7-PGD", "FGSM-RS", "TRADES"]


def test_data_of_other_classes_than_a_run_was_trained_on_is_refused(pair):
    record = read_json(pair[1] / "run.json")
    write_json(pair[1] / "run.json", record | {"class_names": ["odd", "even"]})
    with pytest.raises(InputError, match=f"{pair[1]} was trained on odd, even"):
        first_examples(open_subjects(pair), data="", examples=5)


def test_a_bucket_is_no_file_to_write():
    with pytest.raises(InputError, match="gs://bucket/page.html is no folder of this"):
        command.Parser("a", "b").parse_args(["run", "--out=gs://bucket/page.html"])
