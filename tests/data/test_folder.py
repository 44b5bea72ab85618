import itertools
import os
import sys

import jax
import numpy as np
import pytest
from image_files import encoded, imagenette, number_of, picture, write_folder

from freeadv_jax.data import jpeg
from freeadv_jax.data.dataset import Dataset, load_dataset
from freeadv_jax.data.encoded import EncodedImages
from freeadv_jax.devices import parallel
from freeadv_jax.errors import InputError
from freeadv_jax.runs.outcomes import ArrayFile

TRAIN, VAL = 31, 6
OPTIONS = {
    "dir": "",
    "manual_dir": "",
    "validation_examples": 0,
    "pad": 0,
    "flip": True,
    "image_size": 32,
    "prefetch": 2,
    "max_corrupt": 0.01,
}
INSTALL = "pip install 'freeadv_jax[imagenet]'"
ASSEMBLE = parallel.assemble


@pytest.fixture(autouse=True)
def rows_stay_on_the_host(monkeypatch):
    """Let a batch of any size be drawn, whatever the number of devices."""
    monkeypatch.setattr(parallel, "assemble", lambda rows: rows)


@pytest.fixture
def tf():
    pytest.importorskip("importlib_resources")
    pytest.importorskip("tensorflow_datasets")
    return pytest.importorskip("tensorflow")


@pytest.fixture
def root(tf, tmp_path):
    return write_folder(tmp_path / "images", train=TRAIN, val=VAL)


def load(root, **fields):
    return load_dataset(name=f"folder:{root}", **OPTIONS | fields)


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


@pytest.mark.tensorflow
def test_classes_and_images_come_from_the_folders(root):
    (root / "train" / "cat" / "notes.txt").write_text("no image")
    (root / "train" / ".hidden").mkdir()
    dataset = load(root)
    assert isinstance(dataset, Dataset)
    assert dataset.name == f"folder:{root}"
    assert dataset.class_names == ("cat", "dog", "fox")
    assert dataset.image_shape == (32, 32, 3)
    assert isinstance(dataset.test.images, EncodedImages)
    found = [number_of(image) for image in np.asarray(dataset.test.images)]
    assert sorted(found) == list(range(TRAIN, TRAIN + VAL))
    labels = [(number - TRAIN) % 3 for number in found]
    np.testing.assert_array_equal(dataset.test.labels, labels)


@pytest.mark.tensorflow
def test_the_first_test_images_of_a_folder_are_of_all_classes(tf, tmp_path):
    root = write_folder(tmp_path / "images", train=3, val=120)
    test = load(root).test
    counts = np.bincount(test.labels[:40], minlength=3)
    # A sample of 40 from 3 classes of 40 images: 13.3 on average, deviation 2.4.
    assert counts.min() >= 6
    assert sorted(map(str, test.images.items)) == sorted(
        str(path) for path in (root / "val").glob("*/*")
    )
    assert list(test.images.items) == list(load(root).test.images.items)
    labels = [("cat", "dog", "fox").index(p.parent.name) for p in test.images.items]
    np.testing.assert_array_equal(test.labels, labels)


@pytest.mark.tensorflow
def test_outcomes_on_the_images_in_the_order_of_their_files_are_refused(root):
    """Older versions evaluated the files in sorted order: their rows never mix in."""
    test = load(root).test
    in_order = EncodedImages.of(sorted(test.images.items), size=32)
    outcomes = ArrayFile(
        root / "evaluation.npz", {"model": 1, "images": in_order.fingerprint()}
    )
    outcomes.arrays["natural"] = np.ones(VAL, bool)
    outcomes.save()
    with pytest.raises(InputError, match="evaluation.npz .* of other images"):
        ArrayFile(
            root / "evaluation.npz", {"model": 1, "images": test.images.fingerprint()}
        )


@pytest.mark.tensorflow
def test_a_data_directory_replaces_the_path_in_the_name(root, tmp_path):
    other = write_folder(tmp_path / "other", train=6, val=3)
    dataset = load(root, dir=str(other))
    assert dataset.name == f"folder:{root}"
    assert (len(dataset.train.labels), len(dataset.test.labels)) == (6, 3)


@pytest.mark.tensorflow
def test_a_pass_draws_every_image_once_and_with_its_label(root):
    dataset = load(root)
    steps = dataset.steps_per_pass(8)
    assert steps == 3
    batches = drawn(dataset, 3 * steps)
    passes = [numbers(batches[first : first + steps]) for first in (0, 3, 6)]
    for found in passes:
        assert len(set(found)) == len(found) == 24
        assert set(found) <= set(range(TRAIN))
    assert len({tuple(found) for found in passes}) == 3
    labels = np.concatenate([batch["label"] for batch in batches])
    np.testing.assert_array_equal(labels, [n % 3 for n in numbers(batches)])
    assert labels.dtype == np.int32
    assert numbers(drawn(dataset, steps, seed=1)) != passes[0]


