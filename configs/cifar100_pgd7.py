"""7-PGD on CIFAR-100: a row of the table of Shafahi et al.'s README.

Command: python -m freeadv_jax.main --config=configs/cifar100_pgd7.py --config.data.dir=DIR
Published: natural 59.87, PGD-20 22.76, PGD-100 22.52; 5157 minutes (README of
    ashafahi/free_adv_train).
Ours: not yet run.
"""

from freeadv_jax.config import base_config


def get_config():
    config = base_config()
    config.method = "pgd"
    config.data.name = "cifar100"
    config.attack.step_size = config.attack.get_ref("epsilon") / 4
    return config
