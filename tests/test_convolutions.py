"""What benchmarks.convolutions counts and holds against each other."""

import time

import pytest

pytest.importorskip("torch")

from benchmarks import convolutions
from benchmarks.convolutions import Layer

pytestmark = pytest.mark.torch


def test_flop_are_two_for_each_multiplication():
    # Each of 2 * 16 output pixels of 5 features sees 9 pixels of 3 channels.
    assert Layer(4, 3, 5).flop(2) == 2 * (2 * 16 * 5) * (9 * 3)
    assert Layer(8, 3, 5, stride=2).flop(2) == 2 * (2 * 16 * 5) * (9 * 3)


def test_first_call_of_a_turn_is_not_counted(monkeypatch):
    # Half a second each, in whole numbers of binary places.
    clock = iter([0.0, 0.5, 1.0, 1.5])
    calls = []
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(convolutions, "TURN_SECONDS", 1.0)
    assert convolutions.turn(lambda: calls.append(len(calls))) == 0.5
    assert calls == [0, 1, 2]


@pytest.mark.parametrize("stride", [1, 2])
def test_all_three_passes_agree_with_pytorch_and_get_a_rate(stride, monkeypatch):
    monkeypatch.setattr(convolutions, "TURN_SECONDS", 1e-4)
    rates = convolutions.measure(Layer(8, 3, 5, stride), batch_size=2, rounds=1)
    assert list(rates) == ["forward", "images", "kernel"]
    for rate in rates.values():
        assert rate["ours"] > 0 < rate["pytorch"]


def test_a_pass_that_differs_is_not_timed(monkeypatch):
    ours = convolutions.ours

    def transposed(layer, arrays):
        return ours(layer, (arrays[0], arrays[1][::-1], arrays[2]))

    monkeypatch.setattr(convolutions, "ours", transposed)
    with pytest.raises(AssertionError, match="Not equal"):
        convolutions.measure(Layer(8, 3, 5), batch_size=2, rounds=1)
