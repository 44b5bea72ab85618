import jax
import jax.numpy as jnp
import pytest

from freeadv_jax.models.deepmind_cnn import DeepMindCNN


@pytest.mark.parametrize(
    ("size", "hidden", "parameters"),
    [("small", 8_308, 470_918), ("medium", 46_912, 1_188_906)],
)
def test_networks_have_the_units_and_parameters_of_the_papers_table(
    size, hidden, parameters
):
    """Table 1 of Gowal et al. has 8.3K and 471K, 47K and 1.2M, for images of CIFAR-10."""
    network = DeepMindCNN(10, size)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)

    def outputs(images):
        variables = network.init(jax.random.key(0), images, train=False)
        _, state = network.apply(
            variables, images, train=False, capture_intermediates=True
        )
        return variables["params"], state["intermediates"]

    params, layers = jax.eval_shape(outputs, images)
    units = [
        array.size
        for name, layer in layers.items()
        if name.startswith(("Conv", "Dense"))
        for array in jax.tree.leaves(layer)
    ]
    # The logits are no hidden units.
    assert sum(units) - 10 == hidden
    assert sum(array.size for array in jax.tree.leaves(params)) == parameters
