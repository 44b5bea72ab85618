"""IBP on CIFAR-10, L-inf epsilon 8/255: Gowal et al. (2018), network DM-large.

Training takes 1.1 times the radius. The schedule is that of the CROWN-IBP row, with the last
kappa of the MNIST rows. Certify the result with `freeadv_jax.certify.interval`.

Command: python -m freeadv_jax.main --config=configs/cifar10_ibp_8.py --config.data.dir=DIR
Published: natural 49.49, certified 31.56, PGD-20 39.53 (README of the authors' code).
Ours: not yet run.
"""

from freeadv_jax.recipes import cifar10_ibp


def get_config():
    config = cifar10_ibp()
    config.attack.epsilon = 8 / 255
    return config