@pytest.mark.tensorflow
@pytest.mark.parametrize("count", [2, 4])
def test_processes_together_draw_the_batches_of_one_process(root, monkeypatch, count):
    dataset = load(root)
    alone = drawn(dataset, 5)
    parts = []
    for index in range(count):
        with monkeypatch.context() as process:
            process.setattr(jax, "process_index", lambda index=index: index)
            process.setattr(jax, "process_count", lambda: count)
            parts.append(drawn(dataset, 5))
    together = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*parts)
    ]
    assert_same(together, alone)
    assert len(parts[0][0]["label"]) == 8 // count


@pytest.mark.tensorflow
@pytest.mark.parametrize("first", [1, 3, 5])
def test_a_resumed_run_gets_the_same_batches_and_decodes_no_earlier_ones(
    tf, root, monkeypatch, first
):
    dataset = load(root)
    whole = drawn(dataset, first + 3)
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
def test_held_out_images_are_never_drawn(root):
    dataset = load(root, validation_examples=7)
    held = {number_of(image) for image in np.asarray(dataset.validation.images)}
    found = numbers(drawn(dataset, 3))
    assert len(held) == 7
    assert len(set(found)) == 24
    assert held | set(found) == set(range(TRAIN))
    fewer = load(root, validation_examples=3).validation.images
    assert list(fewer.items) == list(dataset.validation.images.items[:3])


@pytest.mark.tensorflow
def test_batches_are_split_over_the_devices(root, monkeypatch):
    monkeypatch.setattr(parallel, "assemble", ASSEMBLE)
    (batch,) = drawn(load(root), 1, batch_size=16)
    assert len(batch["image"].addressable_shards) == 8
    assert batch["image"].addressable_shards[0].data.shape == (2, 32, 32, 3)


def message_of(root, **fields):
    with pytest.raises(InputError) as raised:
        load(root, **fields)
    message = str(raised.value)
    assert "\n" not in message
    return message


def damage(root, which):
    """Write files as a broken download leaves them; return their paths."""
    whole = encoded(picture(0))
    contents = {
        "empty.jpg": b"",
        "truncated.jpg": whole[: len(whole) // 2],
        "text.jpg": b"<html>404 not found</html>",
        "truncated.png": encoded(picture(0), "PNG")[:200],
    }
    paths = [root / "train" / "dog" / name for name in which or contents]
    for path in paths:
        path.write_bytes(contents[path.name])
    return [str(path) for path in paths]


def warnings_of(caplog):
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "freeadv_jax.data.folder"
    ]


@pytest.mark.tensorflow
def test_damaged_images_are_named_and_left_out(root, caplog):
    caplog.set_level("INFO")
    paths = damage(root, ())
    dataset = load(root, max_corrupt=0.12)
    assert len(dataset.train.labels) == TRAIN
    names = [str(path) for path in dataset.train.images.items]
    assert not set(paths) & set(names)
    assert set(numbers(drawn(dataset, 3))) <= set(range(TRAIN))
    (message,) = warnings_of(caplog)
    assert message.startswith(
        f"{root}/train: 4 of 35 images are damaged and left out: "
    )
    assert all(path in message for path in paths)
    assert f"checking {root}/train 35/35 images (100%)" in caplog.text


LEFT_OUT = (
    "; images must lie directly in the folder of their class and end in "
    ".jpg, .jpeg, .jpe, .jfif, .png, .bmp, .gif, .webp"
)


@pytest.mark.tensorflow
def test_every_ending_that_is_read_gives_its_images_to_training_and_evaluation(root):
    forms = {"JPEG": [".JPG", ".jpeg", ".jpe", ".jfif"], "PNG": [".png"]}
    forms |= {"BMP": [".bmp"], "GIF": [".gif"], "WEBP": [".webp"]}
    for part, first in (("train", 100), ("val", 200)):
        pairs = [(form, end) for form, ends in forms.items() for end in ends]
        for number, (form, end) in enumerate(pairs, start=first):
            options = {"lossless": True} if form == "WEBP" else {}
            data = encoded(picture(number), form, **options)
            (root / part / "dog" / f"{number}{end}").write_bytes(data)
    dataset = load(root)
    added = len(dataset.train.labels) - TRAIN
    assert added == len(dataset.test.labels) - VAL == 8
    found = numbers(drawn(dataset, 1, batch_size=TRAIN + added))
    assert sorted(found) == [*range(TRAIN), *range(100, 108)]
    found = [number_of(image) for image in np.asarray(dataset.test.images)]
    assert sorted(found) == [*range(TRAIN, TRAIN + VAL), *range(200, 208)]


