"""Free-m beyond the paper: what gains robust accuracy at the price of Free-8.

Four replays from a random start of each image, and images standardised by the training
set's mean and deviation rather than each by its own. Scaled down to a CPU it has a higher
natural and robust accuracy than Free-8 (docs/ablation.md); at this size it is open.

Command: python -m freeadv_jax.main --config=configs/cifar10_modern.py --config.data.dir=DIR
Published: no figures; this row is ours, of what leads benchmarks.ablation.
Ours: not yet run.
"""

from freeadv_jax.config import base_config
from freeadv_jax.recipes import CIFAR_10_STANDARDISATION


def get_config():
    config = base_config()
    config.attack.replays = 4
    config.attack.start = "random"
    config.model.update(CIFAR_10_STANDARDISATION)
    return config
