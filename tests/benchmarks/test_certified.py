"""benchmarks.certified: candidates differ in their fields alone, and images are counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import certified
from benchmarks.certified import CANDIDATES, IBP, SETS, SMALL, configured
from freeadv_jax.config import validate
from freeadv_jax.data.split import Split


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("candidate", CANDIDATES)
def test_a_candidate_has_the_recipe_of_its_row_and_its_own_fields(name, candidate):
    config = configured(name, candidate, data="data", short=False)
    validate(config)
    expected = SETS[name].get_config()
    expected.update_from_flattened_dict(SMALL | CANDIDATES[candidate])
    expected.data.name, expected.data.dir = name, "data"
    expected.updates = config.updates
    expected.evaluation.attacks = ("natural", "pgd-20")
    assert config.to_dict() == expected.to_dict()
    short = configured(name, candidate, data="data", short=True)
    assert short.updates * 10 == config.updates
    assert short.attack.to_dict() == config.attack.to_dict()


def test_certified_images_are_counted_with_their_interval(tmp_path, monkeypatch):
    """One pixel decides; a ball of 0.1 keeps it above a half from 0.6 on."""
    pixels = np.array([0.55, 0.65, 0.7, 0.2], np.float32)

    @jax.jit
    def model(images):
        logit = images.reshape(-1, 1) - 0.5
        return jnp.concatenate([-logit, logit], axis=1)

    monkeypatch.setattr(certified.fa, "load", lambda folder: model)
    split = Split(pixels.reshape(4, 1, 1, 1), np.ones(4, np.int32))
    found = certified.certified(tmp_path, split, 0.1, bounds=IBP)["ibp"]
    assert (found["correct"], found["examples"], found["accuracy"]) == (2, 4, 0.5)
    assert found["interval"][0] < 0.5 < found["interval"][1]
