"""benchmarks.transformers: natural and Free-4 rows that differ only in their method."""

import pytest

from benchmarks import transformers
from benchmarks.transformers import ROWS, configured
from freeadv_jax.config import validate
from freeadv_jax.errors import InputError


@pytest.mark.parametrize("network", ["convnext-atto", "vit"])
def test_natural_and_free_4_cost_the_same(network):
    natural = configured(f"{network}, natural", "data")
    free = configured(f"{network}, free-4", "data")
    validate(natural)
    validate(free)
    assert (natural.method, free.method, free.attack.replays) == ("natural", "free", 4)
    assert natural.optimizer.to_dict() == free.optimizer.to_dict()
    for name in ("updates", "batch_size", "data", "model", "evaluation"):
        assert natural[name] == free[name], name
    assert free.optimizer.name == "adamw"
    assert network.split("-")[0] in free.model.name


def test_an_unknown_row_is_refused_with_the_others():
    with pytest.raises(
        InputError, match="--rows mlp: must be one of convnext-atto, na"
    ):
        transformers.main(["transformers", "--data=data", "--rows", "mlp"])
    assert len(ROWS) == 4
