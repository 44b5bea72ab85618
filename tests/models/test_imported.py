"""A user's own model is found by the name of its module."""

import sys

import jax
import jax.numpy as jnp
import pytest

from freeadv_jax.errors import InputError
from freeadv_jax.models.imported import import_model, parse_arguments

NETS = """
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx


class Linen(nn.Module):
    num_classes: int = 10
    width: int = 16

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Dense(self.width)(images.reshape(len(images), -1))
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(self.num_classes)(nn.relu(x))


class Module(nnx.Module):
    def __init__(self, image_shape, num_classes, *, rngs, width=16):
        h, w, c = image_shape
        self.hidden = nnx.Linear(h * w * c, width, rngs=rngs)
        self.logits = nnx.Linear(width, num_classes, rngs=rngs)

    def __call__(self, images):
        return self.logits(nnx.relu(self.hidden(images.reshape(len(images), -1))))


def functions(image_shape, num_classes, scale=0.1):
    h, w, c = image_shape

    def init(key, image_shape):
        return {"w": scale * jax.random.normal(key, (h * w * c, num_classes))}

    return init, lambda variables, images: (
        images.reshape(len(images), -1) @ variables["w"]
    )


ten = Linen(width=8)
text = "Linen"


def broken():
    raise RuntimeError("first line\\nsecond line")


def image():
    return lambda key, shape: {}, lambda variables, images: images
"""
SHAPES = {"num_classes": 10, "image_shape": (4, 4, 1)}


@pytest.fixture(autouse=True)
def nets(tmp_path, monkeypatch):
    """Write the module `own_nets` into the working directory."""
    (tmp_path / "own_nets.py").write_text(NETS)
    (tmp_path / "own_broken.py").write_text("import no_such_library\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_nets", raising=False)


@pytest.mark.parametrize("name", ["Linen", "Module", "functions", "ten"])
def test_each_kind_of_model_gives_logits(name):
    model = import_model(f"module:own_nets:{name}", **SHAPES)
    variables = model.init(jax.random.key(0), (4, 4, 1))
    logits = model.logits(variables, jnp.zeros((3, 4, 4, 1)))
    assert logits.shape == (3, 10)


def test_arguments_and_the_number_of_classes_reach_the_class():
    model = import_model(
        "module:own_nets:Linen", "width=5", num_classes=3, image_shape=(4, 4, 1)
    )
    params = model.init(jax.random.key(0), (4, 4, 1))["params"]
    assert params["Dense_0"]["kernel"].shape == (16, 5)
    assert params["Dense_1"]["kernel"].shape == (5, 3)


def test_an_nnx_module_begins_with_weights_of_the_seed():
    def weights(seed):
        model = import_model("module:own_nets:Module", **SHAPES, seed=seed)
        return jax.tree.leaves(model.init(jax.random.key(0), (4, 4, 1)))

    equal = [(a == b).all() for a, b in zip(weights(3), weights(3), strict=True)]
    assert all(equal)
    other = [(a == b).all() for a, b in zip(weights(3), weights(4), strict=True)]
    assert not all(other)


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("", {}),
        ('{"width": 16, "kind": "a"}', {"width": 16, "kind": "a"}),
        ("width=16, rate=8/255", {"width": 16, "rate": 8 / 255}),
        (
            "kind=relu,bias=true,last=False",
            {"kind": "relu", "bias": True, "last": False},
        ),
        ("kind='a b',sides=[3,4]", {"kind": "a b", "sides": (3, 4)}),
        ("kind=fgsm-rs,shift=-0.5", {"kind": "fgsm-rs", "shift": -0.5}),
    ],
)
def test_arguments_are_read_as_python_literals(text, arguments):
    assert parse_arguments(text) == arguments


@pytest.mark.parametrize(
    "text", ["16", "width=", "{'a': 1}", "width=1)(", "**x", "a=1;b=2"]
)
def test_unusable_arguments_are_refused(text):
    with pytest.raises(
        InputError, match="must be a JSON object or name=value"
    ) as raised:
        parse_arguments(text)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("own_nets", "", "must be module:PACKAGE.MODULE:NAME"),
        (":Linen", "", "must be module:PACKAGE.MODULE:NAME"),
        ("no_nets:Net", "", "ModuleNotFoundError: No module named 'no_nets'"),
        ("own_broken:Net", "", "No module named 'no_such_library'"),
        ("own_nets:Lynen", "", "has no 'Lynen'; did you mean 'Linen'?"),
        ("own_nets:text", "", "is a str, must be a Flax module class"),
        ("own_nets:Linen", "wide=3", "unexpected keyword argument 'wide'"),
        ("own_nets:ten", "width=3", "must be empty, because"),
        ("own_nets:broken", "", "RuntimeError: first line"),
        ("own_nets:image", "", "must be logits (2, 10), one a class"),
        ("own_nets:jnp", "", "is a module, must be a Flax module class"),
        ("own_nets:Linen", "num_classes=4", "gives (2, 4)"),
        ("own_nets:functions", "image_shape=(5,5,1)", "cannot take images of shape"),
        ("own_nets:parse", "", "has no 'parse'"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_in_one_line(name, arguments, reason):
    with pytest.raises(InputError) as raised:
        import_model(f"module:{name}", arguments, **SHAPES)
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)
