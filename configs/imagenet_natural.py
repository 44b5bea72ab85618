"""Natural training on ImageNet with ResNet-50: the recipe of Shafahi et al. (2019).

Command: python -m freeadv_jax.main --config=configs/imagenet_natural.py --config.data.dir=DIR
Published: no figures that we know of.
Ours: not yet run.
"""

from freeadv_jax.recipes import imagenet


def get_config():
    config = imagenet()
    config.method = "natural"
    return config
