import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.models.convnext import ConvNeXt


@pytest.mark.parametrize(
    "stem_widths, dtype",
    [
        ((), "float32"),
        pytest.param((4, 6, 8), "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_it_trains_by_free_m(stem_widths, dtype, free_2):
    network = ConvNeXt(
        units=(1, 1, 1, 1),
        features=(8, 8, 16, 16),
        num_classes=3,
        stem_widths=stem_widths,
        drop_path=0.1,
        dtype=jnp.dtype(dtype),
    )
    before, after, losses = free_2(network, (32, 32, 3))
    assert np.isfinite(losses).all()
    leaves = jax.tree.leaves(after.params)
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), before.params, after.params)
    assert min(jax.tree.leaves(moved)) > 0
    assert np.abs(after.delta).max() <= 8 / 255 + 1e-6
    # Steps as large as epsilon bring some pixels back to 0.
    assert np.mean(after.delta != 0) > 0.5
