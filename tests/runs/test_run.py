import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import tiny_config

import freeadv_jax
from freeadv_jax import config as fields
from freeadv_jax.data.arrays import load_arrays
from freeadv_jax.errors import InputError
from freeadv_jax.files import read_json
from freeadv_jax.runs.build import configured_optimizer, initial_state_of, model_of
from freeadv_jax.runs.folder import open_run, read_run
from freeadv_jax.runs.results import evaluate_run
from freeadv_jax.runs.train import train_run
from freeadv_jax.training.state import create_state

DIGITS = load_arrays("digits", "", validation_examples=200)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    config = tiny_config(updates=48)
    workdir = tmp_path_factory.mktemp("trained") / "run"
    run = open_run(workdir, config, num_classes=10, image_shape=(8, 8, 1))
    state, training = train_run(run, DIGITS)
    results = evaluate_run(run, state.variables, DIGITS.test, training=training)
    return workdir, state, results


def test_loaded_model_has_the_accuracy_of_the_results(trained):
    workdir, _, results = trained
    classifier = freeadv_jax.load(workdir)
    assert (classifier.num_classes, classifier.image_shape) == (10, (8, 8, 1))
    images = DIGITS.test.images[:64].astype(np.float32) / 255
    right = np.argmax(classifier(images), axis=-1) == DIGITS.test.labels[:64]
    assert right.sum() == results["evaluation"]["natural"]["correct"]


def test_loaded_model_can_be_traced_and_differentiated(trained):
    classifier = freeadv_jax.load(trained[0])
    images = jnp.full((2, 8, 8, 1), 0.5)
    gradient = jax.jit(jax.grad(lambda images: classifier(images)[:, 0].sum()))(images)
    assert gradient.shape == images.shape
    assert jnp.abs(gradient).max() > 0


def test_best_is_the_checkpoint_of_the_highest_robust_validation_accuracy(trained):
    workdir, _, _ = trained
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    robust = {x["step"]: x["pgd-10"] for x in lines if x["kind"] == "validation"}
    images = DIGITS.validation.images.astype(np.float32) / 255
    natural = np.mean(
        np.argmax(freeadv_jax.load(workdir, checkpoint="best")(images), -1)
        == DIGITS.validation.labels
    )
    best = max(robust, key=lambda step: (robust[step], step))
    (line,) = (
        line
        for line in map(
            json.loads, (workdir / "metrics.jsonl").read_text().split("\n")[:-1]
        )
        if line["kind"] == "validation" and line["step"] == best
    )
    np.testing.assert_allclose(natural, line["natural"], atol=1e-6)


def test_run_may_continue_with_another_budget_but_no_other_change(trained):
    config = tiny_config(updates=48)
    for field in ("data.dir", "logging.every_updates", "evaluation.step_size"):
        group, name = field.split(".")
        value = config[group][name]
        config[group][name] = "elsewhere" if isinstance(value, str) else 2 * value
    saved = read_json(trained[0] / "run.json")["config"]
    assert fields.differences(saved, config) == []
    config.attack.replays = 4
    assert fields.differences(saved, config) == ["attack.replays: 2 -> 4"]


@pytest.mark.parametrize("name", ["training_images", "extra_images"])
def test_a_run_continues_only_with_as_many_images(tmp_path, name):
    fields = {"num_classes": 10, "image_shape": (8, 8, 1)}
    open_run(tmp_path, tiny_config(), **fields, **{name: 1147})
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(InputError, match=f"{name} = 1147, not 1146"):
        open_run(tmp_path, tiny_config(), **fields, **{name: 1146})
    assert (tmp_path / "run.json").read_bytes() == before
    assert getattr(read_run(tmp_path), name) == 1147


def test_folder_of_a_run_that_was_killed_at_its_start_is_used(tmp_path):
    (tmp_path / ".run.json.tmp").write_text('{"conf')
    open_run(tmp_path, tiny_config(), num_classes=10, image_shape=(8, 8, 1))
    assert read_json(tmp_path / "run.json")["num_classes"] == 10


def test_the_initial_state_depends_only_on_the_seed_and_is_that_of_the_modules(
    tmp_path,
):
    def begun(seed):
        config = tiny_config(seed=seed)
        options = {"num_classes": 10, "image_shape": (8, 8, 1)}
        return open_run(tmp_path / str(seed), config, **options)

    run = begun(3)
    state = initial_state_of(run)
    module_by_module = create_state(
        model_of(run),
        configured_optimizer(run.config),
        3,
        batch_size=64,
        image_shape=(8, 8, 1),
    )
    close = partial(np.testing.assert_allclose, rtol=0, atol=1e-6)
    jax.tree.map(close, state, module_by_module)
    other = initial_state_of(begun(4))
    assert (int(state.seed), int(other.seed)) == (3, 4)
    kernels = [x for x in jax.tree.leaves(state.params) if x.ndim > 1]
    others = [x for x in jax.tree.leaves(other.params) if x.ndim > 1]
    for kernel, another in zip(kernels, others, strict=True):
        assert jnp.abs(kernel - another).max() > 0.01


def test_a_folder_of_another_model_is_refused_with_the_arrays_that_differ(tmp_path):
    def begin(*widths):
        arrays = {"params": [np.zeros((64, width)) for width in widths]}
        config = tiny_config(model__name="object:Net")
        options = {"num_classes": 10, "image_shape": (8, 8, 1)}
        return open_run(tmp_path, config, **options, arrays=arrays)

    begin(16, 8)
    before = (tmp_path / "run.json").read_bytes()
    begin(16, 8)
    for widths, reason in (
        ((16, 4), r"of another shape: params/1 \[64, 8\] instead of \[64, 4\]"),
        ((16,), r"unknown: params/1 \[64, 8\]"),
        ((16, 8, 3), r"missing: params/2 \[64, 3\]"),
    ):
        with pytest.raises(InputError, match=f"made with another model; .*{reason}"):
            begin(*widths)
    assert (tmp_path / "run.json").read_bytes() == before
