"""CROWN-IBP on CIFAR-10, L-inf epsilon 8/255: Zhang et al. (ICLR 2020), network DM-large.

The recipe is that of cifar10_ibp_8 with kappa 0 at the end. Certify the result with
`freeadv_jax.certify.interval`.

Command: python -m freeadv_jax.main --config=configs/cifar10_crown_ibp_8.py --config.data.dir=DIR
Published: natural 47.14, certified 33.30, PGD-20 36.81 (README of deepmind/interval-bound-propagation).
Ours: not yet run.
"""

from freeadv_jax.recipes import cifar10_ibp


def get_config():
    config = cifar10_ibp()
    config.method = "crown-ibp"
    config.attack.epsilon = 8 / 255
    config.attack.certified_kappa = 0.0
    return config
