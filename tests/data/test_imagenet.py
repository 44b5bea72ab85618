"""ImageNet is read through tensorflow-datasets, from archives of the official form."""

import itertools
import shutil
import sys

import jax
import numpy as np
import pytest
from image_files import (
    LABELS,
    archive_photographs,
    encoded,
    imagenette,
    number_of,
    picture,
    write_archives,
)
from tiny_run import run_main
from two_processes import assert_same_training, run_two

from freeadv_jax.data import jpeg
from freeadv_jax.data.dataset import Dataset, load_dataset
from freeadv_jax.data.encoded import EncodedImages
from freeadv_jax.data.imagenet import EXAMPLES, load_imagenet
from freeadv_jax.devices import parallel
from freeadv_jax.errors import InputError

TRAIN, VAL = 50, 10
OPTIONS = {
    "name": "imagenet",
    "manual_dir": "",
    "validation_examples": 0,
    "pad": 0,
    "flip": True,
    "image_size": 32,
    "prefetch": 2,
    "max_corrupt": 0.01,
}


ASSEMBLE = parallel.assemble


def load(directory, **fields):
    return load_dataset(dir=str(directory), **OPTIONS | fields)


@pytest.fixture(scope="module")
def tfds():
    pytest.importorskip("tensorflow")
    pytest.importorskip("importlib_resources")
    return pytest.importorskip("tensorflow_datasets")


@pytest.fixture(scope="module")
def prepared(tfds, tmp_path_factory):
    """Return a data_dir in which the loader itself prepared the set."""
    folder = tmp_path_factory.mktemp("imagenet")
    manual = write_archives(folder / "archives", train=TRAIN, val=VAL)
    load(folder / "tfds", manual_dir=str(manual))
    return folder / "tfds"


@pytest.fixture(autouse=True)
def rows_stay_on_the_host(monkeypatch):
    """Let a batch of any size be drawn, whatever the number of devices."""
    monkeypatch.setattr(parallel, "assemble", lambda rows: rows)


def drawn(dataset, steps, *, first=0, batch_size=8, seed=0):
    """Return this process's rows of `steps` batches from step `first` on."""
    batches = dataset.batches(batch_size, seed=seed)(first)
    return list(itertools.islice(batches, steps))


def numbers(batches):
    return [number_of(image) for batch in batches for image in batch["image"]]


def assert_same(ones, others):
    assert len(ones) == len(others)
    for one, other in zip(ones, others):
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["label"], other["label"])


def one_process_of(monkeypatch, index, count):
    """Let this process be number `index` of `count`."""
    monkeypatch.setattr(jax, "process_index", lambda: index)
    monkeypatch.setattr(jax, "process_count", lambda: count)


@pytest.mark.tensorflow
def test_the_prepared_set_has_every_image_with_its_label(prepared, caplog):
    dataset = load(prepared)
    assert isinstance(dataset, Dataset)
    assert (dataset.name, dataset.image_shape) == ("imagenet", (32, 32, 3))
    assert len(dataset.class_names) == 1000
    assert [dataset.class_names[label] for label in LABELS] == [
        "n01440764",
        "n02102040",
        "n03888257",
    ]
    assert isinstance(dataset.test.images, EncodedImages)
    assert dataset.test.images.shape == (VAL, 32, 32, 3)
    found = [number_of(image) for image in np.asarray(dataset.test.images)]
    assert sorted(found) == list(range(TRAIN, TRAIN + VAL))
    # The first labels of ILSVRC 2012's validation images, in the order of their names.
    official = [65, 970, 230, 809, 516, 57, 334, 415, 674, 332]
    expected = [official[number - TRAIN] for number in found]
    np.testing.assert_array_equal(dataset.test.labels, expected)
    stored = [
        number_of(image) for image in np.asarray(dataset._read("validation").images)
    ]
    order = np.random.default_rng(0).permutation(VAL)
    assert found == [stored[place] for place in order]
    messages = " ".join(record.getMessage() for record in caplog.records)
    assert (
        "50 images in its part train; the whole of ImageNet has 1,281,167" in messages
    )


@pytest.mark.tensorflow
def test_a_pass_draws_every_image_once_and_with_its_label(prepared):
    dataset = load(prepared)
    for batch_size in (8, 10, 5):  # Batches from 8, 2 and 1 shards.
        steps = dataset.steps_per_pass(batch_size)
        assert steps == TRAIN // batch_size
        both = [
            drawn(dataset, steps, first=first, batch_size=batch_size)
            for first in (0, steps)
        ]
        for batches in both:
            found = numbers(batches)
            assert len(set(found)) == len(found) == steps * batch_size
            assert set(found) <= set(range(TRAIN))
            labels = np.concatenate([batch["label"] for batch in batches])
            np.testing.assert_array_equal(labels, [LABELS[n % 3] for n in found])
            assert labels.dtype == np.int32
            assert batches[0]["image"].dtype == np.uint8
        assert numbers(both[0]) != numbers(both[1])


