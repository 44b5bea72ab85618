"""7-PGD on CIFAR-10: a row of "Fast is better than free" (Wong et al. 2020).

15 passes over the data, the default of their code, as in the rerun below.

Command: python -m freeadv_jax.main --config=configs/cifar10_fast_pgd7.py --config.data.dir=DIR
Published: natural 76.64, PGD-50 with 10 restarts 47.25 (a user's rerun:
    locuslab/fast_adversarial issue 8).
Ours: not yet run.
"""

from freeadv_jax.recipes import wong_2020


def get_config():
    config = wong_2020()
    config.method = "pgd"
    config.updates = 15 * 390
    config.attack.step_size = config.attack.get_ref("epsilon") / 4
    return config
