"""Models can be compared if they share data set and threat, and get distinct names."""

import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax import evaluate
from freeadv_jax.analysis import comparison
from freeadv_jax.analysis.arguments import ModelsParser
from freeadv_jax.analysis.comparison import (
    first_examples,
    open_models,
    threat_text,
)
from freeadv_jax.attacks.robustness import epsilon_text
from freeadv_jax.data import jpeg
from freeadv_jax.data.encoded import EncodedImages
from freeadv_jax.data.split import Split
from freeadv_jax.errors import InputError
from freeadv_jax.export import export_run
from freeadv_jax.files import read_json, write_json
from freeadv_jax.runs.load import load


def change_config(workdir, field, value):
    """Write another value of a field into the record of a run."""
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


def test_the_models_of_run_folders_are_named_by_their_methods(pair):
    models = open_models(pair)
    assert [model.label for model in models] == ["Natural", "Free-2"]
    examples = first_examples(models, data="", examples=20)
    images = jnp.asarray(examples.images / np.float32(255))
    jitted = jax.jit(lambda logits_fn, images: logits_fn(images))
    for model, workdir in zip(models, pair):
        np.testing.assert_allclose(
            jitted(model.logits_fn, images), load(workdir)(images), atol=1e-5
        )
    assert examples.class_names == tuple("0123456789")


def test_encoded_images_of_a_data_set_are_decoded(pair, monkeypatch):
    def decoder(size):
        """Return an image whose pixels all equal its only byte, as TensorFlow would."""
        return lambda encoded: np.full((size, size, 3), encoded[0], np.uint8)

    images = EncodedImages.of([bytes([level]) for level in range(9)], size=4)
    test = Split(images, np.arange(9, dtype=np.int32))
    dataset = types.SimpleNamespace(test=test, class_names=tuple("abcdefghi"))
    monkeypatch.setattr(jpeg, "center_decoder", decoder)
    monkeypatch.setattr(comparison, "load_dataset", lambda **_: dataset)
    found = first_examples(open_models(pair[:1]), data="", examples=5)
    assert found.images.astype(np.float32).shape == (5, 4, 4, 3)
    assert found.images[:, 0, 0, 0].tolist() == found.labels.tolist()


def test_the_checksum_of_the_weights_is_that_of_the_evaluation(pair):
    for model, workdir in zip(open_models(pair), pair):
        with np.load(workdir / "evaluation.npz") as file:
            assert f'"model": {model.checksum},' in str(file["about"])


def test_seeds_share_a_kind_and_other_recipes_do_not(pair, tmp_path):
    seed = shutil.copytree(pair[1], tmp_path / "seed")
    change_config(seed, "seed", 7)
    first, second = open_models([pair[1], seed])
    assert (first.kind, second.kind) == ("Free-2", "Free-2")
    assert (first.label, second.label) == ("Free-2, seed 0", "Free-2, seed 7")
    change_config(seed, "optimizer.learning_rate", 0.3)
    kinds = [model.kind for model in open_models([*pair, seed])]
    assert kinds == ["Natural", "Free-2, recipe 1", "Free-2, recipe 2"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("data.dir", "/data"), ("data.manual_dir", "/archives"), ("data.prefetch", 9)],
)
def test_where_and_how_data_are_read_does_not_change_the_recipe(
    pair, tmp_path, field, value
):
    seed = shutil.copytree(pair[1], tmp_path / "seed")
    change_config(seed, "seed", 7)
    change_config(seed, field, value)
    kinds = [model.kind for model in open_models([pair[1], seed])]
    assert kinds == ["Free-2", "Free-2"]


def test_identical_runs_are_named_by_their_folders(pair, tmp_path):
    again = shutil.copytree(pair[0], tmp_path / "again")
    labels = [model.label for model in open_models([*pair, again])]
    assert labels == ["Natural (natural)", "Free-2", "Natural (again)"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data.name", "mnist", "different data sets: .* has digits, .* has mnist"),
        ("attack.epsilon", 0.1, "different threats: .* epsilon 0.2, .* epsilon 0.1"),
        ("attack.norm", "l2", "different threats: .* L-inf .* L2"),
    ],
)
def test_runs_of_different_data_sets_or_threats_are_refused(
    pair, field, value, message
):
    change_config(pair[1], field, value)
    with pytest.raises(InputError, match=message):
        open_models(pair)


def test_a_folder_without_a_run_and_a_repeated_folder_are_refused(pair, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no run"):
        open_models([pair[0], tmp_path / "empty"])
    with pytest.raises(InputError, match="is given twice"):
        open_models([pair[0], pair[0]])


def test_radii_are_shown_as_fractions_of_255_where_they_are():
    assert [epsilon_text(x) for x in (8 / 255, 0.2, 0.5, 0.0123)] == [
        "8/255",
        "0.2",
        "0.5",
        "0.0123",
    ]
    assert threat_text("l2", 0.5) == "L2 epsilon 0.5"


def test_data_with_other_classes_than_the_training_is_refused(pair):
    record = read_json(pair[1] / "run.json")
    write_json(pair[1] / "run.json", record | {"class_names": ["odd", "even"]})
    with pytest.raises(InputError, match=f"{pair[1]} was trained on odd, even"):
        first_examples(open_models(pair), data="", examples=5)


def test_an_unknown_store_is_refused_as_the_output_file():
    with pytest.raises(InputError, match="az://bucket/page.html: must be a folder of"):
        ModelsParser("a", "b").parse_args(["run", "--out=az://bucket/page.html"])


@pytest.fixture
def exported(pair, tmp_path):
    """Export the Free-2 run, and evaluate it on the first 64 test images."""
    folder = tmp_path / "exported"
    export_run(pair[1], folder)
    images = first_examples(open_models(pair), data="", examples=64)
    file = tmp_path / "test.npz"
    np.savez(file, images=images.images, labels=images.labels)
    evaluate.main(
        ["evaluate", f"--workdir={folder}", f"--images={file}", "--no-red_flags"]
        + ["--attacks=natural,pgd-20"]
    )
    return folder


def test_an_exported_model_is_opened_with_its_evaluation(pair, exported):
    model, run = open_models([exported, pair[1]])
    assert model.label == "small-cnn-bn (exported)"
    assert run.label == "Free-2"
    assert model.config is None
    assert model.results_folder == exported / "test"
    assert model.threat == run.threat == {"norm": "linf", "epsilon": 0.2}
    assert model.checksum == run.checksum
    (inside,) = open_models([exported / "test"])
    assert inside.folder == exported
    assert inside.data_name is None


def test_an_exported_model_alone_names_no_data_set(exported):
    with pytest.raises(InputError, match="exported model, which names no data set"):
        first_examples(open_models([exported]), data="", examples=5)


def test_an_exported_model_with_several_evaluations_asks_for_one(exported):
    shutil.copytree(exported / "test", exported / "other")
    with pytest.raises(InputError, match=r"several evaluations; .*other, .*test$"):
        open_models([exported])


def test_a_model_without_a_training_threat_has_that_of_its_evaluation(exported):
    description = read_json(exported / "model.json")
    write_json(exported / "model.json", description | {"threat": None})
    (model,) = open_models([exported])
    assert model.threat == {"norm": "linf", "epsilon": 0.2}
    shutil.rmtree(exported / "test")
    with pytest.raises(InputError, match="exactly one; its evaluation has: none"):
        open_models([exported])
