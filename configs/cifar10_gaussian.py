"""Gaussian noise of 0.25 on CIFAR-10, for randomised smoothing (Cohen et al. 2019).

The recipe is that of the natural row; the paper trains a ResNet-110. Certify the result
with `freeadv_jax.certify.smooth(..., sigma=0.25)`.

Command: python -m freeadv_jax.main --config=configs/cifar10_gaussian.py --config.data.dir=DIR
Published: no figures for this network.
Ours: not yet run.
"""

from freeadv_jax.config import base_config


def get_config():
    config = base_config()
    config.method = "gaussian"
    config.attack.gaussian_sigma = 0.25
    config.evaluation.attacks = ("natural", "pgd-20")
    return config
