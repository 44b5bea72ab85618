import jax
import jax.numpy as jnp
import pytest

from freeadv_jax.errors import InputError
from freeadv_jax.models import NETWORKS, build_model

VALID = {
    "num_classes": 10,
    "image_shape": (32, 32, 3),
    "normalization": "per_image",
    "mean": (0.0,),
    "std": (1.0,),
    "dtype": "float32",
    "batch_norm_axis": "devices",
}


@pytest.mark.parametrize(
    "name, count",
    [
        ("wrn-32-10-madry", 45_901_914),
        ("wrn-16-4", 2_748_890),
        ("preact-resnet-18", 11_172_170),
        ("resnet-50", 23_528_522),
        ("resnet-101", 42_520_650),
        ("resnet-152", 58_164_298),
        ("small-cnn", 545_098),
        ("small-cnn-bn", 545_194),
    ],
)
def test_every_name_builds_a_network_that_initialises_outside_of_its_pmapped_axis(
    name, count
):
    model = build_model(name, **VALID)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    logits, variables = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, train=False), images
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count
    assert logits.shape == (2, 10)
    assert logits.dtype == jnp.float32


def refusal(name, **changes):
    with pytest.raises(InputError) as caught:
        build_model(name, **(VALID | changes))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["resnet-18", "wrn-16", "wrn-<depth>-<widen factor>"])
def test_an_unknown_name_is_refused_with_the_allowed_ones(name):
    allowed = ", ".join(NETWORKS)
    message = refusal(name)
    assert message.startswith(f"model {name!r} is unknown; ")
    assert message.endswith(f"allowed: {allowed}")


def test_a_misspelt_name_is_answered_with_the_nearest():
    assert "; did you mean 'resnet-50'? allowed: " in refusal("resnet50")


def test_a_depth_that_is_not_6n_plus_4_is_refused():
    assert "wrn-32-10: the depth must be 6n + 4" in refusal("wrn-32-10")


@pytest.mark.parametrize(
    "name, shape, fault",
    [
        ("small-cnn", (30, 32, 3), "must have sides divisible by 4"),
        ("wrn-16-4", (32, 30, 3), "must have sides divisible by 4"),
        ("wrn-32-10-madry", (6, 8, 3), "must have sides divisible by 4"),
        ("preact-resnet-18", (28, 28, 1), "must have sides divisible by 8"),
        ("preact-resnet-18", (4, 8, 1), "must have sides of at least 8"),
        ("resnet-50", (28, 32, 3), "must have sides of at least 32"),
        ("small-cnn", (32, 32), "must be (height, width, channels)"),
    ],
)
def test_images_that_a_network_cannot_take_are_refused(name, shape, fault):
    message = refusal(name, image_shape=shape)
    assert message == f"image shape for {name} is {shape}: {fault}"


def test_mean_and_std_must_have_one_number_or_one_per_channel():
    message = refusal("small-cnn", normalization="mean_std", mean=(0.5, 0.5))
    assert message == (
        "mean is (0.5, 0.5): must have 1 number, or one for each of the 3 channels"
    )
    assert "std" in refusal("small-cnn", normalization="mean_std", std=(1.0,) * 4)


def test_unknown_dtypes_and_normalisations_are_refused():
    message = refusal("small-cnn", dtype="float16")
    assert (
        message
        == "dtype 'float16' is unknown; did you mean 'bfloat16'? allowed: float32, bfloat16"
    )
    message = refusal("small-cnn", normalization="none")
    assert message == "normalization 'none' is unknown; allowed: per_image, mean_std"
