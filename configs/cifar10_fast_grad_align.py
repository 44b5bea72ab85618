"""GradAlign (Andriushchenko & Flammarion 2020) on CIFAR-10, in the recipe of FGSM-RS's row.

One step of epsilon from the image; the other settings are those of `cifar10_fast_fgsm_rs`,
not the authors'. The weight 0.2 of the cosine is theirs for this epsilon.

Command: python -m freeadv_jax.main --config=configs/cifar10_fast_grad_align.py --config.data.dir=DIR
Published: no figures for this recipe. ResNet-18 after 100 passes with averaged weights:
    natural 79.39, AutoAttack 47.99 (fzjcdt/FastAT_Benchmark).
Ours: not yet run.
"""

from freeadv_jax.recipes import wong_2020


def get_config():
    config = wong_2020()
    config.method = "grad-align"
    config.updates = 15 * 390
    config.attack.step_size = config.attack.get_ref("epsilon")
    return config
