"""Free-2 on CIFAR-100: a row of the table of Shafahi et al.'s README.

Command: python -m freeadv_jax.main --config=configs/cifar100_free2.py --config.data.dir=DIR
Published: natural 69.20, PGD-20 15.37, PGD-100 14.86; 816 minutes (README of
    ashafahi/free_adv_train).
Ours: not yet run.
"""

from freeadv_jax.config import base_config


def get_config():
    config = base_config()
    config.data.name = "cifar100"
    config.attack.replays = 2
    return config
