"""Adversarial weight perturbation on CIFAR-10: AT-AWP of Wu et al. (NeurIPS 2020).

200 passes over the data, each of 50,000 // 128 = 390 minibatches.

Command: python -m freeadv_jax.main --config=configs/cifar10_awp.py --config.data.dir=DIR
Published: no figures that we have checked.
Ours: not yet run.
"""

from freeadv_jax.config import base_config
from freeadv_jax.recipes import CIFAR_10_STANDARDISATION


def get_config():
    config = base_config()
    config.method = "awp"
    config.updates = 200 * 390
    config.data.pad = 4
    config.model.name = "preact-resnet-18"
    config.model.update(CIFAR_10_STANDARDISATION)
    config.optimizer.turns = (1 / 2, 3 / 4)
    config.optimizer.weight_decay = 5e-4
    config.optimizer.decayed = "all"
    config.attack.step_size = config.attack.get_ref("epsilon") / 4
    config.attack.steps = 10
    config.evaluation.attacks = ("natural", "pgd-20", "autoattack")
    return config
