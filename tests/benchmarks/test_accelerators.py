"""Steps compiled for GPU and TPU without either, and the figures of the programs."""

import importlib.metadata
import re
import types
from functools import partial

import jax
import numpy as np
import pytest

from benchmarks import accelerators, step_changes
from benchmarks.contender import configured_run, on_one_batch
from benchmarks.readme import RESULTS
from freeadv_jax.attacks import campaign
from freeadv_jax.attacks.apgd import APGD
from freeadv_jax.attacks.attack import split_numbers
from freeadv_jax.attacks.fab import FAB
from freeadv_jax.attacks.pgd import PGD
from freeadv_jax.attacks.square import Square
from freeadv_jax.devices import parallel
from freeadv_jax.devices.parallel import REPLICATED, SPLIT
from freeadv_jax.errors import InputError
from freeadv_jax.files import read_json
from freeadv_jax.models import relu
from freeadv_jax.runs.build import (
    configured_optimizer,
    configured_steps,
    initial_state_of,
    model_of,
)
from freeadv_jax.training import state

# The loop has a convolution beside an all-reduce and one after it, a fusion that reads half
# of an array, and a transpose. A copy before the loop must not count.
PROGRAM = """\
HloModule jit_train_steps, is_scheduled=true

%fused_add (param_0: f32[8], param_1: f32[4]) -> f32[4] {
  %param_0 = f32[8]{0} parameter(0)
  %slice.1 = f32[4]{0} slice(%param_0), slice={[0:4]}
  %param_1 = f32[4]{0} parameter(1)
  ROOT %add.1 = f32[4]{0} add(%slice.1, %param_1)
}

%body (carried: (s32[], f32[8], bf16[1,2,2,4])) -> (s32[], f32[8], bf16[1,2,2,4]) {
  %carried = (s32[], f32[8]{0}, bf16[1,2,2,4]{3,2,1,0}) parameter(0)
  %number = s32[] get-tuple-element(%carried), index=0
  %vector = f32[8]{0} get-tuple-element(%carried), index=1
  %images = bf16[1,2,2,4]{3,2,1,0} get-tuple-element(%carried), index=2
  %kernel = bf16[4,1,1,4]{3,2,1,0} constant({...})
  %gradient = f32[2,4]{1,0} all-reduce-start(%summed), replica_groups={}
  %conv.1 = (bf16[1,2,2,4]{3,2,1,0}, u8[0]{0}) custom-call(%images, %kernel), \
custom_call_target="__cudnn$convForward"
  %done = f32[2,4]{1,0} all-reduce-done(%gradient)
  %late = f32[2]{0} all-reduce-start(%other), replica_groups={}
  %done.1 = f32[2]{0} all-reduce-done(%late)
  %conv.2 = (bf16[1,2,2,4]{3,2,1,0}, u8[0]{0}) custom-call(%images, %kernel), \
custom_call_target="__cudnn$convForward"
  %small = f32[4]{0} bitcast(%done)
  %fusion.1 = f32[4]{0} fusion(%vector, /*index=1*/%small), kind=kLoop, calls=%fused_add
  %transpose.1 = bf16[4,1,2,2]{3,2,1,0} transpose(%images), dimensions={3,0,1,2}
  ROOT %tuple = (s32[], f32[8]{0}, bf16[1,2,2,4]{3,2,1,0}) tuple(%number, %vector)
}

ENTRY %main (given: f32[1000]) -> f32[1000] {
  %given = f32[1000]{0} parameter(0)
  %copy.1 = f32[1000]{0} copy(%given)
  ROOT %while.1 = (s32[], f32[8]{0}) while(%copy.1), condition=%until, body=%body
}
"""


def test_only_the_kernels_and_bytes_of_loop_bodies_count():
    assert accelerators.traffic(PROGRAM) == {
        # Images in and out, and the kernel.
        "convolutions": {"count": 2, "bytes": 2 * (32 + 32 + 32)},
        # The fusion's half of the vector, its other operand and its result; then the
        # transpose.
        "other_kernels": {"count": 2, "bytes": (16 + 16 + 16) + (32 + 32)},
        # 32 bytes travel beside a convolution, 8 bytes beside none.
        "all_reduces": {"count": 2, "bytes": 40, "convolutions_beside": 32 / 40},
    }


def recorded(target):
    """Return the bytes of all kernels but convolutions by chips, network and variant."""
    results = read_json(RESULTS / f"accelerators_{target}.json")["results"]
    return {
        (row["devices"], row["network"], row["variant"]): (
            row["bytes"] if "bytes" in row else row["other_kernels"]["bytes"]
        )
        for row in results["rows"]
    }


@pytest.mark.parametrize("network", accelerators.NETWORKS)
def test_by_the_record_an_h100_moves_less_than_with_either_change_undone(network):
    moved = recorded("h100")
    narrow = moved[1, network, accelerators.NARROW]
    assert moved[1, network, step_changes.AS_IT_IS] < 0.92 * narrow
    # docs/performance.md calls this half, for networks on small images.
    gathered = moved[8, network, accelerators.ONE_VECTOR]
    share = 0.75 if network == "resnet-50" else 0.55
    assert moved[8, network, step_changes.AS_IT_IS] < share * gathered


