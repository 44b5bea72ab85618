"""Free-2 on CIFAR-10: a row of Table 1 of Shafahi et al. (2019).

Command: python -m freeadv_jax.main --config=configs/cifar10_free2.py --config.data.dir=DIR
Published: natural 91.45, PGD-20 33.92, PGD-100 33.20, CW-100 34.57, PGD-20 with 10
    restarts 33.41; 816 minutes (Table 1, the authors' slides).
Ours: not yet run.
"""

from freeadv_jax.config import base_config


def get_config():
    config = base_config()
    config.attack.replays = 2
    return config
