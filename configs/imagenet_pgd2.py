"""2-PGD on ImageNet with ResNet-50, at 4/255: the recipe of Shafahi et al. (2019).

Two steps of half of epsilon, from a random start; the step size is our choice.

Command: python -m freeadv_jax.main --config=configs/imagenet_pgd2.py --config.data.dir=DIR
Published: no figures that we know of.
Ours: not yet run.
"""

from freeadv_jax.recipes import imagenet


def get_config():
    config = imagenet()
    config.method = "pgd"
    config.attack.steps = 2
    config.attack.step_size = config.attack.get_ref("epsilon") / 2
    return config
