"""benchmarks.methods: a row for each adversarial method, alike in all but the method."""

import pytest

from benchmarks import methods
from benchmarks.methods import DENOISED, ROWS, configured
from benchmarks.reproduce import configuration
from freeadv_jax.config import validate
from freeadv_jax.errors import InputError
from freeadv_jax.training.methods import METHODS


def test_every_adversarial_method_has_a_row():
    adversarial = {name for name in METHODS if METHODS[name].adversarial}
    assert set(ROWS) == adversarial | {DENOISED}


@pytest.mark.parametrize("row", ROWS)
def test_a_row_differs_from_free_8_only_in_its_method(row):
    config = configured(row, "data")
    validate(config)
    expected = configuration("cifar10_free8", size="scaled-down", data="data")
    expected.method = config.method
    expected.evaluation.attacks = methods.ATTACKS
    if row == DENOISED:
        expected.model.name = "wrn-10-1-denoise"
    if "steps" in METHODS[config.method].settings:
        expected.attack.steps, expected.attack.step_size = 2, 4 / 255
    elif row == "fgsm-rs":
        expected.attack.step_size = 10 / 255
    assert config.to_dict() == expected.to_dict()


def test_an_unknown_row_is_refused_with_the_others():
    with pytest.raises(InputError, match="--rows vat: must be one of free, pgd,"):
        methods.main(["methods", "--data=data", "--rows", "vat"])
