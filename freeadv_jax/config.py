"""Every field of a configuration, once; `configs/<row>.py` sets only what differs."""

import difflib
import math

from ml_collections import ConfigDict

from freeadv_jax.attacks.threat import NORMS
from freeadv_jax.errors import InputError
from freeadv_jax.models import DTYPES, NORMALIZATIONS
from freeadv_jax.training.free import STARTS
from freeadv_jax.training.optim import DECAYED, SCHEDULES

METHODS = ("natural", "free", "pgd", "fgsm-rs", "trades")

# A run may go on with others of these. They change no weights, but for the budget: the
# learning rate follows the new one.
FREE_TO_CHANGE = (
    "updates",
    "data.dir",
    "data.manual_dir",
    "data.prefetch",
    "validation",
    "checkpoint",
    "logging",
    "evaluation",
)

_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "a string",
    tuple: "a tuple, all of one type and finite",
}


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


def validate(config: ConfigDict) -> None:
    """InputError naming the first field whose value cannot be, and what may be."""
    _same_fields(config.to_dict(), base_config().to_dict())
    for field, allowed in {
        "method": METHODS,
        "model.normalization": NORMALIZATIONS,
        "model.dtype": DTYPES,
        "optimizer.schedule": SCHEDULES,
        "optimizer.decayed": DECAYED,
        "attack.norm": NORMS,
        "attack.start": STARTS,
    }.items():
        _require(config, field, allowed.__contains__, f"one of {', '.join(allowed)}")
    for field in (
        "updates",
        "batch_size",
        "data.image_size",
        "attack.replays",
        "attack.steps",
        "checkpoint.every_updates",
        "checkpoint.keep",
        "logging.every_updates",
        "evaluation.batch_size",
    ):
        _require(config, field, lambda value: value >= 1, "1 or more")
    for field in (
        "data.validation_examples",
        "data.pad",
        "data.prefetch",
        "optimizer.weight_decay",
        "attack.beta",
        "evaluation.examples",
    ):
        _require(config, field, lambda value: value >= 0, "0 or more")
    _require(config, "seed", lambda value: 0 <= value < 2**32, "0 to 2**32 - 1")
    for field in (
        "optimizer.momentum",
        "optimizer.warmup",
        "optimizer.label_smoothing",
        "optimizer.average_decay",
        "data.max_corrupt",
    ):
        _require(config, field, lambda value: 0 <= value < 1, "0 up to below 1")
    for field in ("optimizer.learning_rate", "validation.every_passes"):
        _require(config, field, lambda value: value > 0, "above 0")
    _require(config, "model.std", lambda v: all(s > 0 for s in v), "all above 0")
    _require(config, "evaluation.attacks", len, "at least one attack")
    # A step may cross the whole ball; beyond that it is a mistaken unit.
    most = 1 if config.attack.norm == "linf" else math.inf
    for field, highest in {
        "attack.epsilon": most,
        "attack.step_size": 2 * most,
        "evaluation.step_size": 2 * most,
    }.items():
        _require(
            config,
            field,
            lambda value, highest=highest: 0 < value <= highest,
            "in [0, 1] pixels and above 0: eight of 255 levels are 8 / 255",
        )
    _check_turns(config)
    _check_budget(config)


def _check_turns(config):
    turns = config.optimizer.turns
    _require(
        config,
        "optimizer.turns",
        lambda turns: (
            all(0 < turn < 1 for turn in turns) and sorted(set(turns)) == list(turns)
        ),
        "rising fractions of the budget, above 0 and below 1",
    )
    schedule = config.optimizer.schedule
    if schedule == "triangular" and len(turns) != 1:
        raise InputError(
            f"optimizer.turns = {turns}: the triangular schedule has one turn, its peak"
        )
    if schedule == "cosine" and turns:
        raise InputError(f"optimizer.turns = {turns}: the cosine schedule has none: ()")


def _check_budget(config):
    m = replays(config)
    if config.updates % m:
        below = config.updates // m * m
        nearest = f"{below} or {below + m}" if below else f"{m}"
        raise InputError(
            f"updates = {config.updates}: not a multiple of attack.replays = {m}; "
            f"nearest: {nearest}"
        )


def differences(saved: dict, config: ConfigDict) -> list[str]:
    """'field: saved value -> new value' where a run may not be continued."""
    # A run made before a field existed has its default.
    old, new = _flat(base_config().to_dict()) | _flat(saved), _flat(config.to_dict())
    return [
        f"{field}: {old.get(field)!r} -> {new.get(field)!r}"
        for field in sorted(old.keys() | new.keys())
        if old.get(field) != new.get(field)
        and not any(
            field == free or field.startswith(f"{free}.") for free in FREE_TO_CHANGE
        )
    ]


def field_names() -> list[str]:
    """All fields, those of a group as 'group.field'."""
    return list(_flat(base_config().to_dict()))


def wrong_type(field: str, value) -> str:
    """One line about a value that is not of the type of its field."""
    base = _flat(base_config().to_dict())[field]
    return f"{field} = {value!r}: must be {_KINDS[type(base)]}, such as {base!r}"


def unknown_field(name: str) -> str:
    """One line about a field that does not exist, with the nearest that does."""
    known = field_names()
    tails = {field.split(".")[-1]: field for field in known}
    near = difflib.get_close_matches(name, known, n=1) or [
        tails[tail]
        for tail in difflib.get_close_matches(name.split(".")[-1], tails, n=1)
    ]
    hint = f"did you mean {near[0]!r}?" if near else f"fields: {', '.join(known)}"
    return f"config has no field {name!r}; {hint}"


def _flat(tree: dict, prefix: str = "") -> dict:
    """{'a.b': value} of nested dicts, with tuples for lists as JSON gives them."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = tuple(value) if isinstance(value, list) else value
    return flat


def _same_fields(config: dict, base: dict) -> None:
    config, base = _flat(config), _flat(base)
    for field, value in config.items():
        if field not in base:
            raise InputError(unknown_field(field))
        kind = type(base[field])
        if kind is tuple and isinstance(value, tuple):
            wrong = base[field] and any(
                type(item) is not type(base[field][0]) for item in value
            )
        else:
            wrong = type(value) is not kind
        items = value if isinstance(value, tuple) else (value,)
        if wrong or any(isinstance(x, float) and not math.isfinite(x) for x in items):
            raise InputError(wrong_type(field, value))
    if missing := base.keys() - config.keys():
        raise InputError(f"config lacks {', '.join(sorted(missing))}")


def _require(config, field, holds, allowed):
    value = config
    for name in field.split("."):
        value = value[name]
    if not holds(value):
        raise InputError(f"{field} = {value!r}: must be {allowed}")
