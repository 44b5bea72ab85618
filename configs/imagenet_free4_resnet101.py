"""Free-4 on ImageNet with ResNet-101, at 4/255: the recipe of Shafahi et al. (2019).

Command: python -m freeadv_jax.main --config=configs/imagenet_free4_resnet101.py --config.data.dir=DIR
Published: natural 63.340, PGD-10 35.388, PGD-50 34.402, PGD-100 34.328 (the
    authors' slides).
Ours: not yet run.
"""

from freeadv_jax.recipes import imagenet


def get_config():
    config = imagenet(replays=4)
    config.model.name = "resnet-101"
    return config
