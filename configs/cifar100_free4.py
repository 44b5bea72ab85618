"""Free-4 on CIFAR-100: a row of the table of Shafahi et al.'s README.

Command: python -m freeadv_jax.main --config=configs/cifar100_free4.py --config.data.dir=DIR
Published: natural 65.28, PGD-20 20.64, PGD-100 20.15; 767 minutes (README of
    ashafahi/free_adv_train).
Ours: not yet run.
"""

from freeadv_jax.config import base_config


def get_config():
    config = base_config()
    config.data.name = "cifar100"
    config.attack.replays = 4
    return config