@pytest.mark.tensorflow
def test_held_out_images_are_never_drawn(prepared):
    dataset = load(prepared, validation_examples=10)
    held = {number_of(image) for image in np.asarray(dataset.validation.images)}
    assert len(held) == len(dataset.validation.labels) == 10
    found = numbers(drawn(dataset, dataset.steps_per_pass(8)))
    assert len(set(found)) == 40
    assert held | set(found) == set(range(TRAIN))
    assert len(load(prepared).validation.labels) == 0


@pytest.mark.tensorflow
@pytest.mark.parametrize(("count", "batch_size"), [(2, 8), (4, 8), (2, 10), (4, 12)])
def test_processes_together_draw_the_batches_of_one_process(
    prepared, monkeypatch, count, batch_size
):
    """A batch of 8 comes from 8 shards, one of 10 from 2, one of 12 from 4."""
    dataset = load(prepared)
    alone = drawn(dataset, 7, batch_size=batch_size)
    parts = []
    for index in range(count):
        with monkeypatch.context() as process:
            one_process_of(process, index, count)
            parts.append(drawn(dataset, 7, batch_size=batch_size))
            assert len(parts[-1][0]["label"]) == batch_size // count
    together = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*parts)
    ]
    assert_same(together, alone)


@pytest.mark.tensorflow
@pytest.mark.parametrize("index", range(3))
def test_a_shard_may_be_shared_by_processes(prepared, monkeypatch, index):
    """A batch of 9 for three processes comes from one shard, three rows each."""
    dataset = load(prepared)
    alone = drawn(dataset, 6, batch_size=9)
    one_process_of(monkeypatch, index, 3)
    own = slice(3 * index, 3 * index + 3)
    expected = [{name: batch[name][own] for name in batch} for batch in alone]
    assert_same(drawn(dataset, 6, batch_size=9), expected)


@pytest.mark.tensorflow
@pytest.mark.parametrize("first", [1, 5, 6, 11])
def test_a_resumed_run_gets_the_same_batches_and_decodes_no_earlier_ones(
    prepared, monkeypatch, first
):
    dataset = load(prepared)  # Six steps a pass.
    whole = drawn(dataset, first + 3)
    import tensorflow as tf

    decoded = []

    def counted(encoded, seed, **options):
        count = tf.numpy_function(lambda draw: decoded.append(int(draw)), [seed[1]], [])
        with tf.control_dependencies([count]):
            return crop(tf.identity(encoded), seed, **options)

    crop = jpeg.random_crop
    monkeypatch.setattr(jpeg, "random_crop", counted)
    assert_same(drawn(dataset, 3, first=first), whole[first:])
    assert set(range(8 * first, 8 * (first + 3))) <= set(decoded)
    assert min(decoded) == 8 * first
    assert len(set(decoded)) == len(decoded)


@pytest.mark.tensorflow
def test_another_seed_draws_other_images_and_other_crops(prepared):
    dataset = load(prepared)
    one, other = (drawn(dataset, 6, seed=seed) for seed in (0, 1))
    assert numbers(one) != numbers(other)
    by_number = [dict(zip(numbers(run), _images(run))) for run in (one, other)]
    both = by_number[0].keys() & by_number[1].keys()
    assert len(both) > 30
    assert all((by_number[0][n] != by_number[1][n]).any() for n in both)
    assert_same(one, drawn(dataset, 6, seed=0))


def _images(batches):
    return [image for batch in batches for image in batch["image"]]


@pytest.mark.tensorflow
def test_batches_are_split_over_the_devices_and_made_in_advance(prepared, monkeypatch):
    made = []

    def counted(rows):
        made.append(rows)
        return ASSEMBLE(rows)

    monkeypatch.setattr(parallel, "assemble", counted)
    batches = load(prepared, prefetch=3).batches(16, seed=0)(0)
    for step in range(1, 4):
        batch = next(batches)
        assert len(made) == step + 3
    assert len(batch["image"].addressable_shards) == 8
    assert batch["image"].addressable_shards[0].data.shape == (2, 32, 32, 3)


