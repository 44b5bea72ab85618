"""Free-4 on ImageNet with ResNet-50 in large batches for a pod: not a published row.

The recipe of imagenet_free4 with batches of 2,048, the learning rate scaled with them
and warmed up over the first two of 23 passes (Goyal et al. 2017), a cosine schedule,
label smoothing, averaged weights and bfloat16. Nothing here was tuned.

Command: python -m freeadv_jax.main --config=configs/imagenet_free4_modern.py --config.data.dir=DIR
Published: no figures that we know of.
Ours: not yet run.
"""

from freeadv_jax.recipes import imagenet

_BATCH, _PASSES = 2048, 23


def get_config():
    config = imagenet(replays=4)
    config.batch_size = _BATCH
    config.updates = _PASSES * (1_281_167 // _BATCH) * 4
    config.model.dtype = "bfloat16"
    config.optimizer.learning_rate = 0.1 * _BATCH / 256
    config.optimizer.schedule = "cosine"
    config.optimizer.turns = ()
    config.optimizer.warmup = 2 / _PASSES
    config.optimizer.label_smoothing = 0.1
    config.optimizer.average_decay = 0.999
    return config
