"""The compiled step communicates between devices as little as it needs to."""

import functools
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.config import base_config
from freeadv_jax.devices.parallel import mean_over_devices
from freeadv_jax.runs.build import (
    configured_optimizer,
    configured_steps,
    initial_state_of,
    model_of,
)
from freeadv_jax.runs.folder import Run

# The metrics are loss and accuracy, and of Free-m the alignment of gradients.
METRICS = {"free": 3, "pgd": 2, "trades": 2}
_BYTES = {"f32": 4, "s32": 4, "u32": 4}
_COLLECTIVE = re.compile(
    r" = (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    r"|collective-broadcast)(?:-start)?\("
)


def lines_of(program):
    """Yield (computation, line) for each line of an optimised HLO module."""
    computation = None
    for line in program.splitlines():
        if opened := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line):
            computation = opened[1]
        yield computation, line


def collectives(program):
    """Return (computation, kind, bytes) for each collective."""
    found = []
    for computation, line in lines_of(program):
        if match := _COLLECTIVE.search(line):
            sizes = [
                _BYTES[dtype]
                * math.prod(int(side) for side in shape.split(",") if side)
                for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", match[1])
            ]
            found.append((computation, match[2], sum(sizes)))
    return found


def lowered_step(network, *, sync, method="free"):
    """Return (abstract state, lowered step) for 32-pixel images; nothing is run."""
    config = base_config()
    config.method = method
    config.batch_size = 16
    config.model.name = network
    config.model.sync_batch_norm = sync
    config.attack.replays = 4
    run = Run(pathlib.Path(), config, num_classes=1000, image_shape=(32, 32, 3))
    state = jax.eval_shape(lambda: initial_state_of(run))
    batch = {
        "image": jax.ShapeDtypeStruct((16, 32, 32, 3), np.uint8),
        "label": jax.ShapeDtypeStruct((16,), np.int32),
    }
    steps = configured_steps(
        config, model=model_of(run), tx=configured_optimizer(run.config)
    ).program
    return state, steps.lower(state, (batch,), np.int32(1))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def innermost_loops(program):
    """Return the bodies of loops that contain no other loop."""
    loops = {
        match[1]: computation
        for computation, line in lines_of(program)
        if (match := re.search(r" while\(.*body=%?([\w.-]+)", line))
    }
    return set(loops) - set(loops.values())


@pytest.mark.parametrize(
    ("network", "method"),
    [
        ("small-cnn-bn", "free"),
        ("small-cnn-bn", "pgd"),
        ("small-cnn-bn", "trades"),
        # This network has more arrays than the CPU backend merges all-reduces of by
        # itself.
        pytest.param("resnet-50", "free", marks=pytest.mark.slow),
    ],
)
def test_an_update_is_one_all_reduce_of_gradient_statistics_and_metrics(
    network, method
):
    state, lowered = lowered_step(network, sync=False, method=method)
    # Before merging there is one for the model and one for the metrics.
    assert lowered.as_text().count("stablehlo.all_reduce") == 2
    program = lowered.compile().as_text()
    ((computation, kind, size),) = collectives(program)
    assert kind == "all-reduce"
    assert size == 4 * (
        count(state.params) + count(state.collections) + METRICS[method]
    )
    # Free-m updates inside its loop over replays. The others update after the loop of
    # their attack.
    assert (computation in innermost_loops(program)) == (method == "free")
    if network == "resnet-50":
        assert count(state.params) == 25_557_032
        assert len(jax.tree.leaves((state.params, state.collections))) > 256


def operations_of_a_mean(devices):
    tree = {"weight": jnp.ones((3, 4)), "bias": jnp.ones(3)}
    mean = functools.partial(mean_over_devices, axis_name="devices")
    traced = jax.make_jaxpr(mean, axis_env=[("devices", devices)])(tree)
    return {equation.primitive.name for equation in traced.eqns}


def test_a_single_device_gathers_nothing():
    assert operations_of_a_mean(1) == set()
    assert {"concatenate", "psum"} <= operations_of_a_mean(2)


@pytest.mark.parametrize("backend", ["gpu", "tpu"])
def test_nothing_is_gathered_where_xla_merges_collectives(backend, monkeypatch):
    """The mean does not change."""
    rng = np.random.default_rng(0)
    tree = {
        "weight": rng.normal(size=(8, 3, 4)).astype(np.float32),
        "bias": rng.normal(size=(8, 3)).astype(np.float32),
    }

    def mean():
        return jax.pmap(lambda tree: mean_over_devices(tree, "devices"), "devices")(
            tree
        )

    gathered = mean()
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert operations_of_a_mean(1) == set()
    assert "concatenate" not in operations_of_a_mean(2)
    apart = mean()
    for name, values in tree.items():
        np.testing.assert_array_equal(apart[name], gathered[name])
        np.testing.assert_allclose(apart[name][3], values.mean(0), atol=1e-6)


@pytest.mark.slow
def test_synchronised_batch_norm_sends_four_numbers_a_channel():
    """BatchNorm sends two moments forward and two gradients back."""
    state, lowered = lowered_step("resnet-50", sync=True)
    program = lowered.compile().as_text()
    found = collectives(program)
    assert {kind for _, kind, _ in found} == {"all-reduce"}
    assert {computation for computation, _, _ in found} <= innermost_loops(program)
    *small, largest = sorted(size for _, _, size in found)
    model = 4 * (count(state.params) + count(state.collections))
    assert largest >= model
    channels = count(state.collections) // 2
    assert sum(small) + largest <= model + 4 * (4 * channels + METRICS["free"])
    # The widest layer of the network has 2048 channels.
    assert max(small) <= 2 * 4 * 2 * 2048
    layers = len(jax.tree.leaves(state.collections)) // 2
    assert layers == 53
    assert len(small) <= 2 * layers
