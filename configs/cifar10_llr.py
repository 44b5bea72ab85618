"""Local linearity regularisation (Qin et al. 2019) on CIFAR-10, the recipe of 7-PGD's row.

Lambda, mu and the ten ascents are the authors'; network and schedule are those of
`cifar10_pgd7`.

Command: python -m freeadv_jax.main --config=configs/cifar10_llr.py --config.data.dir=DIR
Published: no figures in the slides that name the method (Shafahi et al. 2019).
Ours: not yet run.
"""

from freeadv_jax.config import base_config


def get_config():
    config = base_config()
    config.method = "llr"
    config.attack.steps = 10
    config.attack.step_size = config.attack.get_ref("epsilon") / 4
    return config
