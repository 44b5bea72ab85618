"""Free-4 on ImageNet with ResNet-152, at 4/255: the recipe of Shafahi et al. (2019).

Command: python -m freeadv_jax.main --config=configs/imagenet_free4_resnet152.py --config.data.dir=DIR
Published: natural 64.446, PGD-10 36.992, PGD-50 36.044, PGD-100 35.994 (the
    authors' slides).
Ours: not yet run.
"""

from freeadv_jax.recipes import imagenet


def get_config():
    config = imagenet(replays=4)
    config.model.name = "resnet-152"
    return config
