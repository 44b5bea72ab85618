"""FGSM-PGI (Jia et al. 2022) on CIFAR-10, in the recipe of FGSM-RS's row.

One step of epsilon from the perturbation of the minibatch before (FGSM-BP) and the
authors' lambda 10; the other settings are those of `cifar10_fast_fgsm_rs`, not theirs.

Command: python -m freeadv_jax.main --config=configs/cifar10_fast_fgsm_pgi.py --config.data.dir=DIR
Published: no figures for this recipe. ResNet-18 after 100 passes with averaged weights, and
    a perturbation for each image (FGSM-MEP): natural 79.72, AutoAttack 49.89
    (fzjcdt/FastAT_Benchmark).
Ours: not yet run.
"""

from freeadv_jax.recipes import wong_2020


def get_config():
    config = wong_2020()
    config.method = "fgsm-pgi"
    config.updates = 15 * 390
    config.attack.step_size = config.attack.get_ref("epsilon")
    return config
