"""More robust than Free-8 at its price: four replays, each image from a random start.

Command: python -m freeadv_jax.main --config=configs/cifar10_modern.py --config.data.dir=DIR
Published: none; this row is ours, of what leads benchmarks.ablation.
Ours: not yet run at this size; with a small network and budget see the README.
"""

from freeadv_jax.config import base_config


def get_config():
    config = base_config()
    config.attack.replays = 4
    config.attack.start = "random"
    return config
