"""Free-4 on ImageNet with ConvNeXt-T from clean weights, at 4/255: not a published row.

FILE holds PyTorch weights of a ConvNeXt-T that was trained naturally, such as timm's
convnext_tiny. Nothing here was tuned.

Command: python -m freeadv_jax.main --config=configs/imagenet_convnext_t_free4.py --config.data.dir=DIR --config.init=FILE
Published: no figures for Free-m that we know of. Another adversarial training of ConvNeXt-T
    with a convolutional stem (Singh et al. 2023): natural 72.72, AutoAttack 49.46
    (RobustBench).
Ours: not yet run.
"""

from freeadv_jax.recipes import imagenet_from_clean_weights


def get_config():
    return imagenet_from_clean_weights("convnext-t")
