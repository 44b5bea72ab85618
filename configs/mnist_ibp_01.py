"""IBP on MNIST, L-inf epsilon 0.1: Gowal et al. (2018), network DM-medium.

Training takes the radius 0.2. The schedule and the optimizer are those of the authors' code,
deepmind/interval-bound-propagation: 60,000 updates on batches of 100, of which the first 2,000
are natural, and the radius rises during the next 10,000. Certify the result with
`freeadv_jax.certify.interval`.

Command: python -m freeadv_jax.main --config=configs/mnist_ibp_01.py --config.data.dir=DIR
Published: natural 98.94, certified 97.08, PGD-20 97.99 (README of the authors' code).
Ours: not yet run.
"""

from freeadv_jax.recipes import mnist_ibp


def get_config():
    config = mnist_ibp()
    config.attack.epsilon = 0.1
    config.attack.certified_scale = 2.0
    return config
