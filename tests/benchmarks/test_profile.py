"""benchmarks.profile: kinds of operations, and the time of each."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from tiny_run import ROOT, environment

from benchmarks import profile
from benchmarks.profile import (
    FORWARD,
    GRADIENTS,
    KINDS,
    NOTHING,
    OTHERS,
    PRODUCTS,
    SUMS,
    TRANSPOSES,
)

PROGRAM = """
  %conv.1 = f32[8,4,4,6]{3,2,1,0} convolution(%a, %b), window={size=3x3 pad=1_1x1_1}, metadata={op_name="jit(whole)/jvp(Classifier)/Conv_0/conv"}
  %conv.2 = f32[8,4,4,5]{3,2,1,0} convolution(%c, %d), window={size=3x3 pad=1_1x1_1}, metadata={op_name="jit(whole)/transpose(jvp(Classifier))/Conv_0/conv"}
  %conv.3 = f32[5,3,3,6]{3,2,1,0} convolution(%e, %f), window={size=4x4 pad=1_1x1_1}, metadata={op_name="jit(whole)/transpose(jvp(Classifier))/Conv_0/conv"}
  %transpose_copy_fusion = f32[5,4,4,8]{3,2,1,0} fusion(%conv.1), kind=kLoop, calls=%f.1
  %wrapped_reduce-window.2 = f32[4,6]{1,0} fusion(%conv.1), kind=kLoop, calls=%f.2
  %add_select_fusion.7 = f32[8,4,4,6]{3,2,1,0} fusion(%conv.1), kind=kLoop, calls=%f.3
  %while.1 = (f32[]) while(%tuple), condition=%less, body=%body
  ROOT %dot.9 = f32[8,10]{1,0} dot(%g, %h), lhs_contracting_dims={1}
"""


def test_operations_get_the_kind_of_their_computation():
    assert profile.kinds(PROGRAM) == {
        "conv.1": FORWARD,
        "conv.2": GRADIENTS,
        "conv.3": GRADIENTS,
        "transpose_copy_fusion": TRANSPOSES,
        "wrapped_reduce-window.2": SUMS,
        "add_select_fusion.7": OTHERS,
        "dot.9": PRODUCTS,
    }


def test_time_counts_only_for_the_first_kind_that_runs():
    spans = [
        (SUMS, 0, 4),  # Alone from 0 to 1, then beside a convolution.
        (FORWARD, 1, 6),
        (FORWARD, 2, 3),
        (OTHERS, 5, 7),
        (OTHERS, 9, 10),
    ]
    shares = profile.shares(spans, 20)
    assert shares == pytest.approx(
        dict.fromkeys(KINDS, 0)
        | {FORWARD: 5 / 20, SUMS: 1 / 20, OTHERS: 2 / 20, NOTHING: 12 / 20}
    )


def mark(name, start, duration, **numbers):
    return SimpleNamespace(
        name=name, start_ns=start, duration_ns=duration, stats=numbers.items()
    )


def test_an_operation_lasts_until_its_end_mark_or_else_until_its_own_end():
    events = [
        mark("conv.1", 0, 2, _p=7),
        mark("while.1", 0, 90, _p=6),
        mark("conv.1", 20, 2, _p=8),
        mark("dot.9", 30, 5, _p=9),
        mark("end: dot.9", 34, 1, _c=9),
        mark("end: conv.1", 26, 1, _c=8),
    ]
    assert profile.spans_of(events, {"conv.1": FORWARD, "dot.9": PRODUCTS}) == [
        (FORWARD, 0, 2),
        (FORWARD, 20, 27),
        (PRODUCTS, 30, 35),
    ]


@pytest.mark.slow
def test_the_kinds_account_for_most_of_a_real_update(tmp_path):
    record = tmp_path / "profile.json"
    arguments = ["--networks", "wrn-10-1", "--method=free-2", "--batch_size=16"]
    subprocess.run(
        [sys.executable, "-m", "benchmarks.profile", *arguments, f"--out={record}"],
        cwd=ROOT,
        env=environment(devices=1),
        check=True,
    )
    shares = json.loads(record.read_text())["results"]["networks"]["wrn-10-1"]["shares"]
    assert sum(shares.values()) == pytest.approx(1)
    assert all(shares[kind] > 0 for kind in KINDS)
    assert shares[FORWARD] + shares[GRADIENTS] > 0.3
    assert shares[NOTHING] < 0.5
