"""timm's ConvNeXts, ViTs, DeiTs and XCiTs are found by their tensors, with equal logits."""

import re

import jax
import numpy as np
import pytest
import timm_models

import freeadv_jax as fa
from freeadv_jax.config import base_config
from freeadv_jax.errors import InputError
from freeadv_jax.runs.load import initial_variables
from freeadv_jax.weights.layouts import nearest, usual_side
from freeadv_jax.weights.tensors import write_tensors

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
# The sides of the images whose logits are compared; the others are larger ones of the same
# forms.
SIDES = {
    "convnext-t": 64,
    "convnext-t-cvst": 64,
    "vit-s": 48,
    "vit-s-cvst": 32,
    "xcit-s12": 32,
    "xcit-s12-p8": 32,
    "cifar-xcit-s12": 32,
}


def shapes_of(module):
    return {
        name: jax.ShapeDtypeStruct(tuple(tensor.shape), np.float32)
        for name, tensor in module.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


@pytest.mark.torch
@pytest.mark.parametrize("name", timm_models.NETWORKS)
def test_each_network_is_found_with_as_many_parameters(name):
    torch = pytest.importorskip("torch")
    timm_models.imported("timm")
    side = usual_side(name)
    with torch.device("meta"):
        module = timm_models.NETWORKS[name](100, side)
    tensors = shapes_of(module)
    match = nearest(tensors)
    # CIFAR's XCiTs have the tensors of ImageNet's and other strides.
    base = name.removeprefix("cifar-")
    twins = "xcit" in name and name != "xcit-s12-p8"
    alike = (base, f"cifar-{base}") if twins else (name,)
    assert match.models == alike
    assert match.num_classes == 100
    assert match.image_shape == (usual_side(alike[0]),) * 2 + (3,)
    assert match.expected.keys() == tensors.keys()
    for tensor, expected in match.expected.items():
        assert tensors[tensor].shape == expected.shape, tensor
    ours = sum(
        np.prod(match.expected[tensor].shape)
        for path, tensor in match.names.items()
        if path.startswith("params/")
    )
    assert ours == sum(tensor.numel() for tensor in module.parameters())


@pytest.mark.torch
def test_the_names_of_convnexts_authors_are_known_too():
    torch = pytest.importorskip("torch")
    convnext = timm_models.imported("timm").models.convnext
    with torch.device("meta"):
        module = timm_models.NETWORKS["convnext-t"](10, 64)
    theirs = {}
    for name, shape in shapes_of(module).items():
        name = re.sub(r"^stem", "downsample_layers.0", name)
        name = re.sub(r"^stages.(\d).downsample", r"downsample_layers.\1", name)
        name = name.replace("blocks.", "").replace("conv_dw", "dwconv")
        name = name.replace("mlp.fc", "pwconv").replace("head.norm", "norm")
        theirs[name.replace("head.fc", "head")] = shape
    # timm's own translation is the reference.
    tensors = {name: torch.empty(shape.shape) for name, shape in theirs.items()}
    assert (
        convnext.checkpoint_filter_fn(tensors, module).keys()
        == module.state_dict().keys()
    )
    match = nearest({f"module.{name}": shape for name, shape in theirs.items()})
    assert (match.models, match.prefix) == (("convnext-t",), "module.")
    assert match.layout.title == "facebookresearch/ConvNeXt"
    timms = nearest(shapes_of(module))
    assert match.names.keys() == timms.names.keys()
    assert match.agreement({f"module.{n}": s for n, s in theirs.items()}) == len(theirs)


def images_of(side):
    """Return a bright image and a dark one of noise."""
    images = np.random.default_rng(0).uniform(size=(2, side, side, 3))
    return (images * [[[[1.0]]], [[[0.2]]]]).astype(np.float32)


@pytest.mark.torch
@pytest.mark.parametrize(("name", "side"), SIDES.items())
def test_logits_are_those_of_timm(name, side, tmp_path):
    torch = pytest.importorskip("torch")
    timm_models.imported("timm")
    import torch_models

    module = torch_models.randomized(timm_models.NETWORKS[name](10, side))
    torch.save({"model": module.state_dict()}, tmp_path / "weights.pt")
    shown = name.startswith(("vit", "cifar-vit"))
    classifier = fa.load(
        tmp_path / "weights.pt",
        model=name if "xcit" in name else None,
        image_shape=None if shown else (side, side, 3),
        mean=MEAN,
        std=STD,
    )
    assert classifier.description["model"] == name
    assert classifier.image_shape == (side, side, 3)
    theirs = torch_models.logits(module, images_of(side), MEAN, STD)
    assert theirs.std() > 0.1
    assert np.abs(theirs[0] - theirs[1]).max() > 0.01
    np.testing.assert_allclose(classifier(images_of(side)), theirs, atol=1e-4)


@pytest.fixture
def vit_file(tmp_path):
    """Return a file of a ViT-S for images of 32 pixels, without drawing its weights."""
    match = nearest({}, model="vit-s", num_classes=10, image_shape=(32, 32, 3))
    tensors = {
        name: np.full(array.shape, 0.01, np.float32)
        for name, array in match.expected.items()
    }
    write_tensors(tmp_path / "vit.safetensors", tensors)
    return tmp_path / "vit.safetensors"


def test_the_position_embeddings_show_the_size_of_the_images(vit_file):
    classifier = fa.load(vit_file, mean=0.5, std=0.5)
    assert classifier.image_shape == (32, 32, 3)
    assert classifier.description["model"] == "vit-s"
    with pytest.raises(InputError) as raised:
        fa.load(vit_file, image_shape=(64, 64, 3), mean=0.5, std=0.5)
    assert "pos_embed [1, 5, 384] instead of [1, 17, 384]" in str(raised.value)


def test_a_deit_is_a_vit_of_the_same_size_by_another_name(vit_file):
    deit = fa.load(vit_file, model="deit-s", mean=0.5, std=0.5)
    vit = fa.load(vit_file, mean=0.5, std=0.5)
    assert deit.description["model"] == "deit-s"
    assert jax.tree.structure(deit.variables) == jax.tree.structure(vit.variables)


@pytest.mark.slow
def test_training_begins_with_the_file_and_a_new_last_layer(vit_file):
    config = base_config()
    config.init = str(vit_file)
    config.model.name = "deit-s"
    config.model.normalization = "mean_std"
    found = initial_variables(config, num_classes=3, image_shape=(32, 32, 3))
    params = found["params"]["network"]
    assert params["Dense_0"]["kernel"].shape == (384, 3)
    for kept in (params["pos_embed"], params["TransformerBlock_11"]["Mlp_0"]):
        assert all((leaf == np.float32(0.01)).all() for leaf in jax.tree.leaves(kept))
    with pytest.raises(InputError, match="params/network/pos_embed") as raised:
        initial_variables(config, num_classes=10, image_shape=(48, 48, 3))
    assert "\n" not in str(raised.value)
