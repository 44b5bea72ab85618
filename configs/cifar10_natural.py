"""Natural training on CIFAR-10: a row of Table 1 of Shafahi et al. (2019).

Command: python -m freeadv_jax.main --config=configs/cifar10_natural.py --config.data.dir=DIR
Published: natural 95.01, PGD-20 0.00, PGD-100 0.00, CW-100 0.00, PGD-20 with 10
    restarts 0.00; 780 minutes (Table 1, the authors' slides).
Ours: not yet run.
"""

from freeadv_jax.config import base_config


def get_config():
    config = base_config()
    config.method = "natural"
    return config
