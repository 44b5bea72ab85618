"""Free-8 on CIFAR-10: a row of "Fast is better than free" (Wong et al. 2020).

10 passes over the data, each minibatch replayed 8 times.

Command: python -m freeadv_jax.main --config=configs/cifar10_fast_free8.py --config.data.dir=DIR
Published: natural 76.95, PGD-50 with 10 restarts 45.98 (a user's rerun:
    locuslab/fast_adversarial issue 8).
Ours: not yet run.
"""

from freeadv_jax.recipes import wong_2020


def get_config():
    config = wong_2020()
    config.updates = 10 * 390 * 8
    config.optimizer.learning_rate = 0.04
    return config
