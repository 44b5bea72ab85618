"""benchmarks.convolutions: its counts, its rounds and its record."""

import time

import pytest

pytest.importorskip("torch")

from benchmarks import convolutions
from benchmarks.contender import configured_run
from benchmarks.convolutions import Layer, layers_of
from benchmarks.scaling import forward_flop
from freeadv_jax.devices import onednn
from freeadv_jax.files import read_json

pytestmark = pytest.mark.torch


def test_flop_are_two_for_each_multiplication():
    # Each of 2 * 16 output pixels of 5 features sees 9 pixels of 3 channels.
    assert Layer(4, 3, 5).flop(2) == 2 * (2 * 16 * 5) * (9 * 3)
    assert Layer(8, 3, 5, stride=2).flop(2) == 2 * (2 * 16 * 5) * (9 * 3)


def test_the_layers_of_a_network_have_the_flop_of_its_convolutions():
    run = configured_run("resnet-50", "natural")
    layers = layers_of(run)
    assert layers[Layer(224, 3, 64, stride=2, kernel_size=7)] == 1
    assert layers[Layer(56, 128, 128, stride=2)] == 1
    assert layers[Layer(7, 2048, 512, kernel_size=1)] == 2
    convolutions = sum(layer.flop(1) * count for layer, count in layers.items())
    assert convolutions == forward_flop(run) - 2 * 2048 * 1000


def test_the_first_call_of_a_turn_is_not_counted(monkeypatch):
    # Each call takes half a second, which floats represent exactly.
    clock = iter([0.0, 0.5, 1.0, 1.5])
    calls = []
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(convolutions, "TURN_SECONDS", 1.0)
    assert convolutions.turn(lambda: calls.append(len(calls))) == 0.5
    assert calls == [0, 1, 2]


@pytest.mark.parametrize(("stride", "kernel_size"), [(1, 3), (2, 3), (2, 1), (2, 7)])
def test_all_three_passes_agree_with_pytorch_and_get_a_rate(
    stride, kernel_size, monkeypatch
):
    monkeypatch.setattr(convolutions, "TURN_SECONDS", 1e-4)
    # With fewer than 8 channels PyTorch 2.13 has a wrong 1x1 kernel gradient on AVX2.
    layer = Layer(8, 8, 5, stride, kernel_size)
    rates = convolutions.measure(layer, batch_size=2, rounds=1)
    assert list(rates) == ["forward", "images", "kernel"]
    for rate in rates.values():
        assert list(rate) == ["ours", "channels first", "pytorch"]
        assert min(rate.values()) > 0


@pytest.mark.skipif(onednn.unavailable() is not None, reason="oneDNN is unavailable")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kernels_of_onednn_agree_and_get_a_rate(dtype, monkeypatch):
    monkeypatch.setattr(convolutions, "TURN_SECONDS", 1e-4)
    rates = convolutions.measure(
        Layer(8, 8, 16, 2),
        batch_size=4,
        rounds=1,
        against="onednn",
        dtype=dtype,
        clock="processor",
    )
    for rate in rates.values():
        assert list(rate) == ["ours", "onednn"]
        assert min(rate.values()) > 0


def test_the_record_has_the_layers_of_each_network_with_their_numbers(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(convolutions, "TURN_SECONDS", 1e-4)
    file = tmp_path / "record.json"
    options = "--networks small-cnn --images mnist --batch_size 2 --rounds 1 --out"
    convolutions.main(["convolutions", *options.split(), str(file)])
    results = read_json(file)["results"]
    assert (results["batch"], results["images"]) == (2, "mnist")
    layers = results["networks"]["small-cnn"]
    assert [(name, row["count"], row["flop"]) for name, row in layers.items()] == [
        ("28 x 28, 1 -> 32", 1, 2 * 2 * 28**2 * 9 * 1 * 32),
        ("14 x 14, 32 -> 64", 1, 2 * 2 * 14**2 * 9 * 32 * 64),
    ]


def test_a_pass_that_differs_is_not_timed(monkeypatch):
    ours = convolutions.ours

    def transposed(layer, arrays):
        return ours(layer, (arrays[0], arrays[1][::-1], arrays[2]))

    monkeypatch.setattr(convolutions, "ours", transposed)
    with pytest.raises(AssertionError, match="Not equal"):
        convolutions.measure(Layer(8, 3, 5), batch_size=2, rounds=1)
