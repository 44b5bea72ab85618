"""Free-10 on CIFAR-100: a row of the table of Shafahi et al.'s README.

Command: python -m freeadv_jax.main --config=configs/cifar100_free10.py --config.data.dir=DIR
Published: natural 59.27, PGD-20 25.15, PGD-100 24.88; 776 minutes (README of
    ashafahi/free_adv_train).
Ours: not yet run.
"""

from freeadv_jax.config import base_config


def get_config():
    config = base_config()
    config.data.name = "cifar100"
    config.attack.replays = 10
    return config
