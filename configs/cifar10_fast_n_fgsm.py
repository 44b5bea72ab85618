"""N-FGSM (de Jorge et al. 2022) on CIFAR-10, in the recipe of FGSM-RS's row.

One step of epsilon from noise in a ball of twice epsilon, neither projected; the other
settings are those of `cifar10_fast_fgsm_rs`, not the authors'.

Command: python -m freeadv_jax.main --config=configs/cifar10_fast_n_fgsm.py --config.data.dir=DIR
Published: no figures for this recipe. ResNet-18 after 100 passes with averaged weights:
    natural 78.59, AutoAttack 47.77 (fzjcdt/FastAT_Benchmark).
Ours: not yet run.
"""

from freeadv_jax.recipes import wong_2020


def get_config():
    config = wong_2020()
    config.method = "n-fgsm"
    config.updates = 15 * 390
    config.attack.step_size = config.attack.get_ref("epsilon")
    return config
