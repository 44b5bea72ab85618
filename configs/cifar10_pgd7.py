"""7-PGD (Madry et al. 2018) on CIFAR-10: a row of Table 1 of Shafahi et al. (2019).

Command: python -m freeadv_jax.main --config=configs/cifar10_pgd7.py --config.data.dir=DIR
Published: natural 87.25, PGD-20 45.84, PGD-100 45.29, CW-100 46.52, PGD-20 with 10
    restarts 45.53; 5418 minutes (Table 1, the authors' slides).
Ours: not yet run.
"""

from freeadv_jax.config import base_config


def get_config():
    config = base_config()
    config.method = "pgd"
    config.attack.step_size = config.attack.get_ref("epsilon") / 4
    return config
