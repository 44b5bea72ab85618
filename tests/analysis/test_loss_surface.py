"""The command that draws loss surfaces: its numbers, resuming, and bad input."""

import json
import shutil

import numpy as np
import pytest

from freeadv_jax.analysis import loss_surface
from freeadv_jax.analysis.comparison import open_models
from freeadv_jax.analysis.flatness import flatness
from freeadv_jax.analysis.loss_surface import main
from freeadv_jax.errors import InputError


@pytest.fixture
def pair(trained_pair, tmp_path):
    return [shutil.copytree(run, tmp_path / run.name) for run in trained_pair]


def call(pair, out, *arguments):
    main(["loss_surface", *map(str, pair), f"--out={out}", "--points=9", *arguments])


def test_the_command_draws_writes_its_numbers_and_measures_once(
    pair, tmp_path, monkeypatch
):
    out = tmp_path / "figure" / "surface.png"
    call(pair, out, "--examples=60")
    assert out.read_bytes().startswith(b"\x89PNG")
    numbers = json.loads(out.with_suffix(".json").read_text())
    assert list(numbers) == ["Natural", "Free-2"]
    for model, row in zip(open_models(pair), numbers.values()):
        with np.load(model.folder / "loss_surface.npz") as file:
            assert row["rise"]["mean"] == file["rise"].mean()
            assert row["error"]["at the image"] == file["error"][row["image"]]
            assert file["adversarial"].shape == file["random"].shape == (9, 9)
            # The image itself is the middle of both planes.
            assert file["adversarial"][4, 4] == file["random"][4, 4]
    # Adversarial training flattens the loss.
    assert numbers["Free-2"]["rise"]["mean"] < numbers["Natural"]["rise"]["mean"]

    def forbidden(*_, **__):
        raise AssertionError("measured again")

    monkeypatch.setattr(loss_surface, "flatness", forbidden)
    monkeypatch.setattr(loss_surface, "loss_grid", forbidden)
    call(pair, out, "--examples=60")
    assert json.loads(out.with_suffix(".json").read_text()) == numbers


@pytest.mark.slow
def test_after_an_interruption_the_command_measures_only_missing_images(pair, tmp_path):
    made = []

    def cut_at_the_second(*arguments, **options):
        made.append(len(arguments[1]))
        if len(made) == 2:
            raise KeyboardInterrupt
        return flatness(*arguments, **options)

    out = tmp_path / "surface.png"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_surface, "flatness", cut_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            call(pair[:1], out, "--examples=60", "--image=0")
        call(pair[:1], out, "--examples=60", "--image=0")
    assert made == [50, 10, 10, 1]


def test_a_missing_image_and_an_unknown_format_are_refused(pair, tmp_path):
    with pytest.raises(InputError, match=r"--image=60: must be below --examples=60"):
        call(pair, tmp_path / "surface.png", "--examples=60", "--image=60")
    with pytest.raises(InputError, match=r"ends in one of \.png, \.svg, \.pdf"):
        call(pair, tmp_path / "surface.gif")


@pytest.mark.parametrize("flag", ["--points", "--examples"])
@pytest.mark.parametrize("number", ["0", "1", "few"])
def test_too_few_points_or_images_are_refused(pair, tmp_path, flag, number):
    message = f"{flag}: '{number}': must be a whole number, 2 or more"
    with pytest.raises(InputError, match=message):
        call(pair, tmp_path / "surface.png", f"{flag}={number}")