@pytest.mark.tensorflow
def test_files_that_are_left_out_are_counted_and_named(root, caplog):
    train = root / "train"
    (train / "cat" / "scan.tif").touch()
    (train / "cat" / "scan2.TIF").touch()
    (train / "dog" / "more" / "deep").mkdir(parents=True)
    (train / "dog" / "more" / "deep" / "a.jpg").touch()
    (train / "stray.png").touch()
    (train / "dog" / ".hidden.jpg").touch()
    (train / "README").touch()
    assert len(load(root).train.labels) == TRAIN
    (message,) = warnings_of(caplog)
    assert message.startswith(f"{train}: 5 files are left out, ")
    assert message.endswith(LEFT_OUT)
    for part in (
        "1 outside of a class",
        "1 ending in nothing",
        "2 ending in .tif",
        "1 in nested folders",
        "cat/scan.tif, cat/scan2.TIF, dog/more/deep/a.jpg",
    ):
        assert part in message, part


@pytest.mark.tensorflow
def test_a_class_whose_images_are_all_left_out_is_refused_with_their_names(root):
    for file in (root / "train" / "dog").iterdir():
        file.rename(file.with_suffix(".tiff"))
    message = message_of(root)
    assert message.startswith(f"'{root}/train/dog' holds no images: must hold files ")
    assert message.endswith(
        "; it has 10 ending in .tiff: "
        + ", ".join(f"{number:03}.tiff" for number in range(1, TRAIN, 3))
    )


def as_tiny_imagenet(root):
    """Move the images of `root` to the places where Tiny ImageNet has them."""
    for folder in list((root / "train").iterdir()):
        files = list(folder.iterdir())
        (folder / "images").mkdir()
        for file in files:
            file.rename(folder / "images" / file.with_suffix(".JPEG").name)
        (folder / f"{folder.name}_boxes.txt").write_text("a.JPEG\t0\t0\t62\t62\n")
    lines = []
    (root / "val" / "images").mkdir()
    for folder in [root / "val" / name for name in ("cat", "dog", "fox")]:
        for file in list(folder.iterdir()):
            lines.append(f"{file.name}\t{folder.name}\t0\t32\t44\t62\n")
            file.rename(root / "val" / "images" / file.name)
        folder.rmdir()
    (root / "val" / "val_annotations.txt").write_text("".join(sorted(lines)))
    return root


@pytest.mark.tensorflow
def test_tiny_imagenet_is_read_as_it_is_unpacked(root, caplog):
    plain = load(root)
    dataset = load(as_tiny_imagenet(root))
    assert warnings_of(caplog) == []
    assert dataset.class_names == plain.class_names
    np.testing.assert_array_equal(dataset.train.labels, plain.train.labels)
    np.testing.assert_array_equal(dataset.test.labels, plain.test.labels)
    for part in ("train", "test"):
        ours, theirs = getattr(dataset, part).images, getattr(plain, part).images
        names = [[path.stem for path in images.items] for images in (ours, theirs)]
        assert names[0] == names[1]
    found = [number_of(image) for image in np.asarray(dataset.test.images)]
    assert sorted(found) == list(range(TRAIN, TRAIN + VAL))


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("031.jpg cat\n", "line 1 of '{}' is '031.jpg cat': must be a file and its"),
        ("031.jpg\twolf\n", "'{}' has classes that train/ lacks: wolf"),
        ("a.jpg\tcat\n", "'{}' names 1 files that '{}/images' lacks: a.jpg"),
        ("\n", "'{}' names no images: must name a file and its class on each line"),
    ],
)
def test_annotations_of_tiny_imagenet_that_do_not_fit_are_refused(root, lines, said):
    table = as_tiny_imagenet(root) / "val" / "val_annotations.txt"
    table.write_text(lines)
    assert message_of(root).startswith(said.format(table, table.parent))


@pytest.mark.tensorflow
def test_images_that_the_annotations_lack_are_named(root, caplog):
    table = as_tiny_imagenet(root) / "val" / "val_annotations.txt"
    first, rest = table.read_text().split("\n", 1)
    table.write_text(rest)
    assert len(load(root).test.labels) == VAL - 1
    (message,) = warnings_of(caplog)
    name = first.split("\t")[0]
    assert f"1 without a line in val_annotations.txt: images/{name}; " in message


@pytest.mark.tensorflow
def test_a_file_name_may_be_in_any_encoding(root):
    (image, *_) = sorted((root / "train" / "cat").iterdir())
    image.rename(os.fsdecode(os.fsencode(image.parent) + b"/caf\xe9.jpg"))
    assert len(set(numbers(drawn(load(root), 3)))) == 24


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", ["empty.jpg", "truncated.jpg", "text.jpg"])
def test_more_damaged_images_than_allowed_are_refused(root, name):
    (path,) = damage(root, [name])
    assert message_of(root, max_corrupt=0.02) == (
        f"{root}/train: 1 of 32 images are damaged: must be at most a share of 0.02, "
        f"which --config.data.max_corrupt sets: {path}"
    )
    assert len(load(root, max_corrupt=1 / 32).train.labels) == TRAIN