@pytest.mark.parametrize("network", ["preact-resnet-18", "wrn-32-10-madry"])
def test_by_the_record_a_v5e_moves_less_than_with_gradients_in_one_vector(network):
    moved = recorded("v5e")
    gathered = moved[8, network, accelerators.ONE_VECTOR]
    assert moved[8, network, step_changes.AS_IT_IS] < 0.85 * gathered


@pytest.mark.parametrize("target", accelerators.TARGETS)
def test_a_missing_compiler_is_reported_in_one_line_with_the_extra(target, monkeypatch):
    def missing(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    extra = accelerators.TARGETS[target].extra
    with pytest.raises(
        InputError, match=rf"no compiler for {target}: .*'\.\[{extra}\]'"
    ):
        accelerators.chips(target, 1)


def test_more_chips_than_are_described_are_refused(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "1.0")
    described = types.SimpleNamespace(devices=list("12345678"))
    monkeypatch.setattr(
        accelerators.topologies, "get_topology_desc", lambda *_, **__: described
    )
    assert accelerators.chips("v5e", 2) == ["1", "2"]
    with pytest.raises(InputError, match="--devices=9: v5e is described with 8"):
        accelerators.chips("v5e", 9)


def test_a_batch_that_does_not_divide_over_the_chips_is_refused():
    run = configured_run("small-cnn", "natural", batch_size=9)
    with pytest.raises(InputError, match="a global batch of 9 .* over 2 devices"):
        accelerators.compiled_step(run, jax.devices()[:2], "gpu")


@pytest.mark.parametrize("method", ["natural", "free-2", "2-pgd"])
@pytest.mark.parametrize("network", ["resnet-50", "small-cnn-bn"])
def test_no_step_scatters(network, method, monkeypatch):
    """On GPU a scatter adds in a different order in each run, or is sorted first."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    run = configured_run(network, method, images="cifar10", batch_size=16)
    state = jax.eval_shape(lambda: initial_state_of(run))
    batch = {
        "image": jax.ShapeDtypeStruct((16, *run.image_shape), np.uint8),
        "label": jax.ShapeDtypeStruct((16,), np.int32),
    }
    steps = configured_steps(
        run.config, model=model_of(run), tx=configured_optimizer(run.config)
    ).program
    text = steps.lower(state, (batch,), np.int32(1)).as_text()
    assert "stablehlo.convolution" in text
    assert "scatter" not in text


@pytest.mark.thorough
def test_the_form_of_the_step_for_gpu_and_tpu_computes_the_same_as_that_for_cpu(
    monkeypatch,
):
    """Convolutions' gradients, BatchNorm's sums and the all-reduce differ."""

    def losses():
        run = configured_run("wrn-10-1", "free-2", batch_size=16)
        contender = on_one_batch(run, per_call=1)
        metrics = [contender.call(next(contender.batches)) for _ in range(3)]
        return [float(each["loss"]) for each in metrics], contender.program()

    on_cpu, program = losses()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    in_other_form, other_program = losses()
    assert len(set(on_cpu)) == 3
    np.testing.assert_allclose(in_other_form, on_cpu, rtol=1e-3)
    assert "reduce-window" in program
    assert "reduce-window" not in other_program


def test_compiling_for_other_devices_restores_the_real_ones():
    before = jax.default_backend(), jax.device_count(), parallel.sharding(0)
    with accelerators.compiling_for(jax.devices()[:1], "gpu"):
        assert (jax.default_backend(), jax.device_count()) == ("gpu", 1)
        assert parallel.sharding(0).mesh.size == 1
    assert (jax.default_backend(), jax.device_count(), parallel.sharding(0)) == before


def test_every_variant_changes_only_the_function_that_it_names(monkeypatch):
    monkeypatch.setattr(relu, "_at_least_float32", relu._at_least_float32)
    monkeypatch.setattr(state, "mean_over_devices", state.mean_over_devices)
    unchanged = relu._at_least_float32, state.mean_over_devices
    for variant, which in ((accelerators.NARROW, 0), (accelerators.ONE_VECTOR, 1)):
        accelerators.VARIANTS[variant]()
        now = relu._at_least_float32, state.mean_over_devices
        assert now[which] is not unchanged[which]
        assert now[1 - which] is unchanged[1 - which]
        relu._at_least_float32, state.mean_over_devices = unchanged
    assert set(accelerators.VARIANTS) == {
        step_changes.AS_IT_IS,
        accelerators.NARROW,
        accelerators.ONE_VECTOR,
    }


# Large enough that XLA sends the gradients in several parts.
LARGE = {"network": "preact-resnet-18", "batch_size": 128}


def chips_of(target, number):
    """Return described chips; skip the test without their compiler."""
    try:
        return accelerators.chips(target, number)
    except InputError as fault:
        pytest.skip(str(fault))


def compiled(target, devices, method, *, network="small-cnn-bn", batch_size=16):
    """Return the run and its step compiled in bfloat16."""
    chips = chips_of(target, devices)
    run = configured_run(network, method, dtype="bfloat16", batch_size=batch_size)
    platform = accelerators.TARGETS[target].platform
    return run, accelerators.compiled_step(run, chips, platform)


def for_accelerators(test):
    """Mark a test whose programs JAX's cache keeps but cannot read back."""
    unread = pytest.mark.filterwarnings("ignore:Error reading persistent compilation")
    return pytest.mark.accelerators(unread(test))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@for_accelerators
@pytest.mark.parametrize("method", ["natural", "free-2", "2-pgd"])
@pytest.mark.parametrize("target", accelerators.TARGETS)
def test_a_step_compiles_for_eight_chips_and_keeps_its_state_in_place(target, method):
    run, program = compiled(target, 8, method)
    memory = accelerators.program_memory(program)
    params = jax.eval_shape(lambda: initial_state_of(run)).params
    # The weights and the momentum, each in float32.
    assert memory["donated"] >= 2 * 4 * count(params)


@for_accelerators
def test_convolutions_for_gpu_are_cudnns_in_bfloat16_with_channels_last():
    _, program = compiled("h100", 1, "free-2", network="wrn-10-1")
    lines = [line for line in program.as_text().splitlines() if "__cudnn$conv" in line]
    # The stem, two in each of three units and two projections, each with two gradients.
    assert len(lines) == 3 * (1 + 3 * 2 + 2)
    assert all("->b01f" in line for line in lines)
    assert all(" = (bf16[" in line for line in lines)


@for_accelerators
def test_a_gpu_moves_less_where_rectifiers_gradients_are_chosen_in_float32(monkeypatch):
    def other_kernels():
        _, program = compiled("h100", 1, "free-2", **LARGE)
        return accelerators.traffic(program.as_text())["other_kernels"]

    as_it_is = other_kernels()
    monkeypatch.setattr(relu, "_at_least_float32", lambda array: array)
    assert as_it_is["bytes"] < 0.95 * other_kernels()["bytes"]


@for_accelerators
def test_gradients_reach_other_gpus_beside_the_backward_pass(monkeypatch):
    def read():
        run, program = compiled("h100", 8, "free-2", **LARGE)
        return run, accelerators.traffic(program.as_text())

    run, as_it_is = read()
    state_ = jax.eval_shape(lambda: initial_state_of(run))
    assert as_it_is["all_reduces"]["bytes"] >= 4 * (
        count(state_.params) + count(state_.collections)
    )
    monkeypatch.setattr(state, "mean_over_devices", state.mean_over_devices)
    step_changes.one_vector_all_reduced()
    _, gathered = read()
    assert as_it_is["other_kernels"]["bytes"] < gathered["other_kernels"]["bytes"]
    assert (
        as_it_is["all_reduces"]["convolutions_beside"]
        > gathered["all_reduces"]["convolutions_beside"]
    )


@for_accelerators
@pytest.mark.parametrize(
    "attack",
    [
        PGD("linf", 0.1, steps=20, step_size=0.01),
        APGD("linf", 0.1),
        APGD("l2", 0.5, loss="dlr", goal="multi-target", targets=9),
        FAB("linf", 0.1, goal="multi-target", targets=9),
        Square("linf", 0.1),
    ],
    ids=["pgd", "apgd", "apgd-t", "fab-t", "square"],
)
@pytest.mark.parametrize("target", accelerators.TARGETS)
def test_an_attacks_steps_compile(target, attack):
    chips = chips_of(target, 2)
    run = configured_run("small-cnn", "natural")
    variables = {"params": jax.eval_shape(lambda: initial_state_of(run)).params}
    logits_fn = jax.tree_util.Partial(
        partial(model_of(run).apply, train=False), variables
    )
    kind, numbers = split_numbers(attack)
    settings = {"attack": numbers, "seed": np.uint32(0)}
    images = np.zeros((16, *run.image_shape), np.uint8)
    slots = campaign._Slots(images, np.zeros(16, np.int32), 16).batch
    start = partial(campaign._start, kind=kind)
    layout = REPLICATED, REPLICATED, REPLICATED, SPLIT, SPLIT
    running = jax.eval_shape(start, logits_fn, settings, slots)
    arguments = logits_fn, settings, np.int32(10), slots, running
    with accelerators.compiling_for(chips, accelerators.TARGETS[target].platform):
        advance = partial(campaign._advance, kind=kind, loop=True)
        program = parallel.pmap(advance, inputs=layout, outputs=SPLIT)
        compiled = program.lower(*accelerators.laid_out(layout, arguments)).compile()
    assert re.search(r"cudnn\$conv| convolution\(", compiled.as_text())
