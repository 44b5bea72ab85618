"""benchmarks.runs: a whole run, with or without a look at the held-out images."""

import jax
import numpy as np

from benchmarks.runs import finish
from configs import digits_free8
from freeadv_jax.runs.folder import read_run
from freeadv_jax.runs.load import trained_state
from freeadv_jax.runs.metrics import read_metrics


def test_held_out_images_stay_unseen_and_nothing_else_changes(tmp_path):
    config = digits_free8.get_config()
    config.updates = 16
    config.data.validation_examples = 100
    config.evaluation.attacks = ("natural",)
    config.evaluation.examples = 20
    weights, kinds = [], []
    for validates in (True, False):
        workdir = tmp_path / str(validates)
        finish(config, workdir, validates=validates)
        weights.append(trained_state(read_run(workdir), "last").params)
        kinds.append({line["kind"] for line in read_metrics(workdir)})
    assert [("validation" in kind) for kind in kinds] == [True, False]
    for one, other in zip(*map(jax.tree.leaves, weights), strict=True):
        np.testing.assert_array_equal(one, other)