@pytest.mark.tensorflow
def test_the_first_ten_damaged_images_are_named(root):
    for number in range(13):
        (root / "val" / "cat" / f"bad{number:02}.jpg").touch()
    message = message_of(root)
    assert f"{root}/val: 13 of 19 images are damaged: must be at" in message
    assert "bad09.jpg and 3 more" in message
    assert "bad10.jpg" not in message


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            "nothing",
            "of 'folder:<path>' does not exist: must be a folder that holds train/",
        ),
        (
            "no val",
            "/val' of 'folder:<path>' does not exist: must be a folder that holds a",
        ),
        ("no class", "/train' has 0 folders of classes: must have 2 or more; a data"),
        ("one class", "/train' has 1 folders of classes: must have 2 or more; a data"),
        (
            "empty class",
            "/train/dog' holds no images: must hold files that end in .jpg,",
        ),
        (
            "empty val",
            "/val' holds no images: must be train/<class>/ and val/<class>/",
        ),
        ("unknown class", "/val' has classes that train/ lacks: wolf"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(tf, tmp_path, change, expected):
    root = tmp_path / "images"
    if change != "nothing":
        write_folder(root, train=6, val=3)
    if change == "no val":
        (root / "val").rename(tmp_path / "val")
    if change in ("no class", "one class"):
        for name in ("cat", "dog", "fox")[: 3 - (change == "one class")]:
            (root / "train" / name).rename(tmp_path / name)
    if change == "empty class":
        for file in (root / "train" / "dog").iterdir():
            file.unlink()
    if change == "empty val":
        (root / "val").rename(tmp_path / "val")
        (root / "val").mkdir()
    if change == "unknown class":
        (root / "val" / "fox").rename(root / "val" / "wolf")
    assert expected in message_of(root)


@pytest.mark.tensorflow
def test_an_unknown_store_is_refused(tf):
    for root, directory in (("az://bucket/images", ""), ("gone", "az://bucket/images")):
        assert message_of(root, dir=directory).startswith(
            "az://bucket/images: must be a folder of this machine, gs://BUCKET/FOLDER or"
        )


@pytest.mark.tensorflow
def test_val_may_lack_a_class(root):
    for file in (root / "val" / "fox").iterdir():
        file.unlink()
    (root / "val" / "fox").rmdir()
    dataset = load(root)
    assert dataset.class_names == ("cat", "dog", "fox")
    assert set(dataset.test.labels.tolist()) == {0, 1}


@pytest.mark.tensorflow
def test_numbers_that_do_not_fit_are_refused(root):
    message = message_of(root, validation_examples=TRAIN)
    assert message.endswith(f"must be 0 to 30: folder:{root} has 31 training images")
    with pytest.raises(InputError, match="^batch size is 32 for 31 training"):
        load(root).batches(32, seed=0)


@pytest.mark.tensorflow
def test_an_image_deleted_during_training_ends_the_run_with_one_line(root):
    dataset = load(root)
    for file in root.glob("train/*/*"):
        file.unlink()
    message = "^'folder:.*': training images cannot be read .*No such file"
    with pytest.raises(InputError, match=message) as raised:
        drawn(dataset, 1)
    assert "\n" not in str(raised.value)


def test_without_tensorflow_the_message_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    message = message_of(tmp_path)
    needed = "needs TensorFlow, tensorflow-datasets and Pillow ("
    assert message.startswith(f"'folder:{tmp_path}' {needed}")
    assert message.endswith(INSTALL)


@pytest.mark.tensorflow
def test_without_pillow_the_message_names_the_extra(tf, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "PIL", None)
    message = message_of(tmp_path)
    assert message.endswith("of PIL halted; None in sys.modules); " + INSTALL)


@pytest.mark.tensorflow
def test_photographs_in_folders_of_wnids_are_drawn_once_a_pass(tf):
    folder = imagenette()
    if folder is None:
        pytest.skip("FREEADV_IMAGENETTE names no folder of photographs")
    dataset = load(folder, image_size=64, validation_examples=50)
    assert len(dataset.class_names) == 10
    assert all(name.startswith("n0") for name in dataset.class_names)
    files = len(list(folder.glob("train/*/*")))
    assert len(dataset.train.labels) == files - 50
    batches = drawn(dataset, dataset.steps_per_pass(32), batch_size=32)
    labels = np.concatenate([batch["label"] for batch in batches])
    counts = np.bincount(labels, minlength=10)
    assert np.all(counts <= np.bincount(dataset.train.labels))
    assert len({image.tobytes() for b in batches for image in b["image"]}) == len(
        labels
    )
