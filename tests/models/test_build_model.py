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
        ("wrn-28-10", 36_479_194),
        ("wrn-28-10-silu", 36_479_194),
        ("wrn-70-16-silu", 266_796_506),
        ("wrn-34-r", 68_116_698),
        ("wrn-a4", 147_291_738),
        ("preact-resnet-18", 11_172_170),
        ("preact-resnet-18-input", 11_172_170),
        ("preact-resnet-18-no-norm", 11_171_146),
        ("preact-resnet-18-input-no-norm", 11_171_146),
        ("preact-resnet-18-silu", 12_548_426),
        ("cifar-resnet-18", 11_173_962),
        ("cifar-resnet-34", 21_282_122),
        ("cifar-resnet-50", 23_520_842),
        ("resnet-18", 11_181_642),
        ("resnet-34", 21_289_802),
        ("resnet-50", 23_528_522),
        ("resnet-101", 42_520_650),
        ("resnet-152", 58_164_298),
        ("wide-resnet-50-2", 66_854_730),
        ("cifar-convnext-atto", 3_376_290),
        ("cifar-vit-ti", 5_362_762),
        ("cifar-xcit-s12", 25_872_154),
        pytest.param("cifar-xcit-m12", 45_893_290, marks=pytest.mark.slow),
        pytest.param("cifar-xcit-l12", 103_031_338, marks=pytest.mark.slow),
        ("wrn-16-4-denoise", 2_921_818),
        ("cifar-resnet-18-denoise", 11_872_202),
        ("resnet-50-denoise", 34_677_322),
        ("resnet-101-denoise", 53_669_450),
        ("resnet-152-denoise", 69_313_098),
        ("small-cnn", 545_098),
        ("small-cnn-bn", 545_194),
        ("dm-small", 470_918),
        ("dm-medium", 1_188_906),
        ("dm-large", 17_190_602),
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


@pytest.mark.parametrize(
    "name, count",
    [
        ("convnext-t", 28_589_128),
        pytest.param("convnext-s", 50_223_688, marks=pytest.mark.slow),
        pytest.param("convnext-b", 88_591_464, marks=pytest.mark.slow),
        pytest.param("convnext-l", 197_767_336, marks=pytest.mark.slow),
        ("convnext-t-cvst", 28_627_432),
        pytest.param("convnext-s-cvst", 50_261_992, marks=pytest.mark.slow),
        pytest.param("convnext-b-cvst", 88_753_416, marks=pytest.mark.slow),
        pytest.param("convnext-l-cvst", 198_134_680, marks=pytest.mark.slow),
        ("vit-s", 22_050_664),
        pytest.param("vit-b", 86_567_656, marks=pytest.mark.slow),
        ("vit-s-cvst", 22_777_576),
        pytest.param("vit-b-cvst", 87_147_112, marks=pytest.mark.slow),
        ("deit-s", 22_050_664),
        pytest.param("deit-b", 86_567_656, marks=pytest.mark.slow),
        ("xcit-s12", 26_253_304),
        pytest.param("xcit-s12-p8", 26_213_032, marks=pytest.mark.slow),
        pytest.param("xcit-m12", 46_401_160, marks=pytest.mark.slow),
        pytest.param("xcit-l12", 103_792_648, marks=pytest.mark.slow),
    ],
)
def test_networks_of_imagenet_have_their_published_numbers_of_parameters(name, count):
    """Their sources are timm and the papers; tests/weights/test_timm.py counts timm's."""
    shape = (224, 224, 3)
    model = build_model(name, num_classes=1000, image_shape=shape)
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    variables = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False), images
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count


def refusal(name, **changes):
    with pytest.raises(InputError) as caught:
        build_model(name, **(VALID | changes))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["resnet-9", "wrn-16", "wrn-<depth>-<widen factor>"])
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
        ("convnext-t", (96, 80, 3), "must have sides divisible by 32"),
        ("cifar-convnext-atto", (24, 32, 3), "must have sides divisible by 16"),
        ("vit-s-cvst", (72, 64, 3), "must have sides divisible by 16"),
        ("deit-s", (8, 16, 3), "must have sides of at least 16"),
        ("cifar-vit-ti", (30, 32, 3), "must have sides divisible by 4"),
        ("xcit-s12", (40, 40, 3), "must have sides divisible by 16"),
        ("xcit-s12-p8", (36, 40, 3), "must have sides divisible by 8"),
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


def test_stochastic_depth_is_for_the_networks_that_have_it():
    message = refusal("small-cnn", drop_path=0.1)
    assert message == (
        "drop_path = 0.1: must be 0, because small-cnn has no stochastic depth"
    )
    message = refusal("vit-s", drop_path=1.0)
    assert message == "drop_path = 1.0: must be at least 0 and below 1"
    for name in ("convnext-t", "cifar-vit-ti", "cifar-xcit-s12"):
        assert build_model(name, **VALID, drop_path=0.25).network.drop_path == 0.25


def test_unknown_dtypes_and_normalisations_are_refused():
    message = refusal("small-cnn", dtype="float16")
    assert (
        message
        == "dtype 'float16' is unknown; did you mean 'bfloat16'? allowed: float32, bfloat16"
    )
    message = refusal("small-cnn", normalization="none")
    assert message == "normalization 'none' is unknown; allowed: per_image, mean_std"
