"""Free-m beyond the paper: two changes that gain robust accuracy at the cost of Free-8.

Four replays from a random start of each image, and images standardised by the training
set's mean and deviation rather than each by its own. Scaled down to a CPU this row has a
higher natural and robust accuracy than Free-8 (docs/ablation.md); at this size that is
not known.

Command: python -m freeadv_jax.main --config=configs/cifar10_modern.py --config.data.dir=DIR
Published: no figures; this row is our own, the best variant of benchmarks.ablation.
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
