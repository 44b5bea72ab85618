"""`--eot`: a model that draws random numbers in evaluation mode, from the command line."""

import json
import signal

import numpy as np
import pytest

from freeadv_jax.attacks import pgd
from freeadv_jax.errors import InputError
from freeadv_jax.evaluate import main
from freeadv_jax.models.imported import import_model
from freeadv_jax.models.interface import (
    as_model,
    draws_numbers,
    logits_functions,
    random_logits_functions,
)
from freeadv_jax.weights.classifier import as_classifier

MODULE = """
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx


class Linear(nn.Module):
    num_classes: int
    spread: float = 0.0

    @nn.compact
    def __call__(self, images):
        if self.spread:
            noise = jax.random.normal(self.make_rng("noise"), images.shape)
            images = images + self.spread * noise
        return nn.Dense(self.num_classes)((images - 0.5).reshape(len(images), -1))


class Dropped(nnx.Module):
    def __init__(self, num_classes, rngs):
        self.dense = nnx.Linear(16, num_classes, rngs=rngs)
        self.rngs = rngs

    def __call__(self, images):
        keep = jax.random.bernoulli(self.rngs.noise(), 0.5, images.shape)
        keep = keep.astype(images.dtype)
        return self.dense((2 * keep * (images - 0.5)).reshape(len(images), -1))
"""
SHAPE = (4, 4, 1)
IMAGES = np.random.default_rng(0).uniform(0.2, 0.8, (40, *SHAPE)).astype(np.float32)


def model_named(name, arguments):
    given = {"num_classes": 3, "image_shape": SHAPE, "randomized": True}
    return import_model(f"module:random_nets:{name}", arguments, **given)


@pytest.fixture
def exported(tmp_path, monkeypatch):
    """Return a function that writes an exported folder, and images that it gets right."""
    pytest.importorskip("safetensors")
    (tmp_path / "random_nets.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)

    def exported(arguments, name="Linear"):
        import jax

        model = model_named(name, arguments)
        variables = as_model(model).init(jax.random.key(0), SHAPE)
        description = {"model": f"module:random_nets:{name}", "arguments": arguments}
        folder = tmp_path / "exported"
        as_classifier(
            model,
            variables,
            num_classes=3,
            image_shape=SHAPE,
            description=description,
        ).save(folder)
        plain = model_named("Linear", "")
        labels = logits_functions(plain)(variables)(IMAGES).argmax(axis=-1)
        np.savez(tmp_path / "mine.npz", images=IMAGES, labels=np.asarray(labels))
        return folder, variables, np.asarray(labels)

    return exported


def call(folder, *arguments):
    handler = signal.getsignal(signal.SIGTERM)
    images = folder.parent / "mine.npz"
    given = [
        f"--workdir={folder}",
        f"--images={images}",
        "--norm=linf",
        "--epsilon=0.1",
    ]
    try:
        main(["evaluate", *given, *arguments])
    finally:
        signal.signal(signal.SIGTERM, handler)


def rows(folder):
    return json.loads((folder / "mine" / "results.json").read_text())["evaluation"]


@pytest.mark.slow
def test_a_randomised_model_is_attacked_over_draws_and_the_rows_say_so(
    exported, capsys
):
    folder, variables, labels = exported("spread=0.05")
    attacks = "--attacks=natural,pgd-5,apgd-ce"
    call(folder, attacks, "--eot=4", "--no-red_flags")
    assert "within linf epsilon 0.1, with gradients over 4 draws, on" in (
        capsys.readouterr().out
    )
    found = rows(folder)
    row = found["pgd-5@linf-0.1"]
    assert (
        row["attack"]["samples"] == found["apgd-ce@linf-0.1"]["attack"]["samples"] == 4
    )
    assert found["natural"]["accuracy"] > 0.9
    assert row["accuracy"] < found["natural"]["accuracy"]
    # The library gives the same figure for the same function of images and keys.
    logits_fn = random_logits_functions(model_named("Linear", "spread=0.05"))(variables)
    outcome = pgd(
        logits_fn, IMAGES, labels, epsilon=0.1, steps=5, step_size=0.025, samples=4
    )
    assert abs(outcome.standing["pgd"] - row["correct"]) <= 1
    # Another number of draws is another attack.
    call(folder, "--attacks=pgd-5", "--eot=6", "--no-red_flags")
    assert rows(folder)["pgd-5@linf-0.1"]["attack"]["samples"] == 6


@pytest.mark.thorough
def test_red_flags_of_a_randomised_model_are_recorded(exported, capsys):
    folder, _, _ = exported("spread=0.05")
    call(folder, "--attacks=natural", "--eot=4")
    results = json.loads((folder / "mine" / "results.json").read_text())
    record = results["red_flags@linf-0.1"]
    assert record["samples"] == 4
    assert len(record["flags"]) == 13
    assert "verdict     " in capsys.readouterr().out


def test_a_model_that_draws_nothing_is_refused(exported):
    folder, _, _ = exported("")
    with pytest.raises(InputError, match="draws no random numbers in evaluation mode"):
        call(folder, "--attacks=natural", "--eot=4", "--no-red_flags")


def test_a_randomised_model_without_eot_is_refused(exported):
    folder, _, _ = exported("spread=0.05")
    with pytest.raises(InputError, match="draws random numbers in evaluation mode"):
        call(folder, "--attacks=natural", "--no-red_flags")


@pytest.mark.parametrize("eot", ["0", "2.5", "many"])
def test_eot_must_be_a_count(exported, eot):
    folder, _, _ = exported("spread=0.05")
    with pytest.raises(InputError, match="--eot"):
        call(folder, "--attacks=natural", f"--eot={eot}", "--no-red_flags")


def test_each_image_is_drawn_with_its_own_key(exported):
    import jax

    _, variables, _ = exported("spread=0.05")
    keys = jax.random.split(jax.random.key(1), 40)
    for name, arguments in (("Linear", "spread=0.05"), ("Dropped", "")):
        model = model_named(name, arguments)
        weights = variables if name == "Linear" else model.init(keys[0], SHAPE)
        logits_fn = random_logits_functions(model)(weights)
        assert draws_numbers(logits_fn, SHAPE)
        whole = logits_fn(IMAGES, keys)
        part = logits_fn(IMAGES[7:9], keys[7:9])
        np.testing.assert_allclose(whole[7:9], part, rtol=1e-5, atol=1e-6)
        other = logits_fn(IMAGES, jax.random.split(jax.random.key(2), 40))
        assert (np.abs(whole - other).max(axis=1) > 1e-4).all()
    plain = random_logits_functions(model_named("Linear", ""))(variables)
    assert not draws_numbers(plain, SHAPE)


def test_a_pair_of_functions_draws_nothing():
    pair = (lambda key, shape: 0, lambda variables, images: images[:, 0, 0])
    with pytest.raises(InputError, match="must be a Flax module"):
        random_logits_functions(pair)
