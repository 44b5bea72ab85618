"""Free-8 on ImageNet with ResNet-50, at 4/255: the recipe of Shafahi et al. (2019).

Command: python -m freeadv_jax.main --config=configs/imagenet_free8.py --config.data.dir=DIR
Published: no figures that we know of.
Ours: not yet run.
"""

from freeadv_jax.recipes import imagenet


def get_config():
    return imagenet(replays=8)
