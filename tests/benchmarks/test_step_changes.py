"""The variants of benchmarks.step_changes compute the same as the step itself."""

import functools
import json

import numpy as np
import pytest

from benchmarks import step_changes
from benchmarks.contender import Worker

# Relative tolerance of the loss where it is not 1e-3.
TOLERANCE = {"bfloat16": 0.05}


class Losses:
    """Compute the losses of three minibatches in a process of its own."""

    def __init__(self, variant, network):
        # One minibatch in each call: over many updates rounding errors grow.
        self._contender = step_changes.build(
            variant, network, "cifar10", "free-2", 8, per_call=1
        )

    def losses(self):
        contender = self._contender
        metrics = [contender.call(next(contender.batches)) for _ in range(3)]
        return [float(each["loss"]) for each in metrics]


@functools.cache
def losses(variant, network):
    worker = Worker(Losses, variant, network)
    try:
        return worker.ask("losses")
    finally:
        worker.close()


@pytest.mark.thorough
@pytest.mark.parametrize(
    "variant", sorted({**step_changes.VARIANTS, **step_changes.ON_CPU})
)
def test_a_variant_computes_the_same_losses_as_the_step(variant):
    # Only ResNet-50 has max pooling that Flax's can replace.
    network = "resnet-50" if variant == step_changes.POOLED else "wrn-10-1"
    as_it_is = losses(step_changes.AS_IT_IS, network)
    assert as_it_is[0] != as_it_is[2]
    tolerance = TOLERANCE.get(variant, 1e-3)
    np.testing.assert_allclose(losses(variant, network), as_it_is, rtol=tolerance)


def test_a_variant_has_its_own_environment_variables(monkeypatch):
    seen = []
    monkeypatch.setattr(
        step_changes,
        "Worker",
        lambda *a: seen.append(step_changes.os.environ.get("GLIBC_TUNABLES")),
    )
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    step_changes.worker("huge pages", "wrn-10-1", "free-2", 8)
    step_changes.worker(step_changes.AS_IT_IS, "wrn-10-1", "free-2", 8)
    assert seen == ["glibc.malloc.hugetlb=1", None]


def test_named_variants_are_timed_beside_the_step_as_it_is(monkeypatch, tmp_path):
    seen = []
    row = {"seconds_per_update": 0.1, "/ as it is": 1.0, "peak_memory": {"bytes": 1}}

    def measure(variants, rounds, *how):
        seen.append((variants, rounds, how))
        return dict.fromkeys(variants, row)

    monkeypatch.setattr(step_changes, "measure", measure)
    named = ["--networks=small-cnn", "--images=mnist", "--batch_sizes=16", "--rounds=2"]
    out = tmp_path / "out.json"
    variants = ["--variants", step_changes.GATHERED]
    step_changes.main(["step_changes", *named, *variants, f"--out={out}"])
    both = [step_changes.AS_IT_IS, step_changes.GATHERED]
    assert seen == [(both, 2, ("small-cnn", "mnist", "free-2", 16))]
    written = json.loads(out.read_text())["results"]
    assert list(written) == ["small-cnn on mnist, batches of 16"]


def test_flaxs_max_pooling_is_timed_only_in_networks_with_max_pooling(
    monkeypatch, tmp_path
):
    seen = {}
    row = {"seconds_per_update": 0.1, "/ as it is": 1.0, "peak_memory": {"bytes": 1}}

    def measure(variants, rounds, network, *how):
        seen[network] = variants
        return dict.fromkeys(variants, row)

    monkeypatch.setattr(step_changes, "measure", measure)
    named = ["--networks", "resnet-50", "wrn-10-1", "--batch_sizes=4"]
    step_changes.main(["step_changes", *named, f"--out={tmp_path / 'out.json'}"])
    assert set(seen["resnet-50"]) - set(seen["wrn-10-1"]) == {step_changes.POOLED}
