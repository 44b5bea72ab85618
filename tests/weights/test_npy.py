"""Weights in pickled .npy files: Haiku's networks, state_dicts, and what is refused."""

import jax
import numpy as np
import pytest
from torch_states import wide_state

import freeadv_jax as fa
from freeadv_jax.errors import InputError
from freeadv_jax.weights.npy import read_pickled


def saved(path, content):
    """Write `content` as `np.save` pickles it, and return the path."""
    array = np.empty((), object)
    array[()] = content
    np.save(path, array, allow_pickle=True)
    return path


def drawn(tree):
    """Return positive random arrays of the shapes in `tree`."""
    draw = np.random.default_rng(0).uniform
    return jax.tree.map(lambda x: draw(0.5, 1.5, x.shape).astype(np.float32), tree)


def test_a_state_dict_of_arrays_loads_as_from_safetensors(tmp_path):
    state = {name: np.asarray(x) for name, x in wide_state().items()}
    half = {name: x.astype(np.float16) for name, x in state.items()}
    images = np.random.default_rng(0).uniform(size=(2, 32, 32, 3)).astype(np.float32)
    options = {"mean": 0.0, "std": 1.0}
    for content in (state, {"state_dict": state, "epoch": 3}):
        classifier = fa.load(saved(tmp_path / "x.npy", content), **options)
        assert classifier.description["model"] == "wrn-10-1"
        logits = classifier(images)
        if content is state:
            first = logits
        np.testing.assert_array_equal(logits, first)
    rounded = fa.load(saved(tmp_path / "half.npy", half), **options)
    np.testing.assert_allclose(rounded(images), first, rtol=0.01, atol=0.01)


def test_haikus_names_and_shapes_become_those_of_the_pytorch_code(tmp_path):
    block = "wide_res_net/~/resnet_lay_1_block_0/~"
    kernel = np.arange(3 * 3 * 2 * 4.0).reshape(3, 3, 2, 4)
    parameters = {
        f"{block}/conv_0": {"w": kernel},
        f"{block}/batchnorm_0": {
            "scale": np.full((1, 1, 1, 2), 3.0),
            "offset": np.full((1, 1, 1, 2), 4.0),
        },
        "wide_res_net/~/logits": {"w": np.ones((4, 10)), "b": np.zeros(10)},
    }
    average = {"hidden": np.ones((1, 1, 1, 2)), "counter": np.array(7)}
    state = {
        f"{block}/batchnorm_0/~/{name}": average | {"average": np.full((1, 1, 1, 2), x)}
        for name, x in (("mean_ema", 5.0), ("var_ema", 6.0))
    }
    np.save(tmp_path / "x.npy", np.array([parameters, state], object))
    found = read_pickled(tmp_path / "x.npy")
    norm = "layer.1.block.0.batchnorm_0"
    assert {name: array.shape for name, array in found.items()} == {
        "layer.1.block.0.conv_0.weight": (4, 2, 3, 3),
        f"{norm}.weight": (2,),
        f"{norm}.bias": (2,),
        f"{norm}.running_mean": (2,),
        f"{norm}.running_var": (2,),
        "logits.weight": (10, 4),
        "logits.bias": (10,),
    }
    assert found["layer.1.block.0.conv_0.weight"][3, 1, 2, 0] == kernel[2, 0, 1, 3]
    leaves = ("weight", "bias", "running_mean", "running_var")
    assert [found[f"{norm}.{leaf}"][0] for leaf in leaves] == [3.0, 4.0, 5.0, 6.0]


@pytest.mark.haiku
@pytest.mark.parametrize("depth", [10, 16])
def test_a_network_in_haiku_has_the_same_logits_here(depth, tmp_path):
    pytest.importorskip("haiku")
    import haiku_models

    init, apply = haiku_models.wide_resnet(depth, 2, 10)
    images = np.random.default_rng(0).uniform(size=(2, 32, 32, 3)).astype(np.float32)
    parameters, state = jax.tree.map(np.asarray, init(jax.random.key(0), images, True))
    scaled = jax.tree.map(lambda x: x - 1, drawn(parameters))
    parameters = jax.tree.map(lambda x, r: x + 0.1 * r, parameters, scaled)
    state = drawn(state)
    np.save(tmp_path / "x.npy", np.array([parameters, state], object))
    classifier = fa.load(tmp_path / "x.npy", mean=0.25, std=0.5)
    assert classifier.description["model"] == f"wrn-{depth}-2-silu"
    expected, _ = apply(parameters, state, (images - 0.25) / 0.5, False)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(classifier(images), expected, rtol=1e-4, atol=1e-4)


class Malice:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return self.path.touch, ()


def test_a_pickle_that_could_run_code_is_refused_unread(tmp_path):
    path = saved(tmp_path / "x.npy", {"conv1.weight": Malice(tmp_path / "harmed")})
    with pytest.raises(InputError, match="a pickle of arrays alone: it asks for"):
        fa.load(path)
    assert not (tmp_path / "harmed").exists()


def test_what_holds_no_named_arrays_is_refused_in_one_line(tmp_path):
    whole = saved(tmp_path / "whole.npy", {"w": np.ones(100)}).read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:-20])
    (tmp_path / "text.npy").write_bytes(b"no array")
    np.save(tmp_path / "single.npy", np.ones(3))
    saved(tmp_path / "list.npy", [1, 2, 3])
    saved(tmp_path / "object.npy", {"w": np.array([{}], object)})
    np.save(
        tmp_path / "optax.npy", np.array([{"a": {"count": np.ones(1)}}, {}], object)
    )
    for name, reason in (
        (
            "cut.npy",
            "cannot be read as a pickle of arrays alone: pickle data was trunc",
        ),
        ("text.npy", "cannot be read as a pickle of arrays alone: "),
        ("single.npy", "holds a single array; allowed: a pickled dict of named arrays"),
        ("list.npy", "holds a list; allowed: a state_dict"),
        ("object.npy", "w is no array of numbers"),
        ("optax.npy", "holds arrays that are not Haiku's w, b, scale, offset: a/count"),
        ("missing.npy", "there is no file"),
    ):
        with pytest.raises(InputError) as raised:
            fa.load(tmp_path / name)
        assert reason in str(raised.value), name
        assert "\n" not in str(raised.value)
