"""CROWN-IBP on CIFAR-10, L-inf epsilon 2/255: Zhang et al. (ICLR 2020), network DM-large.

The recipe is that of cifar10_ibp_2 with kappa 0 at the end. With beta 1 at the end the bound is CROWN's alone, and so
`freeadv_jax.certify.crown(..., intermediate="ibp")` certifies the result.

Command: python -m freeadv_jax.main --config=configs/cifar10_crown_ibp_2.py --config.data.dir=DIR
Published: natural 71.52, certified 53.97, PGD-20 59.72 (README of deepmind/interval-bound-propagation).
Ours: not yet run.
"""

from freeadv_jax.recipes import cifar10_ibp


def get_config():
    config = cifar10_ibp()
    config.method = "crown-ibp"
    config.attack.epsilon = 2 / 255
    config.attack.certified_kappa = 0.0
    config.attack.crown_ibp_beta = 1.0
    return config
