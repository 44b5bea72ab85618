"""Feature denoising on ImageNet: Xie et al. (CVPR 2019), ResNet-152 and 30-PGD at 16/255.

A block of `freeadv_jax.models.denoising` ends each stage. Batches of 4,096, label
smoothing, and 110 passes over the data with drops of the learning rate after 35, 70 and
95 are meant to be the authors', and were not compared with their code. Their attack aims at
a random class, ours away from the label.

Command: python -m freeadv_jax.main --config=configs/imagenet_denoise152.py --config.data.dir=DIR
Published: no figures in the slides that name the method (Shafahi et al. 2019).
Ours: not yet run.
"""

from freeadv_jax.recipes import imagenet

_BATCH, _PASSES = 4096, 110


def get_config():
    config = imagenet()
    config.method = "pgd"
    config.batch_size = _BATCH
    config.updates = _PASSES * (1_281_167 // _BATCH)
    config.model.name = "resnet-152-denoise"
    config.optimizer.learning_rate = 0.1 * _BATCH / 256
    config.optimizer.turns = tuple(drop / _PASSES for drop in (35, 70, 95))
    config.optimizer.warmup = 5 / _PASSES
    config.optimizer.decayed = "kernels"
    config.optimizer.label_smoothing = 0.1
    config.attack.epsilon = 16 / 255
    config.attack.steps = 30
    config.attack.step_size = config.attack.get_ref("epsilon") / 16
    config.evaluation.step_size = config.attack.get_ref("epsilon") / 16
    return config
