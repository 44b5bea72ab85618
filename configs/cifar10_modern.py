"""Free-8 on CIFAR-10 at the same price, with what helped: no row of a published table.

A step of 1.25 epsilon and label smoothing of 0.1, chosen by `python -m
benchmarks.ablation` on images held out of the training set, with a small network and a
short budget. Updates, passes through the network and all else are those of
cifar10_free8.

Command: python -m freeadv_jax.main --config=configs/cifar10_modern.py --config.data.dir=DIR
Published: no figures.
Ours: not yet run at full size; scaled down to a CPU, `python -m benchmarks.modern` and the
    README.
"""

from freeadv_jax.config import base_config

CHANGES = {
    "attack.step_size": 10 / 255,
    "optimizer.label_smoothing": 0.1,
}


def get_config():
    config = base_config()
    config.update_from_flattened_dict(CHANGES)
    return config
