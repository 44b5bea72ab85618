"""Recipes that several files of `configs/` share."""

import math

from ml_collections import ConfigDict

from freeadv_jax.config import base_config

# Mean and deviation of the training set, from "Fast is better than free".
CIFAR_10_STANDARDISATION = {
    "normalization": "mean_std",
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2471, 0.2435, 0.2616),
}


def wong_2020() -> ConfigDict:
    """Return the recipe of the CIFAR-10 rows of "Fast is better than free".

    Source: Wong et al. (ICLR 2020) and its code, locuslab/fast_adversarial, here without
    the mixed precision. A pass over the data is 50,000 // 128 = 390 minibatches.
    """
    config = base_config()
    config.data.pad = 4
    config.model.name = "preact-resnet-18"
    config.model.update(CIFAR_10_STANDARDISATION)
    config.optimizer.learning_rate = 0.2
    config.optimizer.schedule = "triangular"
    config.optimizer.turns = (0.5,)
    config.optimizer.weight_decay = 5e-4
    config.optimizer.decayed = "all"
    config.evaluation.attacks = ("natural", "pgd-50-x10")
    return config


def imagenet(*, replays: int = 1) -> ConfigDict:
    """Return the recipe of the ImageNet rows of Shafahi et al. (2019) for Free-`replays`.

    Source: their code, mahyarnajibi/FreeAdversarialTraining. With m = `replays` it makes
    ceil(90 / m) passes over the data, each of 1,281,167 // 256 = 5,004 minibatches, and
    divides the learning rate by 10 after every ceil(30 / m) passes.
    """
    passes, between_drops = math.ceil(90 / replays), math.ceil(30 / replays)
    config = base_config()
    config.updates = passes * (1_281_167 // 256) * replays
    config.batch_size = 256
    config.data.name = "imagenet"
    config.data.pad = 0
    config.model.name = "resnet-50"
    config.model.normalization = "mean_std"
    config.model.mean = (0.485, 0.456, 0.406)
    config.model.std = (0.229, 0.224, 0.225)
    config.optimizer.turns = tuple(
        drop / passes for drop in range(between_drops, passes, between_drops)
    )
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decayed = "all"
    config.attack.epsilon = 4 / 255
    config.attack.replays = replays
    config.evaluation.attacks = ("natural", "pgd-10", "pgd-50", "pgd-100")
    config.evaluation.batch_size = 256
    return config


def imagenet_from_clean_weights(network: str) -> ConfigDict:
    """Return Free-4 on ImageNet from clean weights of a ViT or ConvNeXt, not a published row.

    The optimizer is that of DeiT (Touvron et al. 2021) and ConvNeXt (Liu et al. 2022): AdamW
    with learning rate 0.001 for 1,024 images and weight decay 0.05, a warm-up, a cosine,
    label smoothing and stochastic depth. Twelve passes, each minibatch replayed four times,
    are as many updates as 48 passes of natural training. Nothing here was tuned.
    """
    replays, passes, batch = 4, 12, 1024
    config = imagenet(replays=replays)
    config.batch_size = batch
    config.updates = passes * (1_281_167 // batch) * replays
    config.model.name = network
    config.model.dtype = "bfloat16"
    config.model.drop_path = 0.1
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.turns = ()
    config.optimizer.warmup = 0.1
    config.optimizer.weight_decay = 0.05
    config.optimizer.decayed = "kernels"
    config.optimizer.clip_norm = 1.0
    config.optimizer.label_smoothing = 0.1
    config.optimizer.average_decay = 0.999
    return config


def folder_from_clean_weights(network: str) -> ConfigDict:
    """Return the recipe of `imagenet_from_clean_weights` for a folder of one's own images.

    The batches are smaller, and the learning rate with them.
    """
    config = imagenet_from_clean_weights(network)
    config.data.name = "folder:PATH"
    config.batch_size = 64
    config.updates = 4_000
    config.optimizer.learning_rate = 1e-3 * 64 / 1024
    return config


def mnist_ibp() -> ConfigDict:
    """Return the recipe of certified training on MNIST, with the network DM-medium.

    Source: Gowal et al. (2018) and their code, deepmind/interval-bound-propagation: Adam,
    whose learning rate 0.001 is divided by 10 after 15,000 and 25,000 updates.
    """
    updates = 60_000
    config = base_config()
    config.method = "ibp"
    config.updates = updates
    config.batch_size = 100
    config.data.name = "mnist"
    config.data.pad = 0
    config.data.flip = False
    config.model.name = "dm-medium"
    config.model.normalization = "mean_std"
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.turns = (15_000 / updates, 25_000 / updates)
    config.optimizer.weight_decay = 0.0
    config.attack.certified_warmup = 2_000 / updates
    config.attack.certified_rampup = 10_000 / updates
    config.attack.certified_kappa = 0.5
    config.evaluation.attacks = ("natural", "pgd-20")
    return config


def cifar10_ibp() -> ConfigDict:
    """Return the recipe of certified training on CIFAR-10, with the network DM-large.

    Source: Zhang et al. (ICLR 2020), config/cifar_dm-large_8_255.json of
    huanzhang12/CROWN-IBP: 3,200 passes, in batches of 1,024, with Adam's learning rate
    0.0005 divided by 10 after 2,600 and 3,040 passes. Their radius rises along a smooth
    curve, and here along a line.
    """
    passes = 3_200
    config = mnist_ibp()
    config.updates = passes * (50_000 // 1024)
    config.batch_size = 1024
    config.data.name = "cifar10"
    config.data.pad = 4
    config.data.flip = True
    config.model.name = "dm-large"
    config.model.update(CIFAR_10_STANDARDISATION)
    config.optimizer.learning_rate = 5e-4
    config.optimizer.turns = (2_600 / passes, 3_040 / passes)
    config.attack.certified_scale = 1.1
    config.attack.certified_warmup = 320 / passes
    config.attack.certified_rampup = 1_600 / passes
    return config


def digits() -> ConfigDict:
    """Return the recipe of Free-8 on scikit-learn's digits, seconds on a CPU, epsilon 0.2.

    Learning rate, decay and budget were chosen on 200 images held out of the training
    set (`python -m benchmarks.digits --select`). Two settings lead there, within one image
    of each other; the one whose two seeds agree was taken. Half of a digit's pixels are
    exactly 0, so most of delta would soon be stuck without the straight-through
    gradient.
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
    config.attack.straight_through = True
    config.validation.every_passes = 3.0
    config.checkpoint.every_updates = 320
    config.evaluation.attacks = ("natural", "fgsm", "pgd-20", "pgd-100", "cw-100")
    return config
