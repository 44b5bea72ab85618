"""2-PGD on CIFAR-100: a row of the table of Shafahi et al.'s README.

The step size is that of 7-PGD; this row's own is unknown to us.

Command: python -m freeadv_jax.main --config=configs/cifar100_pgd2.py --config.data.dir=DIR
Published: natural 67.94, PGD-20 17.08, PGD-100 16.50; 2053 minutes (README of
    ashafahi/free_adv_train).
Ours: not yet run.
"""

from freeadv_jax.config import base_config


def get_config():
    config = base_config()
    config.method = "pgd"
    config.data.name = "cifar100"
    config.attack.steps = 2
    config.attack.step_size = config.attack.get_ref("epsilon") / 4
    return config
