"""Free-m beyond the paper: four replays from a random start of each image.

At the price of Free-8 it is more robust on two small networks with small budgets, in the
mean over seeds (README); whether at this size as well is open.

Command: python -m freeadv_jax.main --config=configs/cifar10_modern.py --config.data.dir=DIR
Published: no figures; this row is ours, of what leads benchmarks.ablation.
Ours: not yet run.
"""

from freeadv_jax.config import base_config


def get_config():
    config = base_config()
    config.attack.replays = 4
    config.attack.start = "random"
    return config
