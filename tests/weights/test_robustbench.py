"""The table of RobustBench's entries in docs/weights.md: each of them loads as it says.

The definitions of the `robustbench` package give the exact names and shapes. Their weights
lie elsewhere; here they are drawn at random.
"""

import functools
import importlib.util
import itertools
import pathlib
import sys
import types

import jax
import numpy as np
import pytest
import timm_models

import freeadv_jax as fa
from freeadv_jax.weights.layouts import nearest

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "weights.md"
DATA = {"CIFAR-10": "cifar10", "CIFAR-100": "cifar100", "ImageNet": "imagenet"}
# Networks of half a gigabyte and more, and other sizes of one form: their tensors are
# checked, and the logits of others of the same form.
LARGE = (
    "wrn-34-15",
    "wrn-34-20",
    "wrn-34-20-silu",
    "wrn-70-16",
    "wrn-70-16-silu",
    "wrn-82-8-silu",
    "wrn-94-16-silu",
    "wrn-106-16-silu",
    "wrn-a4",
    "convnext-s-cvst",
    "convnext-b",
    "convnext-b-cvst",
    "convnext-l",
    "convnext-l-cvst",
    "vit-b",
    "vit-b-cvst",
    "xcit-s12",
    "xcit-m12",
    "xcit-l12",
    "cifar-xcit-m12",
    "cifar-xcit-l12",
)
# The names under which the package registers networks that its table calls otherwise.
REGISTERED = {
    "Debenedetti2022Light_XCiT-{}12": "debenedetti2022light_xcit_{}12_{data}_linf",
    "Tian2022Deeper_DeiT-{}": "tian2022deeper_deit_{}_{data}_corruptions",
}


def table():
    """Return a dict for each entry of the table."""
    rows = []
    lines = PAGE.read_text().split("| data, threat |")[1].splitlines()[2:]
    for line in itertools.takewhile(lambda line: line.startswith("|"), lines):
        where, model, mean, std, names = (
            cell.strip() for cell in line.strip("|").split("|")
        )
        data, threat = where.split(", ")
        rows += [
            {
                "data": DATA[data],
                "threat": threat,
                "entry": name,
                "model": model.strip("`"),
                "mean": tuple(map(float, mean.split(", "))),
                "std": tuple(map(float, std.split(", "))),
            }
            for name in names.split(", ")
        ]
    return rows


ROWS = table()


def test_the_table_has_each_entry_once_and_at_least_forty():
    keys = [(row["data"], row["threat"], row["entry"]) for row in ROWS]
    assert len(set(keys)) == len(keys)
    assert len({(row["data"], row["entry"]) for row in ROWS}) >= 40
    assert {row["data"] for row in ROWS} == set(DATA.values())


@functools.cache
def definitions():
    """Return {(data, threat, entry): function that makes the network}."""
    pytest.importorskip("torch")
    found = importlib.util.find_spec("robustbench")
    if found is None:
        pytest.skip("could not find robustbench")
    # The package itself imports what pip does not install with it, pkg_resources and
    # autoattack; its definitions need neither.
    package = types.ModuleType("robustbench")
    package.__path__ = found.submodule_search_locations
    sys.modules["robustbench"] = package
    zoo = timm_models.imported("robustbench.model_zoo")
    return {
        (data.value, threat.value, name): entry["model"]
        for data, threats in zoo.model_dicts.items()
        for threat, entries in threats.items()
        for name, entry in entries.items()
    }


def definition(row):
    make = definitions()[row["data"], row["threat"], row["entry"]]
    for pattern, registered in REGISTERED.items():
        start, end = pattern.split("{}")
        if row["entry"].startswith(start):
            size = row["entry"].removeprefix(start).removesuffix(end).lower()
            # The entry itself would download the weights.
            name = registered.format(size, data=row["data"])
            return lambda: timm_models.imported("timm").create_model(name)
    return make


def label(row):
    return f"{row['data']}-{row['threat']}-{row['entry']}"


def normalization(module):
    """Return the means and the deviations that a network of the package holds."""
    held = {
        name.split(".")[-1]: tensor.flatten().tolist()
        for name, tensor in module.named_buffers()
        if name.split(".")[-1] in ("mu", "sigma", "mean", "std")
    }
    return [
        tuple(held.get(a, held.get(b, ())))
        for a, b in (("mu", "mean"), ("sigma", "std"))
    ]


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("row", ROWS, ids=label)
def test_the_tensors_of_an_entry_are_those_of_the_network(row, monkeypatch):
    make = definition(row)
    import torch

    # Without drawing weights, which takes seconds and touches gigabytes.
    for draw in ("normal_", "uniform_"):
        monkeypatch.setattr(torch.Tensor, draw, lambda self, *_, **__: self)
    module = make()
    tensors = {
        name: jax.ShapeDtypeStruct(tuple(tensor.shape), np.float32)
        for name, tensor in module.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    match = nearest(tensors)
    assert row["model"] in match.models
    for name, expected in match.expected.items():
        assert tensors[name].shape == expected.shape, name
    rest = {name for name in tensors if name not in match.expected}
    assert {name for name in rest if not name.startswith("sub_block1.")} <= {
        parent + name
        for parent in ("", "normalize.")
        for name in ("mu", "sigma", "mean", "std")
    }
    for held, listed in zip(
        normalization(module), (row["mean"], row["std"]), strict=True
    ):
        if held:
            np.testing.assert_allclose(held, listed, rtol=1e-6)
    # Tensors show neither the activation nor what a shortcut projects.
    kinds = {type(part).__name__ for part in module.modules()}
    silu = row["model"].endswith(("-silu", "wrn-a4"))
    assert not kinds & ({"ReLU"} if silu else {"SiLU", "Swish"})
    if row["model"].startswith("preact") and not silu:
        activated = "PreActBlockV2" in kinds or any(
            getattr(part, "out_shortcut", False) for part in module.modules()
        )
        assert activated != ("input" in row["model"])


def different():
    """Return the first row of each network and kind of normalisation."""
    first = {}
    for row in ROWS:
        if row["model"] not in LARGE:
            plain = row["mean"] if len(row["mean"]) == 1 else None
            first.setdefault((row["model"], plain), row)
    return first.values()


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("row", different(), ids=label)
def test_the_logits_of_an_entry_are_those_of_its_definition(row, tmp_path):
    make = definition(row)
    import torch
    import torch_models

    module = torch_models.randomized(make())
    torch.save({"state_dict": module.state_dict()}, tmp_path / "entry.pt")
    side = 64 if row["data"] == "imagenet" else 32
    if row["model"].startswith("vit"):  # It refuses other sides.
        side = 224
    classifier = fa.load(
        tmp_path / "entry.pt",
        model=row["model"],
        image_shape=(side, side, 3),
        mean=row["mean"],
        std=row["std"],
    )
    images = np.random.default_rng(0).uniform(size=(2, side, side, 3))
    images = (images * [[[[1.0]]], [[[0.2]]]]).astype(np.float32)
    theirs = torch_models.logits(module, images, 0, 1)
    assert theirs.std() > 0.1
    assert np.abs(theirs[0] - theirs[1]).max() > 0.01
    np.testing.assert_allclose(classifier(images), theirs, atol=1e-4)
