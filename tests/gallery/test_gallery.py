"""The command `python -m freeadv_jax.gallery`: what it measures, keeps and refuses."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.attacks.bpda import bpda
from freeadv_jax.attacks.threat import make_threat
from freeadv_jax.errors import InputError
from freeadv_jax.gallery.__main__ import main
from freeadv_jax.gallery.defence import Defended, before, by_pgd
from freeadv_jax.gallery.measurement import drawing_by_itself, measure, plain_pgd
from freeadv_jax.gallery.row import read_row

# Images of one brightness, of class 1 if bright.
LEVELS = np.linspace(0.1, 0.9, 24).astype(np.float32)
IMAGES = np.tile(LEVELS[:, None, None, None], (1, 4, 4, 1))
# No mean of rounded pixels lies on it, where the rounding of a sum would decide.
BOUNDARY = 0.513
LABELS = (LEVELS > BOUNDARY).astype(np.int32)
THREAT = make_threat("linf", 0.1)


def brightness(images):
    excess = 20 * (images.mean((1, 2, 3)) - BOUNDARY)
    return jnp.stack([-excess, excess], axis=-1)


def rounded(images):
    return jnp.round(images * 20) / 20


def noisy(images, keys):
    noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(keys)
    return brightness(images + 0.2 * noise)


def test_the_plain_attack_is_stopped_by_rounding_and_stays_in_the_ball():
    open_to_it = Defended(brightness, {})
    attacked = plain_pgd(open_to_it, IMAGES, LABELS, THREAT)
    assert abs(attacked - IMAGES).max() <= 0.1 + 1e-6
    np.testing.assert_allclose(abs(attacked - IMAGES), 0.1, atol=1e-6)
    stopped = plain_pgd(
        Defended(before(rounded, brightness), {}), IMAGES, LABELS, THREAT
    )
    assert abs((stopped - IMAGES).mean((1, 2, 3))).max() < 0.06


def test_a_random_defence_draws_anew_at_each_call():
    defended = Defended(noisy, {}, random=True)
    alone = jax.jit(drawing_by_itself(defended, seed=0))
    assert not np.array_equal(alone(IMAGES), alone(IMAGES))
    attacked = plain_pgd(defended, IMAGES, LABELS, THREAT)
    assert abs(attacked - IMAGES).max() <= 0.1 + 1e-6


def test_an_adaptive_attack_begins_where_the_seed_says():
    attack = by_pgd(brightness, steps=1)
    first, again, other = (attack(IMAGES, LABELS, THREAT, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.slow
def test_a_masking_defence_is_flagged_and_falls_to_bpda():
    defended = Defended(
        before(rounded, brightness),
        {"BPDA": by_pgd(before(bpda(rounded), brightness))},
        shown=rounded,
        rejects=lambda images: images.mean((1, 2, 3)) > 0.89,
    )
    found = measure(defended, IMAGES, LABELS, THREAT, flagged=len(LABELS))
    # One image is rounded across the boundary, and the last is rejected.
    assert np.flatnonzero(~found.right).tolist() == [12, 23]
    fell = ~found.defended(found.adaptive["BPDA"])
    distance = abs(LEVELS - BOUNDARY)
    assert np.all(fell[distance < 0.08])
    assert not np.any(fell[(distance > 0.15) & found.right])
    assert found.defended(found.naive).sum() > (~fell).sum()
    broken = found.right & fell
    assert np.all(found.broken.classes[broken] != LABELS[broken])
    assert "gradients" in {flag.name for flag in found.flags if flag.suspicious}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return the work folder of a gallery whose networks are tiny."""
    from freeadv_jax.gallery import task

    sizes = {"features": (2,), "updates": 20, "robust_minibatches": 2}
    recipe = task.dataclasses.replace(task.RECIPES["digits"], **sizes)
    monkeypatch.setitem(task.RECIPES, "digits", recipe)
    return tmp_path / "gallery"


def gallery(folder, *options):
    main(["gallery", f"--workdir={folder}", "--examples=12", "--flagged=8", *options])


@pytest.mark.slow
def test_a_finished_defence_is_kept_and_the_command_goes_on(folder, capsys):
    gallery(folder, "--only=bit-depth")
    first = json.loads((folder / "rows" / "bit-depth.json").read_text())
    assert {
        "defence",
        "masks",
        "natural",
        "naive",
        "adaptive",
        "published",
        "flags",
    } <= (first.keys())
    assert first["adaptive"] <= first["naive"] <= first["natural"]
    said = capsys.readouterr().out
    assert re.search(r"gallery 1/1 defences \(100%\)", said)
    network = (folder / "networks" / "digits-natural" / "model.safetensors").stat()
    gallery(folder, "--only=bit-depth,distillation")
    said = capsys.readouterr().out
    assert "1 of 2 defences are kept in" in said
    assert "bit-depth: training" not in said
    assert "distillation: training" in said
    gallery(folder, "--only=bit-depth")
    assert "1 of 1 defences are kept in" in capsys.readouterr().out
    again = json.loads((folder / "rows" / "bit-depth.json").read_text())
    assert again == first
    kept = (folder / "networks" / "digits-natural" / "model.safetensors").stat()
    assert kept.st_mtime_ns == network.st_mtime_ns
    page = (folder / "gallery.html").read_text()
    assert "Bit depth" in page and "Defensive distillation" in page
    with pytest.raises(
        InputError, match="holds a gallery with data digits, examples 12"
    ):
        main(["gallery", f"--workdir={folder}", "--examples=13", "--only=bit-depth"])


@pytest.mark.slow
def test_a_certified_defence_says_what_no_attack_can_break(folder, monkeypatch):
    from freeadv_jax.gallery import task

    # Trained long enough for a ball this small.
    recipe = task.dataclasses.replace(
        task.RECIPES["digits"], updates=200, features=(8,), epsilon=0.01
    )
    monkeypatch.setitem(task.RECIPES, "digits", recipe)
    with jax.numpy_dtype_promotion("standard"):  # Optax's AdamW relies on it.
        gallery(folder, "--only=certified")
    found = json.loads((folder / "rows" / "certified.json").read_text())
    assert 0 < found["certified"] <= found["adaptive"] <= found["natural"]
    assert not found["masks"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only=bit-dept"], "--only.*bit-dept.*bit-depth"),
        (["--examples=0"], "must be a whole number above 0"),
        (["--data=/nowhere"], "/nowhere"),
    ],
)
def test_a_mistake_is_named_before_anything_is_trained(folder, options, message):
    with pytest.raises(InputError, match=message):
        main(["gallery", f"--workdir={folder}", *options])
    assert not folder.exists()


def test_a_damaged_row_is_named_in_one_line(tmp_path):
    (tmp_path / "jpeg.json").write_text("{}")
    (tmp_path / "jpeg.npz").write_bytes(b"PK half a file")
    with pytest.raises(InputError, match="jpeg.npz is damaged.*delete .*jpeg.json"):
        read_row("jpeg", tmp_path)
