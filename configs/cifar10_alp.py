"""Adversarial logit pairing (Kannan et al. 2018) on CIFAR-10, the recipe of 7-PGD's row.

Its authors trained on MNIST, SVHN and ImageNet; lambda is theirs, the rest is that of
`cifar10_pgd7`.

Command: python -m freeadv_jax.main --config=configs/cifar10_alp.py --config.data.dir=DIR
Published: no figures in the slides that name the method (Shafahi et al. 2019).
Ours: not yet run.
"""

from freeadv_jax.config import base_config


def get_config():
    config = base_config()
    config.method = "alp"
    config.attack.step_size = config.attack.get_ref("epsilon") / 4
    return config
