"""benchmarks.quick: networks of several kinds, and an honest count of differences."""

import jax
import numpy as np
import pytest

from benchmarks import quick
from freeadv_jax.config import validate
from freeadv_jax.errors import InputError


@pytest.mark.parametrize("row", quick.ROWS)
def test_a_row_can_be_trained(row):
    config = quick.configured(row, "data")
    validate(config)
    norm, epsilon, _ = quick.ROWS[row]
    assert (config.attack.norm, config.attack.epsilon) == (norm, epsilon)
    free = config.method == "free"
    assert config.attack.step_size == (epsilon if free else epsilon / 2)


def test_the_rows_differ_in_network_method_norm_and_radius():
    configs = [quick.configured(row, "data") for row in quick.ROWS]
    assert len(configs) + 1 >= 8
    assert {c.method for c in configs} == {"free", "natural", "pgd", "trades"}
    assert len({c.model.name for c in configs}) == 4
    assert len({c.model.normalization for c in configs}) == 2
    threats = {(c.attack.norm, round(c.attack.epsilon * 255, 1)) for c in configs}
    assert threats == {("linf", 8), ("linf", 2), ("linf", 4), ("l2", 127.5)}


def test_both_versions_are_compared_image_by_image():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(48, 4)).astype(np.float32)
    images = rng.uniform(0.3, 0.7, (12, 4, 4, 3)).astype(np.float32)
    model = jax.tree_util.Partial(
        lambda weights, x: (x - 0.5).reshape(len(x), -1) @ weights, weights
    )
    labels = np.asarray(model(images)).argmax(axis=1)
    found = quick.compared(model, {"norm": "linf", "epsilon": 0.02}, images, labels)
    assert (found["images"], found["different"]) == (12, 0)
    assert 0 < found["standard"]["robust"] == found["quick"]["robust"] < 12
    # Four classes: three targets, and a forward pass of the image as it is.
    targeted = 3 * (1 / 3 + 101) + 3 * (1 / 3 + 100 * 4 / 3)
    survivor = 1 / 3 + 101 + targeted + 5001 / 3
    assert found["standard"]["passes_of_a_survivor"] == pytest.approx(survivor)
    assert found["quick"]["passes_of_a_survivor"] < survivor / 2
    audited = quick.with_audit(found)
    for kind, share in (
        ("passes_of_a_survivor", 1),
        ("passes_of_an_image", found["quick"]["robust"] / 12),
    ):
        more = 0.04 * share * (survivor - 1 / 3 - 101)
        assert audited[kind] == pytest.approx(found["quick"][kind] + more)


def test_an_unknown_row_is_refused_with_the_others():
    with pytest.raises(InputError, match="--rows free-9: must be one of free-8,"):
        quick.main(["quick", "--data=data", "--rows", "free-9"])
