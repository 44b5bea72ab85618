"""Free-10 on CIFAR-10: a row of Table 1 of Shafahi et al. (2019).

Command: python -m freeadv_jax.main --config=configs/cifar10_free10.py --config.data.dir=DIR
Published: natural 83.94, PGD-20 46.31, PGD-100 45.79, CW-100 45.86, PGD-20 with 10
    restarts 45.94; 785 minutes (Table 1, the authors' slides).
Ours: not yet run.
"""

from freeadv_jax.config import base_config


def get_config():
    config = base_config()
    config.attack.replays = 10
    return config
