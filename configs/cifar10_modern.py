"""Free-m beyond the paper: four replays from a random start of each image.

At the price of Free-8 it has a higher natural accuracy, and on a small network with a
small budget it is more robust, in the mean over seeds. On a larger one held-out images say
so too, but test images do not (README); at this size it is open.

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
