"""Recipes that several files of `configs/` share; `base_config` is Shafahi et al.'s."""

from ml_collections import ConfigDict

from freeadv_jax.config import base_config


def wong_2020() -> ConfigDict:
    """What the CIFAR-10 rows of "Fast is better than free" have in common.

    Wong et al. (ICLR 2020) and its code, locuslab/fast_adversarial, here without the
    mixed precision. A pass over the data is 50,000 // 128 = 390 minibatches.
    """
    config = base_config()
    config.data.pad = 4
    config.model.name = "preact-resnet-18"
    config.model.normalization = "mean_std"
    config.model.mean = (0.4914, 0.4822, 0.4465)
    config.model.std = (0.2471, 0.2435, 0.2616)
    config.optimizer.learning_rate = 0.2
    config.optimizer.schedule = "triangular"
    config.optimizer.turns = (0.5,)
    config.optimizer.weight_decay = 5e-4
    config.optimizer.decayed = "all"
    config.evaluation.attacks = ("natural", "pgd-50-x10")
    return config


def digits() -> ConfigDict:
    """Free-8 on scikit-learn's digits in seconds on a CPU, at epsilon 0.2.

    Learning rate, decay and budget were chosen on 200 images held out of the training
    set (`python -m benchmarks.digits --select`): of the two settings that lead there,
    within an image of each other, the one whose two seeds agree. Half of a digit's pixels are exactly
    0: without the straight-through gradient most of delta would soon be stuck.
    """
    config = base_config()
    config.updates = 1280
    config.data.name = "digits"
    config.data.validation_examples = 200
    config.data.pad = 0
    config.data.flip = False
    config.model.name = "small-cnn"
    config.model.normalization = "mean_std"
    config.optimizer.learning_rate = 0.1
    config.optimizer.schedule = "triangular"
    config.optimizer.turns = (0.4,)
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 2e-3
    config.attack.epsilon = 0.2
    config.attack.step_size = 0.2
    config.attack.straight_through = True
    config.validation.every_passes = 3.0
    config.checkpoint.every_updates = 320
    config.evaluation.attacks = ("natural", "fgsm", "pgd-20", "pgd-100", "cw-100")
    config.evaluation.step_size = 0.05
    return config