@pytest.mark.tensorflow
def test_photographs_in_archives_are_drawn_once_a_pass_by_two_processes(
    tfds, tmp_path, monkeypatch
):
    """Every photograph keeps its label, and every pass draws each of them once."""
    folder = imagenette()
    if folder is None:
        pytest.skip("FREEADV_IMAGENETTE names no folder of photographs")
    manual = archive_photographs(tmp_path / "archives", folder)
    dataset = load(tmp_path / "tfds", manual_dir=str(manual), image_size=64)
    files = {path.name: list(path.iterdir()) for path in folder.glob("train/*")}
    stored = {
        row["file_name"].decode(): row
        for row in dataset._encoded("train").as_numpy_iterator()
    }
    for wnid, paths in files.items():
        for path in paths:
            row = stored.pop(path.name)
            assert dataset.class_names[row["label"]] == wnid
            assert row["image"] == path.read_bytes()
    assert not stored
    assert len(dataset.test.labels) == len(list(folder.glob("val/*/*")))

    def crop(encoded, draw, **options):
        """Return a checksum in place of pixels: it identifies the image."""
        return tf.strings.to_hash_bucket_fast(encoded, 2**62)

    import tensorflow as tf

    monkeypatch.setattr(jpeg, "random_crop", crop)
    steps = dataset.steps_per_pass(32)
    passes = []
    for index in range(2):
        with monkeypatch.context() as process:
            one_process_of(process, index, 2)
            passes.append(drawn(dataset, 2 * steps, batch_size=32))
    for half in (slice(steps), slice(steps, 2 * steps)):
        drawn_by = [[batch["image"] for batch in part[half]] for part in passes]
        found = np.concatenate(drawn_by, axis=None)
        assert len(np.unique(found)) == len(found) == 32 * steps
    first, second = (
        np.concatenate([batch["image"] for batch in passes[0][half]])
        for half in (slice(steps), slice(steps, 2 * steps))
    )
    assert np.mean(first == second) < 0.1


@pytest.mark.thorough
@pytest.mark.tensorflow
def test_two_processes_train_on_imagenet_like_one(prepared, tmp_path):
    fields = {
        # The pictures are of one color, so the signs of their gradients would be chance.
        "method": "natural",
        "updates": 12,  # Two passes of six minibatches.
        "batch_size": 8,
        "data__name": "imagenet",
        "data__dir": str(prepared),
        "data__image_size": 32,
        "data__validation_examples": 0,
        # A small rate, so that a unit that rounding moves across ReLU's kink does not show
        # in later updates. BatchNorm's averages would show other images.
        "optimizer__learning_rate": 1e-5,
        "attack__epsilon": 4 / 255,
        "attack__step_size": 4 / 255,
        "evaluation__examples": 0,
    }
    one, two = tmp_path / "one", tmp_path / "two"
    alone = run_main(one, devices=8, **fields)
    assert alone.returncode == 0, alone.stderr
    outcomes = run_two(two, **fields)
    assert [status for status, *_ in outcomes] == [0, 0], outcomes
    assert_same_training(one, two, tolerance=1e-5)
    ours, expected = (np.load(folder / "evaluation.npz") for folder in (two, one))
    assert len(ours["label"]) == VAL
    for attack in ("natural", "pgd-20"):
        np.testing.assert_array_equal(ours[attack], expected[attack])


@pytest.mark.tensorflow
def test_a_mocked_set_has_the_sizes_of_imagenet(tfds, tmp_path):
    """mock_data returns 20 random images for any part, and knows no sizes."""
    for archive in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"):
        (tmp_path / archive).touch()
    with tfds.testing.mock_data(num_examples=20, data_dir=str(tmp_path / "mock")):
        dataset = load(tmp_path, manual_dir=str(tmp_path))
        assert dataset.steps_per_pass(256) == 5004 == EXAMPLES["train"] // 256
        batch = drawn(dataset, 1)[0]
        assert batch["image"].shape == (8, 32, 32, 3)
        assert dataset.test.images.shape == (20, 32, 32, 3)


def message_of(*arguments, **fields):
    with pytest.raises(InputError) as raised:
        load(*arguments, **fields)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_without_tensorflow_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    message = message_of("")
    needed = "needs TensorFlow, tensorflow-datasets and Pillow ("
    assert message.startswith(f"'imagenet' {needed}")
    assert message.endswith("pip install 'freeadv_jax[imagenet]'")


@pytest.mark.tensorflow
def test_an_unprepared_set_is_answered_with_the_steps_to_prepare_it(tfds, tmp_path):
    message = message_of(tmp_path)
    assert message == (
        f"'imagenet' is not prepared in {tmp_path}/imagenet2012/5.1.0: register at "
        "https://image-net.org/download-images, download ILSVRC2012_img_train.tar and "
        "ILSVRC2012_img_val.tar (145 GB) into one folder, and give that folder once, to a "
        "single process, as --config.data.manual_dir=FOLDER"
    )
    (tmp_path / "ILSVRC2012_img_val.tar").touch()
    message = message_of(tmp_path, manual_dir=str(tmp_path))
    assert f"data.manual_dir = '{tmp_path}' lacks ILSVRC2012_img_train.tar: " in message
    message = message_of(tmp_path, manual_dir=str(tmp_path / "nowhere"))
    assert "lacks ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar: " in message


