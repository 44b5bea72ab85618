"""IBP on MNIST, L-inf epsilon 0.3: Gowal et al. (2018), network DM-large.

Training takes the radius 0.4; all else is the recipe of mnist_ibp_01. The published network
has 200 units before its last layer in place of 512.

Command: python -m freeadv_jax.main --config=configs/mnist_ibp_03.py --config.data.dir=DIR
Published: natural 98.34, certified 91.79, PGD-20 96.03 (README of the authors' code).
Ours: not yet run.
"""

from freeadv_jax.recipes import mnist_ibp


def get_config():
    config = mnist_ibp()
    config.model.name = "dm-large"
    config.attack.epsilon = 0.3
    config.attack.certified_scale = 4 / 3
    return config
