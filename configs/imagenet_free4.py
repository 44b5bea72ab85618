"""Free-4 on ImageNet with ResNet-50, at 4/255: the recipe of Shafahi et al. (2019).

Command: python -m freeadv_jax.main --config=configs/imagenet_free4.py --config.data.dir=DIR
Published: natural 60.206, PGD-10 32.768, PGD-50 31.878, PGD-100 31.816 (the
    authors' slides); the released model natural 59.96, AutoAttack 28.58.
Ours: not yet run.
"""

from freeadv_jax.recipes import imagenet


def get_config():
    return imagenet(replays=4)
