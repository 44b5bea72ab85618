"""Free-8 on CIFAR-100: a row of the table of Shafahi et al.'s README.

Command: python -m freeadv_jax.main --config=configs/cifar100_free8.py --config.data.dir=DIR
Published: natural 62.13, PGD-20 25.88, PGD-100 25.58; 780 minutes (README of
    ashafahi/free_adv_train).
Ours: not yet run.
"""

from freeadv_jax.config import base_config


def get_config():
    config = base_config()
    config.data.name = "cifar100"
    return config