@pytest.mark.tensorflow
def test_archives_that_cannot_be_read_are_refused_in_one_line(tfds, tmp_path):
    for archive in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"):
        (tmp_path / archive).write_bytes(b"no archive")
    message = message_of(tmp_path / "data", manual_dir=str(tmp_path))
    assert message.startswith(f"'imagenet' cannot be read in '{tmp_path}/data' (")


@pytest.mark.tensorflow
def test_several_processes_do_not_prepare_the_set(tfds, tmp_path, monkeypatch):
    manual = write_archives(tmp_path / "archives", train=3, val=1)
    one_process_of(monkeypatch, 1, 2)
    message = message_of(tmp_path / "data", manual_dir=str(manual))
    assert "2 processes cannot do it at the same time: prepare it first" in message
    assert not (tmp_path / "data").exists()


@pytest.mark.tensorflow
def test_a_set_prepared_from_one_archive_is_refused(tfds, tmp_path):
    manual = write_archives(tmp_path / "archives", train=3, val=1)
    (manual / "ILSVRC2012_img_train.tar").unlink()
    tfds.builder("imagenet2012", data_dir=tmp_path).download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=str(manual))
    )
    assert "has no part 'train': delete that folder" in message_of(tmp_path)


@pytest.mark.tensorflow
def test_a_bucket_that_cannot_be_read_is_named(tfds, tmp_path, monkeypatch):
    def unreachable(*arguments, **fields):
        raise RuntimeError("File system scheme 'gs' not implemented\nmore")

    monkeypatch.setattr(tfds, "builder", unreachable)
    assert message_of("gs://bucket/data") == (
        "'imagenet' cannot be read in 'gs://bucket/data' (RuntimeError: File system "
        "scheme 'gs' not implemented): must be the data_dir of tensorflow-datasets, a "
        "folder or a bucket that this machine may read"
    )


@pytest.mark.tensorflow
def test_held_out_images_must_leave_some_to_train_on(prepared):
    message = message_of(prepared, validation_examples=TRAIN)
    assert message.endswith("must be 0 to 49: imagenet has 50 training images")
    with pytest.raises(InputError, match="^batch size is 51 for 50 training"):
        load(prepared).batches(51, seed=0)


@pytest.mark.tensorflow
def test_an_image_damaged_after_preparation_ends_the_run_in_one_line(tfds, tmp_path):
    manual = write_archives(tmp_path / "archives", train=6, val=1)
    archive = manual / "ILSVRC2012_img_train.tar"
    whole = encoded(picture(3))
    broken = archive.read_bytes().replace(whole, whole[:700] + bytes(len(whole) - 700))
    assert len(broken) == archive.stat().st_size
    archive.write_bytes(broken)
    dataset = load(tmp_path / "data", manual_dir=str(manual))
    with pytest.raises(
        InputError, match="^'imagenet': training images cannot be "
    ) as e:
        drawn(dataset, 2, batch_size=8 - 2)
    assert "\n" not in str(e.value)


@pytest.mark.tensorflow
@pytest.mark.parametrize("damage", ["cut", "gone"])
@pytest.mark.parametrize(
    ("file", "part", "split"),
    [("train", "validation", "train[:10]"), ("validation", "test", "validation")],
)
def test_a_part_that_cannot_be_read_is_named(
    prepared, tmp_path, damage, file, part, split
):
    folder = shutil.copytree(prepared, tmp_path / "tfds")
    (shard,) = folder.rglob(f"*-{file}.tfrecord-*")
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:100])
    else:
        shard.unlink()
    fields = {"image_size": 32, "flip": True, "prefetch": 2}
    # Not `load_dataset`: checking its result's type would read both parts here.
    dataset = load_imagenet(
        str(folder), manual_dir="", validation_examples=10, **fields
    )
    with pytest.raises(InputError) as raised:
        getattr(dataset, part)
    message = str(raised.value)
    where = f"{folder}/imagenet2012/5.1.0"
    assert message.startswith(
        f"part {split!r} of 'imagenet' in {where} cannot be read ("
    )
    assert "\n" not in message


@pytest.mark.tensorflow
def test_an_image_that_cannot_be_decoded_is_named_by_its_part(prepared):
    images = load(prepared).test.images
    images.items[3] = images.items[3][:700]
    with pytest.raises(InputError, match="^an image of part 'validation' of "):
        np.asarray(images)
