"""Free-4 on CIFAR-10: a row of Table 1 of Shafahi et al. (2019).

Command: python -m freeadv_jax.main --config=configs/cifar10_free4.py --config.data.dir=DIR
Published: natural 87.83, PGD-20 41.15, PGD-100 40.35, CW-100 41.96, PGD-20 with 10
    restarts 40.73; 800 minutes (Table 1, the authors' slides).
Ours: not yet run.
"""

from freeadv_jax.config import base_config


def get_config():
    config = base_config()
    config.attack.replays = 4
    return config
