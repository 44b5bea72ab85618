"""TRADES on CIFAR-10: Zhang et al. (ICML 2019), by the settings of the authors' code.

Epsilon is theirs, 0.031, with steps of 0.007 in training and 0.003 in the attack.
`--config.attack.epsilon=8/255` gives the ball of the other rows, and the steps follow. A
pass over the data is 50,000 // 128 = 390 minibatches.

Command: python -m freeadv_jax.main --config=configs/cifar10_trades.py --config.data.dir=DIR
Published: natural 84.92, PGD-20 56.61 (README of yaodongyu/TRADES).
Ours: not yet run.
"""

from freeadv_jax.config import base_config


def get_config():
    config = base_config()
    config.method = "trades"
    config.updates = 76 * 390
    config.data.pad = 4
    config.model.name = "wrn-34-10"
    config.model.normalization = "mean_std"
    config.optimizer.turns = (74 / 76,)
    config.optimizer.decayed = "all"
    config.attack.epsilon = 0.031
    config.attack.step_size = config.attack.get_ref("epsilon") * 7 / 31
    config.attack.steps = 10
    config.evaluation.attacks = ("natural", "pgd-20")
    config.evaluation.step_size = config.attack.get_ref("epsilon") * 3 / 31
    return config
