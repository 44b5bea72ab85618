import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.models.vit import VisionTransformer


@pytest.mark.parametrize(
    "stem, dtype", [("patches", "float32"), ("convolutions", "bfloat16")]
)
def test_it_trains_by_free_m(stem, dtype, free_2):
    network = VisionTransformer(
        features=16,
        heads=2,
        num_classes=3,
        depth=2,
        patch=4,
        stem=stem,
        drop_path=0.1,
        dtype=jnp.dtype(dtype),
    )
    before, after, losses = free_2(network, (8, 8, 3))
    assert np.isfinite(losses).all()
    leaves = jax.tree.leaves(after.params)
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), before.params, after.params)
    assert min(jax.tree.leaves(moved)) > 0
    assert np.abs(after.delta).max() <= 8 / 255 + 1e-6
    # Steps as large as epsilon bring some pixels back to 0.
    assert np.mean(after.delta != 0) > 0.5


def test_patches_in_other_places_are_told_apart_by_their_embeddings(randomized):
    network = VisionTransformer(features=8, heads=2, num_classes=3, depth=1, patch=4)
    image = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype(np.float32)
    swapped = np.concatenate([image[:, :, 4:], image[:, :, :4]], axis=2)
    images = jnp.concatenate([image, swapped])
    variables = randomized(network, images)

    @jax.jit
    def difference(variables):
        one, other = network.apply(variables, images, train=False)
        return jnp.abs(one - other).max()

    assert difference(variables) > 1e-3
    params = variables["params"]
    places = jnp.zeros_like(params["pos_embed"])
    assert difference({"params": params | {"pos_embed": places}}) < 1e-5
