"""Natural training on CIFAR-100: a row of the table of Shafahi et al.'s README.

Command: python -m freeadv_jax.main --config=configs/cifar100_natural.py --config.data.dir=DIR
Published: natural 78.84, PGD-20 0, PGD-100 0; 811 minutes (README of
    ashafahi/free_adv_train).
Ours: not yet run.
"""

from freeadv_jax.config import base_config


def get_config():
    config = base_config()
    config.method = "natural"
    config.data.name = "cifar100"
    return config
