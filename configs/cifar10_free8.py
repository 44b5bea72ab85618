"""Free-8 on CIFAR-10: a row of Table 1 of Shafahi et al. (2019).

Command: python -m freeadv_jax.main --config=configs/cifar10_free8.py --config.data.dir=DIR
Published: natural 85.96, PGD-20 46.82, PGD-100 46.19, CW-100 46.60, PGD-20 with 10
    restarts 46.33; 785 minutes (Table 1, the authors' slides).
Ours: not yet run.
"""

from freeadv_jax.config import base_config


def get_config():
    return base_config()
