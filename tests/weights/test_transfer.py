"""Given weights enter a model, and another number of classes gets a new last layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.errors import InputError
from freeadv_jax.models.interface import as_model
from freeadv_jax.weights.transfer import flat_variables, transferred


class Net(nn.Module):
    classes: int = 10
    width: int = 16

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Dense(self.width)(images.reshape(len(images), -1))
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(self.classes)(nn.relu(x))


def variables(seed, **sizes):
    return as_model(Net(**sizes)).init(jax.random.key(seed), (4, 4, 1))


def same(trees, others):
    return jax.tree.all(jax.tree.map(np.array_equal, trees, others))


@pytest.mark.parametrize("form", ["tree", "flat"])
def test_weights_of_the_same_shapes_are_all_taken(form):
    given = variables(1)
    flat = {path: np.asarray(array) for path, array in flat_variables(given).items()}
    taken, fresh = transferred(
        variables(0), given if form == "tree" else flat, num_classes=10
    )
    assert fresh == ()
    assert same(taken, given)


def test_the_last_layer_is_new_for_another_number_of_classes():
    ours, given = variables(0, classes=3), variables(1)
    taken, fresh = transferred(ours, given, num_classes=3)
    assert set(fresh) == {"params/Dense_1/kernel", "params/Dense_1/bias"}
    assert same(taken["params"]["Dense_1"], ours["params"]["Dense_1"])
    assert same(taken["params"]["Dense_0"], given["params"]["Dense_0"])
    assert same(taken["batch_stats"], given["batch_stats"])


def test_weights_may_be_a_list_of_layers():
    def layers(classes):
        return {"params": [(jnp.ones((4, 4)), jnp.ones(4)), (jnp.ones((4, classes)),)]}

    given = jax.tree.map(lambda array: 2 * array, layers(7))
    taken, fresh = transferred(layers(5), given, num_classes=5)
    assert fresh == ("params/1/0",)
    assert same(taken["params"][0], given["params"][0])


def test_weights_take_the_types_of_the_model():
    doubles = {
        path: np.asarray(array, np.float64)
        for path, array in flat_variables(variables(1)).items()
    }
    taken, _ = transferred(variables(0), doubles, num_classes=10)
    assert {leaf.dtype for leaf in jax.tree.leaves(taken)} == {np.dtype("float32")}


@pytest.mark.parametrize(
    ("sizes", "num_classes", "differing"),
    [
        ({"width": 8}, 10, "batch_stats/BatchNorm_0/var [16] instead of [8]"),
        # A hidden layer as wide as there are classes is not the last layer.
        ({"width": 10}, 10, "of another shape: batch_stats/BatchNorm_0/mean"),
        (
            {"width": 8, "classes": 3},
            3,
            "params/BatchNorm_0/scale [16] instead of [8] and 4 more",
        ),
    ],
)
def test_arrays_of_another_shape_are_listed(sizes, num_classes, differing):
    with pytest.raises(InputError, match="^init=old does not fit the model") as raised:
        transferred(
            variables(0, **sizes),
            variables(1),
            num_classes=num_classes,
            source="init=old",
        )
    assert differing in str(raised.value)
    assert "\n" not in str(raised.value)


def test_unknown_and_missing_arrays_are_listed():
    given = flat_variables(variables(1))
    given["params/Dense_9/kernel"] = given.pop("params/Dense_0/kernel")
    with pytest.raises(InputError) as raised:
        transferred(variables(0), given, num_classes=10)
    assert "unknown: params/Dense_9/kernel [16, 16]" in str(raised.value)
    assert "missing: params/Dense_0/kernel [16, 16]" in str(raised.value)
