"""Free-4 on ImageNet with ViT-S from clean weights, at 4/255: not a published row.

FILE holds PyTorch weights of a ViT-S or DeiT-S that was trained naturally, such as timm's
deit_small_patch16_224. Nothing here was tuned.

Command: python -m freeadv_jax.main --config=configs/imagenet_vit_s_free4.py --config.data.dir=DIR --config.init=FILE
Published: no figures for Free-m that we know of. Another adversarial training of ViT-S with a
    convolutional stem (Singh et al. 2023): natural 72.56, AutoAttack 48.08 (RobustBench).
Ours: not yet run.
"""

from freeadv_jax.recipes import imagenet_from_clean_weights


def get_config():
    return imagenet_from_clean_weights("vit-s")
