"""MART on CIFAR-10: Wang et al. (ICLR 2020), by the settings of the authors' code.

Epsilon is theirs, 0.031, with steps of 0.007 in training and 0.003 in the attack.
`--config.attack.epsilon=8/255` gives the ball of the other rows, and the steps follow. A
pass over the data is 50,000 // 128 = 390 minibatches.

Command: python -m freeadv_jax.main --config=configs/cifar10_mart.py --config.data.dir=DIR
Published: no figures that we have checked.
Ours: not yet run.
"""

from freeadv_jax.config import base_config


def get_config():
    config = base_config()
    config.method = "mart"
    config.updates = 120 * 390
    config.data.pad = 4
    config.model.name = "cifar-resnet-18"
    config.model.normalization = "mean_std"
    config.optimizer.learning_rate = 0.01
    config.optimizer.turns = (74 / 120, 89 / 120, 99 / 120)
    config.optimizer.weight_decay = 3.5e-3
    config.optimizer.decayed = "all"
    config.attack.epsilon = 0.031
    config.attack.step_size = config.attack.get_ref("epsilon") * 7 / 31
    config.attack.steps = 10
    config.evaluation.attacks = ("natural", "pgd-20")
    config.evaluation.step_size = config.attack.get_ref("epsilon") * 3 / 31
    return config
