"""Every field of a configuration, once; `configs/<row>.py` sets only what differs."""

from ml_collections import ConfigDict


def base_config() -> ConfigDict:
    """The authors' CIFAR-10 recipe for Free-8: Shafahi et al. (2019).

    Epsilons and step sizes are in [0, 1] pixels. Locked: an unknown field fails.
    """
    config = ConfigDict()
    # natural | free | pgd | fgsm-rs | trades
    config.method = "free"
    # Weight updates in all, whatever the method: minibatches times replays.
    config.updates = 80_000
    # Images in a minibatch, over all devices together.
    config.batch_size = 128
    # Everything random is a function of this and the step.
    config.seed = 0

    config.data = ConfigDict()
    # digits | mnist | fashion_mnist | cifar10 | cifar100 | tfds:<name> | imagenet |
    # folder:<path>
    config.data.name = "cifar10"
    # Where the files lie, or tensorflow-datasets keeps them; imagenet's archives.
    config.data.dir = ""
    config.data.manual_dir = ""
    # Held out of the training set, for validation and the choice of the best.
    config.data.validation_examples = 0
    # Pixels of zero padding a side before the random crop, and a random flip.
    config.data.pad = 2
    config.data.flip = True
    # Of imagenet and folders: the sides of the crops, and batches made in advance.
    config.data.image_size = 224
    config.data.prefetch = 2
    # The share of damaged images in a folder up to which they are left out.
    config.data.max_corrupt = 0.01

    config.model = ConfigDict()
    config.model.name = "wrn-32-10-madry"
    # per_image (standardisation), or mean_std with one value or one a channel.
    config.model.normalization = "per_image"
    config.model.mean = (0.0,)
    config.model.std = (1.0,)
    # Of the computation: float32 | bfloat16. Parameters are always float32.
    config.model.dtype = "float32"
    # BatchNorm over the global batch; False: over each device's part.
    config.model.sync_batch_norm = True
    # The backward pass keeps the outputs of convolutions alone, and makes the rest anew.
    config.model.remat = False

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 0.1
    # step (divided by 10 at each turn) | triangular (peak at the one turn) | cosine.
    config.optimizer.schedule = "step"
    # Fractions of the budget.
    config.optimizer.turns = (0.5, 0.75)
    # The first part of the budget, in which the learning rate rises from 0.
    config.optimizer.warmup = 0.0
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = False
    config.optimizer.weight_decay = 2e-4
    # kernels | all
    config.optimizer.decayed = "kernels"
    # Share of the label that the loss spreads over all classes.
    config.optimizer.label_smoothing = 0.0
    # Above 0, the model is the moving average of the weights with this decay an update.
    config.optimizer.average_decay = 0.0

    config.attack = ConfigDict()
    # The threat, in training and in evaluation: linf | l2.
    config.attack.norm = "linf"
    config.attack.epsilon = 8 / 255
    # Of the attack inside training: unless set, epsilon itself, as Free-m takes it.
    config.attack.step_size = config.attack.get_ref("epsilon") * 1.0
    # m of Free-m.
    config.attack.replays = 8
    # Of Free-m, where a minibatch's delta begins: carried (from the minibatch before,
    # by place in the batch) | random (in the ball) | zero.
    config.attack.start = "carried"
    # Of Free-m: delta's gradient is taken at the clipped image, not through the clip.
    config.attack.straight_through = False
    # K of K-PGD and of TRADES.
    config.attack.steps = 7
    # Weight of the divergence in TRADES.
    config.attack.beta = 6.0

    config.validation = ConfigDict()
    # Natural and PGD-10 accuracy on the held-out part, every so many passes.
    config.validation.every_passes = 1.0
    # Stop when robust validation accuracy collapses while training loss falls.
    config.validation.stop_on_collapse = False

    config.checkpoint = ConfigDict()
    config.checkpoint.every_updates = 2_000
    # The newest so many are kept, and the best by robust validation accuracy.
    config.checkpoint.keep = 2

    config.logging = ConfigDict()
    # A line of metrics.jsonl, with the means since the line before.
    config.logging.every_updates = 80

    config.evaluation = ConfigDict()
    # natural | fgsm | pgd-, cw- or dlr-<steps>[-x<restarts>] | apgd-ce | apgd-dlr |
    # apgd-t | fab-t | square | autoattack | autoattack-plus
    config.evaluation.attacks = (
        "natural",
        "pgd-20",
        "pgd-100",
        "cw-100",
        "pgd-20-x10",
    )
    # Of these attacks, where they take one: unless set, a quarter of epsilon.
    config.evaluation.step_size = config.attack.get_ref("epsilon") / 4
    # The first so many test images; 0: all of them.
    config.evaluation.examples = 0
    config.evaluation.batch_size = 200
    return config.lock()


def replays(config: ConfigDict) -> int:
    """Weight updates from one minibatch."""
    return config.attack.replays if config.method == "free" else 1


def passes(config: ConfigDict) -> int:
    """Forward and backward passes through the network for one minibatch."""
    steps = config.attack.steps
    attacked = {"natural": 1, "fgsm-rs": 2, "pgd": steps + 1, "trades": steps + 2}
    return attacked.get(config.method, replays(config))
