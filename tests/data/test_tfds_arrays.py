import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from freeadv_jax.data.arrays import load_arrays
from freeadv_jax.errors import InputError


@pytest.mark.parametrize(
    "module", ["tensorflow", "tensorflow_datasets", "importlib_resources"]
)
def test_without_tensorflow_the_message_names_the_extra(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    message = (
        r"^'tfds:cifar10' needs TensorFlow and tensorflow-datasets \(.*\); "
        r"pip install 'freeadv_jax\[tfds\]'$"
    )
    with pytest.raises(InputError, match=message):
        load_arrays("tfds:cifar10", "", validation_examples=0)


def test_importing_the_arrays_does_not_import_tensorflow():
    program = (
        "import sys, freeadv_jax.data.arrays, freeadv_jax.data.sampling; "
        "sys.exit('tensorflow' in sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2]
    )


@pytest.fixture
def tfds():
    pytest.importorskip("tensorflow")
    pytest.importorskip("importlib_resources")
    return pytest.importorskip("tensorflow_datasets")


@pytest.mark.tensorflow
def test_a_set_of_tensorflow_datasets_is_loaded_whole(tfds, tmp_path):
    with tfds.testing.mock_data(num_examples=30, data_dir=str(tmp_path)):
        loaded = load_arrays("tfds:cifar10", tmp_path, validation_examples=5)
    assert loaded.name == "tfds:cifar10"
    assert loaded.train.images.shape == (25, 32, 32, 3)
    assert loaded.train.images.dtype == np.uint8
    assert loaded.validation.images.shape == (5, 32, 32, 3)
    assert loaded.test.images.shape == (30, 32, 32, 3)
    assert loaded.train.labels.dtype == np.int32
    assert loaded.class_names == tuple("0123456789")  # mock_data knows no names.


def builder_of(tfds, name, features, splits, *, sorted_=0):
    """Register the set `name` of 6 images of one value each, 10 * image + split.

    With `sorted_` it has so many images, kept in the order of their two classes.
    """

    def info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=bool(sorted_),
        )

    def examples(number):
        for index in range(sorted_ or 6):
            value = index + number if sorted_ else 10 * index + number
            values = {"image": np.full((4, 5, 3), value, np.uint8)}
            values["label"] = index // (sorted_ // 2) if sorted_ else index % 2
            yield index, {key: values[key] for key in features}

    members = {
        "VERSION": tfds.core.Version("1.0.0"),
        "_info": info,
        "_split_generators": lambda self, manager: {
            split: examples(number) for number, split in enumerate(splits)
        },
        "_generate_examples": lambda self: iter(()),
        "__module__": __name__,
        "name": name,
    }
    type(name, (tfds.core.GeneratorBasedBuilder,), members)


@pytest.mark.tensorflow
def test_a_prepared_set_keeps_its_images_and_its_class_names(tfds, tmp_path):
    features = {
        "image": tfds.features.Image(shape=(4, 5, 3), encoding_format="png"),
        "label": tfds.features.ClassLabel(names=["even", "odd"]),
    }
    builder_of(tfds, "six_plain_images", features, ("train", "test"))
    loaded = load_arrays("tfds:six_plain_images", tmp_path, validation_examples=0)
    assert loaded.class_names == ("even", "odd")
    for number, part in enumerate((loaded.train, loaded.test)):
        values = part.images[:, 0, 0, 0].astype(int)
        assert sorted(values) == [10 * index + number for index in range(6)]
        assert (part.images == part.images[:, :1, :1, :1]).all()
        np.testing.assert_array_equal(part.labels, values // 10 % 2)


@pytest.mark.tensorflow
def test_the_first_test_images_of_a_set_sorted_by_class_are_of_all_classes(
    tfds, tmp_path
):
    features = {
        "image": tfds.features.Image(shape=(4, 5, 3), encoding_format="png"),
        "label": tfds.features.ClassLabel(names=["low", "high"]),
    }
    builder_of(tfds, "sorted_by_class", features, ("train", "test"), sorted_=60)
    test = load_arrays("tfds:sorted_by_class", tmp_path, validation_examples=0).test
    counts = np.bincount(test.labels[:20], minlength=2)
    # A sample of 20 from 2 classes of 30 images: 10 on average, deviation 1.8.
    assert counts.min() >= 5
    assert sorted(test.images[:, 0, 0, 0]) == list(range(1, 61))
    np.testing.assert_array_equal(test.labels, test.images[:, 0, 0, 0] > 30)


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "shapes",
            r" has images of shape \(None, None, 3\): must have one height, width",
        ),
        ("pixels", " has pixels of type float32: must be uint8$"),
        ("unlabelled", " has no feature 'label': must have 'image' and 'label'$"),
        ("numbers", " has no class label: its feature 'label' must be one$"),
        (
            "splits",
            r" cannot be read \(.*test.*\): must be a set with splits 'train' and ",
        ),
    ],
)
def test_a_set_that_does_not_fit_is_refused(tfds, tmp_path, kind, message):
    image = tfds.features.Image(shape=(4, 5, 3), encoding_format="png")
    label = tfds.features.ClassLabel(num_classes=2)
    features = {"image": image, "label": label}
    features |= {
        "shapes": {"image": tfds.features.Image(shape=(None, None, 3))},
        "pixels": {"image": tfds.features.Tensor(shape=(4, 5, 3), dtype=np.float32)},
        "numbers": {"label": tfds.features.Scalar(dtype=np.int64)},
    }.get(kind, {})
    if kind == "unlabelled":
        del features["label"]
    splits = ("train",) if kind == "splits" else ("train", "test")
    builder_of(tfds, f"refused_for_{kind}", features, splits)
    with pytest.raises(InputError, match=f"^'tfds:refused_for_{kind}'{message}"):
        load_arrays(f"tfds:refused_for_{kind}", tmp_path, validation_examples=0)


@pytest.mark.tensorflow
def test_an_unknown_set_is_refused_in_one_line(tfds, tmp_path):
    with pytest.raises(
        InputError, match="^'tfds:no_such_set' cannot be read "
    ) as caught:
        load_arrays("tfds:no_such_set", tmp_path, validation_examples=0)
    assert "\n" not in str(caught.value)
