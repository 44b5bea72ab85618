"""Batches by Grain: the crops of tf.data's, without TensorFlow, for any processes."""

import itertools
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from image_files import (
    LABELS,
    encoded,
    number_of,
    picture,
    write_archives,
    write_folder,
)
from tiny_run import CONFIG, ROOT

from freeadv_jax.data.dataset import Dataset, load_dataset
from freeadv_jax.devices import parallel
from freeadv_jax.errors import InputError

TRAIN, VAL = 26, 9
OPTIONS = {
    "dir": "",
    "manual_dir": "",
    "validation_examples": 0,
    "pad": 0,
    "flip": True,
    "image_size": 32,
    "prefetch": 2,
    "max_corrupt": 0.01,
    "reader": "grain",
}

pytestmark = pytest.mark.grain


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    pytest.importorskip("grain")
    return write_folder(tmp_path_factory.mktemp("images"), train=TRAIN, val=VAL)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Return a data_dir with ImageNet as array_record, which the loader prepared."""
    pytest.importorskip("grain")
    pytest.importorskip("tensorflow_datasets")
    folder = tmp_path_factory.mktemp("imagenet")
    manual = write_archives(folder / "archives", train=TRAIN, val=VAL)
    load("imagenet", dir=str(folder / "tfds"), manual_dir=str(manual))
    return str(folder / "tfds")


@pytest.fixture(autouse=True)
def rows_stay_on_the_host(monkeypatch):
    """Let a batch of any size be drawn, whatever the number of devices."""
    monkeypatch.setattr(parallel, "assemble", lambda rows: rows)


def load(name, **fields):
    return load_dataset(name=name, **OPTIONS | fields)


def drawn(dataset, steps, *, first=0, batch_size=8, seed=0):
    """Return this process's rows of `steps` batches from step `first` on."""
    batches = dataset.batches(batch_size, seed=seed)(first)
    return list(itertools.islice(batches, steps))


def assert_same(ones, others):
    assert len(ones) == len(others)
    for one, other in zip(ones, others):
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["label"], other["label"])


@pytest.mark.parametrize("name", ["folder", "imagenet"])
def test_a_pass_draws_every_image_once_and_any_step_can_be_the_first(
    name, root, request
):
    directory = request.getfixturevalue("records") if name == "imagenet" else ""
    dataset = load("imagenet" if directory else f"folder:{root}", dir=directory)
    assert isinstance(dataset, Dataset)
    assert dataset.steps_per_pass(8) == 3
    batches = drawn(dataset, 6)
    found = [number_of(image) for batch in batches for image in batch["image"]]
    for numbers in (found[:24], found[24:]):
        assert len(set(numbers)) == 24
        assert set(numbers) <= set(range(TRAIN))
    labels = np.concatenate([batch["label"] for batch in batches])
    classes = LABELS if directory else range(3)
    assert labels.tolist() == [classes[number % 3] for number in found]
    assert labels.dtype == np.int32
    assert_same(drawn(dataset, 2, first=4), batches[4:])
    assert_same(drawn(dataset, 6), batches)
    (other,) = drawn(dataset, 1, seed=1)
    assert (other["image"] != batches[0]["image"]).any()


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_draw_parts_of_the_same_batches(processes, root, monkeypatch):
    dataset = load(f"folder:{root}")
    whole = drawn(dataset, 3)
    parts = []
    for index in range(processes):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        monkeypatch.setattr(jax, "process_count", lambda: processes)
        parts.append(drawn(dataset, 3))
    joined = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*parts)
    ]
    assert_same(joined, whole)


def test_test_images_are_read_when_their_pixels_are_needed(records):
    test = load("imagenet", dir=records).test
    assert [type(item).__name__ for item in test.images.items] == ["Record"] * VAL
    found = [number_of(image) for image in np.asarray(test.images)]
    assert sorted(found) == list(range(TRAIN, TRAIN + VAL))


def test_records_in_a_bucket_are_refused_with_the_reader_that_reads_them():
    with pytest.raises(
        InputError, match="is in a bucket, from which data.reader = 'tf"
    ):
        load("imagenet", dir="gs://bucket/imagenet")


def test_held_out_images_are_never_drawn(records):
    dataset = load("imagenet", dir=records, validation_examples=7)
    held = {number_of(image) for image in np.asarray(dataset.validation.images)}
    assert len(held) == 7
    (batch, second) = drawn(dataset, 2)
    found = {number_of(x) for each in (batch, second) for x in each["image"]}
    assert len(found) == 16
    assert not held & found


@pytest.mark.tensorflow
def test_tf_data_draws_the_same_crops_of_a_folder(root):
    pytest.importorskip("tensorflow")
    name = f"folder:{root}"
    ours, theirs = (drawn(load(name, reader=r), 5) for r in ("grain", "tf.data"))
    for one, other in zip(ours, theirs):
        np.testing.assert_array_equal(one["label"], other["label"])
        apart = one["image"].astype(int) - other["image"]
        assert np.abs(apart).max() <= 4
        assert np.abs(apart).mean() < 0.3


def test_a_damaged_image_met_while_training_is_one_line(root, tmp_path):
    folder = write_folder(tmp_path / "images", train=TRAIN, val=VAL)
    dataset = load(f"folder:{folder}")
    for path in (folder / "train").glob("*/*"):
        path.write_bytes(encoded(picture(0))[:100])
    with pytest.raises(InputError, match="training images cannot be read") as raised:
        drawn(dataset, 1)
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="26 of 26 images are damaged"):
        load(f"folder:{folder}")


TRAINING = """
import sys

sys.modules["tensorflow"] = None  # As if it were not installed.
from freeadv_jax.main import main

main(sys.argv)
"""


def test_a_folder_trains_and_is_evaluated_without_tensorflow(root, tmp_path):
    options = {
        "config.data.name": f"folder:{root}",
        "config.data.reader": "grain",
        "config.data.image_size": 16,
        "config.model.name": "small-cnn",
        "config.batch_size": 8,
        "config.updates": 16,
        "config.data.validation_examples": 0,
        "config.evaluation.attacks": "natural",
    }
    command = [sys.executable, "-c", TRAINING, f"--config={CONFIG}"]
    command += [f"--workdir={tmp_path / 'run'}"]
    command += [f"--{name}={value}" for name, value in options.items()]
    ended = subprocess.run(
        command, check=False, cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["evaluation"]["natural"]["examples"] == VAL
    assert results["training"]["updates"] == 16
