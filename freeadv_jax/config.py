"""Every field of a configuration, one row each: default, allowed values and meaning.

The configuration, its validation and `--help` all come from FIELDS. A file
`configs/NAME.py` sets only what differs from these defaults.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable
from typing import Any

from ml_collections import ConfigDict

from freeadv_jax.attacks.threat import NORMS, Patch
from freeadv_jax.data.encoded import CODECS, TF_DATA
from freeadv_jax.devices import onednn
from freeadv_jax.errors import InputError
from freeadv_jax.models import DTYPES, NETWORKS, NORMALIZATIONS
from freeadv_jax.models.imported import PREFIX
from freeadv_jax.training.free import STARTS
from freeadv_jax.training.methods import METHODS
from freeadv_jax.training.optim import DECAYED, OPTIMIZERS, SCHEDULES


@dataclasses.dataclass(frozen=True)
class Rule:
    """A condition in words, and a test of it: of values or of configurations."""

    text: str
    holds: Callable[..., bool]


@dataclasses.dataclass(frozen=True)
class Share:
    """A default that follows another field until the field itself is set."""

    field: str
    divisor: float

    def __str__(self) -> str:
        return self.field if self.divisor == 1 else f"{self.field} / {self.divisor:g}"


@dataclasses.dataclass(frozen=True)
class Field:
    """One field; its type is that of its default."""

    name: str
    default: Any
    # A test of (value, config).
    allowed: Rule
    meaning: str
    # A run may continue with another value, because no weight depends on it.
    changeable: bool = False
    # The configurations in which the field has an effect; None for all.
    only: Rule | None = None

    @property
    def kind(self) -> type:
        """The type of the values."""
        return float if isinstance(self.default, Share) else type(self.default)

    @property
    def default_text(self) -> str:
        """The default as the command line takes it."""
        if isinstance(self.default, tuple):
            return ",".join(map(_number_text, self.default))
        return _number_text(self.default)


def _number_text(value) -> str:
    """The value as text, and 0.03137254901960784 as 8/255."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if isinstance(value, float) and len(text) > 8 and (value * 255).is_integer():
        return f"{value * 255:.0f}/255"
    return text


def _one_of(names: Iterable[str]) -> Rule:
    names = tuple(names)
    return Rule(f"one of {', '.join(names)}", lambda value, _: value in names)


def _norms() -> Rule:
    """The norms, and patches for the methods that ascend in their threat alone."""
    patched = ("free", "pgd", "fgsm-rs")

    def holds(value, config):
        return value in NORMS or (value == Patch.norm and config.method in patched)

    names = ", ".join((*NORMS, Patch.norm))
    return Rule(f"one of {names}; patch only with free, pgd or fgsm-rs", holds)


def _networks() -> str:
    """The names of the networks, with the placeholders of command lines."""
    names = ", ".join(NETWORKS)
    return names.replace("<depth>-<widen factor>", "DEPTH-WIDTH")


def _in_ball_units(diameters: int) -> Rule:
    """Sizes up to so many times the largest epsilon; larger ones are a mistaken unit."""

    def holds(value, config):
        # The steps inside a patch change pixels as those in an L-inf ball do.
        in_levels = ("linf",) if diameters == 1 else ("linf", Patch.norm)
        largest = 1 if config.attack.norm in in_levels else math.inf
        return 0 < value <= diameters * largest

    return Rule("above 0, in pixels of [0, 1]: eight of 255 levels are 8 / 255", holds)


def _rising(turns, config) -> bool:
    counts = {"triangular": (1,), "cosine": (0,)}
    allowed = counts.get(config.optimizer.schedule, (len(turns),))
    inside = all(0 < turn < 1 for turn in turns)
    return inside and sorted(set(turns)) == list(turns) and len(turns) in allowed


def _with_setting(setting: str) -> Rule:
    """The configurations whose training method reads `attack.<setting>`."""
    names = [name for name, method in METHODS.items() if setting in method.settings]
    *others, last = names
    text = f"{', '.join(others)} or {last}" if others else last
    return Rule(f"method = {text}", lambda c: c.method in names)


def _is_module(config) -> bool:
    return config.model.name.startswith(PREFIX)


ANY = Rule("", lambda value, _: True)
ONE_OR_MORE = Rule("1 or more", lambda value, _: value >= 1)
ZERO_OR_MORE = Rule("0 or more", lambda value, _: value >= 0)
ABOVE_ZERO = Rule("above 0", lambda value, _: value > 0)
PART = Rule("at least 0 and below 1", lambda value, _: 0 <= value < 1)

ADVERSARIAL = Rule("adversarial methods", lambda c: METHODS[c.method].adversarial)
ENCODED = Rule(
    "imagenet and folder:PATH",
    lambda c: c.data.name == "imagenet" or c.data.name.startswith("folder:"),
)
IN_MEMORY = Rule("data sets in memory", lambda c: not ENCODED.holds(c))
VALIDATED = Rule("data.validation_examples", lambda c: c.data.validation_examples > 0)
OUR_NETWORKS = Rule("the networks of this package", lambda c: not _is_module(c))

FIELDS = (
    Field("method", "free", _one_of(METHODS), "the training method"),
    Field(
        "updates",
        80_000,
        ONE_OR_MORE,
        "weight updates in all, for every method: minibatches times replays",
        # The learning rate follows the new budget.
        changeable=True,
    ),
    Field(
        "batch_size",
        128,
        ONE_OR_MORE,
        "images in a minibatch, over all devices together",
    ),
    Field(
        "seed",
        0,
        Rule("0 to 2**32 - 1", lambda value, _: 0 <= value < 2**32),
        "everything random is a function of the seed and the step",
    ),
    Field(
        "init",
        "",
        ANY,
        "a run folder, an exported folder, a file of PyTorch weights or robustbench:NAME "
        "that the training begins with; the last layer is new where the number of classes "
        "differs",
    ),
    Field(
        "data.name",
        "cifar10",
        Rule(
            "digits, mnist, fashion_mnist, cifar10, cifar100, tfds:NAME, imagenet, "
            "folder:PATH, npz:FILE",
            ANY.holds,
        ),
        "the data set",
    ),
    Field(
        "data.dir",
        "",
        ANY,
        "the folder that holds the data set's files, or where tensorflow-datasets keeps "
        "them",
        changeable=True,
        only=Rule("data sets in files", lambda c: c.data.name != "digits"),
    ),
    Field(
        "data.manual_dir",
        "",
        ANY,
        "the folder that holds ImageNet's archives",
        changeable=True,
        only=Rule("data.name = imagenet", lambda c: c.data.name == "imagenet"),
    ),
    Field(
        "data.validation_examples",
        0,
        ZERO_OR_MORE,
        "training images held out for validation and to choose the best checkpoint",
    ),
    Field(
        "data.test_examples",
        0,
        ZERO_OR_MORE,
        "test images taken from an .npz file that holds training images alone",
        only=Rule("data.name = npz:FILE", lambda c: c.data.name.startswith("npz:")),
    ),
    Field(
        "data.pad",
        2,
        ZERO_OR_MORE,
        "pixels of zero padding on each side before the random crop",
        only=IN_MEMORY,
    ),
    Field("data.flip", True, ANY, "mirror training images with probability 1/2"),
    Field(
        "data.extra",
        "",
        Rule(
            "'' or npz:FILE",
            lambda value, _: (
                not value or (value.startswith("npz:") and value != "npz:")
            ),
        ),
        "an .npz file of labelled images, such as generated ones, that join the training "
        "set",
        only=IN_MEMORY,
    ),
    Field(
        "data.extra_fraction",
        0.5,
        Rule("above 0 and below 1", lambda value, _: 0 < value < 1),
        "the share of each batch that data.extra gives",
        only=Rule("data.extra = npz:FILE", lambda c: bool(c.data.extra)),
    ),
    Field(
        "data.image_size",
        224,
        ONE_OR_MORE,
        "height and width of the crops, in pixels",
        only=ENCODED,
    ),
    Field(
        "data.prefetch",
        2,
        ZERO_OR_MORE,
        "batches decoded in advance",
        changeable=True,
        only=ENCODED,
    ),
    Field(
        "data.reader",
        TF_DATA,
        _one_of(CODECS),
        "what reads and decodes the images; grain needs no TensorFlow",
        only=ENCODED,
    ),
    Field(
        "data.max_corrupt",
        0.01,
        PART,
        "largest share of damaged images that is left out; more of them is an error",
        only=Rule(
            "data.name = folder:PATH", lambda c: c.data.name.startswith("folder:")
        ),
    ),
    Field(
        "model.name",
        "wrn-32-10-madry",
        Rule(
            f"{_networks()}, module:PACKAGE.MODULE:NAME",
            ANY.holds,
        ),
        "the network; module: names a model of one's own: a Flax module class, or a "
        "function that returns a model",
    ),
    Field(
        "model.arguments",
        "",
        Rule("a JSON object or name=value,...", ANY.holds),
        "keyword arguments of the class or function",
        only=Rule("model.name = module:...", _is_module),
    ),
    Field(
        "model.normalization",
        "per_image",
        _one_of(NORMALIZATIONS),
        "per_image standardises each image by its own mean and deviation; mean_std "
        "subtracts model.mean and divides by model.std",
        only=OUR_NETWORKS,
    ),
    Field(
        "model.mean",
        (0.0,),
        ANY,
        "mean of the pixels, one number or one a channel",
        only=Rule(
            "model.normalization = mean_std",
            lambda c: OUR_NETWORKS.holds(c) and c.model.normalization == "mean_std",
        ),
    ),
    Field(
        "model.std",
        (1.0,),
        Rule("all above 0", lambda value, _: all(part > 0 for part in value)),
        "deviation of the pixels, one number or one a channel",
        only=Rule(
            "model.normalization = mean_std",
            lambda c: OUR_NETWORKS.holds(c) and c.model.normalization == "mean_std",
        ),
    ),
    Field(
        "model.dtype",
        "float32",
        _one_of(DTYPES),
        "number type of the computation; parameters are always float32",
        only=OUR_NETWORKS,
    ),
    Field(
        "model.sync_batch_norm",
        True,
        ANY,
        "BatchNorm over the global batch; false: over each device's part of it",
        only=OUR_NETWORKS,
    ),
    Field(
        "model.remat",
        False,
        ANY,
        "keep only the outputs of convolutions and dense layers for the backward pass and "
        "compute the rest again: less memory, more time",
        only=OUR_NETWORKS,
    ),
    Field(
        "model.drop_path",
        0.0,
        PART,
        "rate of stochastic depth: how often training leaves out a block for an image, in "
        "convnext and vit networks the last block, in xcit all",
        only=OUR_NETWORKS,
    ),
    Field(
        "model.convolutions",
        onednn.AUTO,
        _one_of(onednn.CHOICES),
        "kernels of the convolutions on a CPU, equal to rounding: XLA's, oneDNN's, or auto, "
        "which takes oneDNN's for long trainings and attacks where processor and jaxlib "
        "allow it",
    ),
    Field(
        "optimizer.name",
        "sgd",
        _one_of(OPTIMIZERS),
        "stochastic gradient descent, or AdamW",
    ),
    Field("optimizer.learning_rate", 0.1, ABOVE_ZERO, "peak learning rate"),
    Field(
        "optimizer.schedule",
        "step",
        _one_of(SCHEDULES),
        "step divides the rate by 10 at each turn; triangular rises to its one turn and "
        "falls to 0; cosine falls to 0",
    ),
    Field(
        "optimizer.turns",
        (0.5, 0.75),
        Rule(
            "rising fractions of the budget, above 0 and below 1; triangular has one "
            "turn, its peak, and cosine none: ()",
            _rising,
        ),
        "where the schedule turns, in fractions of the budget",
    ),
    Field(
        "optimizer.warmup",
        0.0,
        PART,
        "first part of the budget, in which the learning rate rises from 0",
    ),
    Field(
        "optimizer.momentum",
        0.9,
        PART,
        "momentum; of AdamW, the decay of the gradient's mean",
    ),
    Field(
        "optimizer.beta2",
        0.999,
        PART,
        "decay of the mean of squared gradients",
        only=Rule("optimizer.name = adamw", lambda c: c.optimizer.name == "adamw"),
    ),
    Field("optimizer.nesterov", False, ANY, "Nesterov's form of the momentum"),
    Field(
        "optimizer.weight_decay",
        2e-4,
        ZERO_OR_MORE,
        "of SGD, L2 decay added to the gradient before the momentum; of AdamW, the share "
        "of the weights that an update takes away, times the learning rate",
    ),
    Field(
        "optimizer.decayed",
        "kernels",
        _one_of(DECAYED),
        "the parameters that decay: kernels of convolutions and dense layers, or all",
    ),
    Field(
        "optimizer.clip_norm",
        0.0,
        ZERO_OR_MORE,
        "above 0, the gradient of all weights together is scaled down to this L2 norm",
    ),
    Field(
        "optimizer.label_smoothing",
        0.0,
        PART,
        "share of the label that the loss spreads over all classes",
    ),
    Field(
        "optimizer.average_decay",
        0.0,
        PART,
        "above 0, the trained model is the moving average of the weights, with this "
        "decay an update",
    ),
    Field(
        "attack.norm",
        "linf",
        _norms(),
        "norm of the threat, trained and evaluated; patch is one square anywhere",
    ),
    Field(
        "attack.epsilon",
        8 / 255,
        _in_ball_units(1),
        "radius of the threat, trained and evaluated; of a patch the side in pixels, below 1 "
        "its share of the image",
    ),
    Field(
        # Free-m takes epsilon itself (Shafahi et al. 2019, Algorithm 1).
        "attack.step_size",
        Share("attack.epsilon", 1),
        # A step may cross the whole ball.
        _in_ball_units(2),
        "step of the attack inside training",
        only=ADVERSARIAL,
    ),
    Field(
        "attack.replays",
        8,
        ONE_OR_MORE,
        "m of Free-m: weight updates from one minibatch",
        only=_with_setting("replays"),
    ),
    Field(
        "attack.start",
        "carried",
        _one_of(STARTS),
        "where a minibatch's perturbation begins: carried over from the minibatch "
        "before, by place in the batch; random in the ball; zero",
        only=_with_setting("start"),
    ),
    Field(
        "attack.straight_through",
        False,
        ANY,
        "take the perturbation's gradient at the clipped image, not through the clip",
        only=_with_setting("straight_through"),
    ),
    Field(
        "attack.steps",
        7,
        ONE_OR_MORE,
        "steps of the attack on one minibatch, the K of K-PGD",
        only=_with_setting("steps"),
    ),
    Field(
        "attack.beta",
        6.0,
        ZERO_OR_MORE,
        "weight of the divergence in TRADES",
        only=_with_setting("beta"),
    ),
    Field(
        "attack.n_fgsm_noise",
        2.0,
        ABOVE_ZERO,
        "radius of the noise in N-FGSM, in epsilons",
        only=_with_setting("n_fgsm_noise"),
    ),
    Field(
        "attack.pgi_lambda",
        10.0,
        ZERO_OR_MORE,
        "weight of the squared distance of the logits in FGSM-PGI",
        only=_with_setting("pgi_lambda"),
    ),
    Field(
        "attack.misalignment",
        0.0,
        PART,
        "above 0, a cure for collapse: the step shrinks by misalignment / (1 - v) where the "
        "running alignment v of two gradients is below 1 - misalignment",
        only=_with_setting("misalignment"),
    ),
    Field(
        "attack.grad_align_lambda",
        0.2,
        ZERO_OR_MORE,
        "weight of 1 - the cosine of two gradients in GradAlign",
        only=_with_setting("grad_align_lambda"),
    ),
    Field(
        "attack.gaussian_sigma",
        0.25,
        ABOVE_ZERO,
        "standard deviation of the noise in training for randomised smoothing, in [0, 1] "
        "pixels",
        only=_with_setting("gaussian_sigma"),
    ),
    Field(
        "attack.alp_lambda",
        0.5,
        ZERO_OR_MORE,
        "weight of the squared distance of the logits in ALP",
        only=_with_setting("alp_lambda"),
    ),
    Field(
        "attack.llr_lambda",
        4.0,
        ZERO_OR_MORE,
        "weight of the error of the linear approximation in LLR",
        only=_with_setting("llr_lambda"),
    ),
    Field(
        "attack.llr_mu",
        3.0,
        ZERO_OR_MORE,
        "weight of the slope of the loss in LLR",
        only=_with_setting("llr_mu"),
    ),
    Field(
        "attack.mart_lambda",
        5.0,
        ZERO_OR_MORE,
        "weight of the divergence in MART",
        only=_with_setting("mart_lambda"),
    ),
    Field(
        "attack.awp_gamma",
        0.01,
        ZERO_OR_MORE,
        "norm of each layer's perturbation in AWP, as a part of the norm of its weights",
        only=_with_setting("awp_gamma"),
    ),
    Field(
        "attack.certified_scale",
        1.0,
        ABOVE_ZERO,
        "radius of the bounds in certified training, in epsilons",
        only=_with_setting("certified_scale"),
    ),
    Field(
        "attack.certified_warmup",
        0.05,
        PART,
        "first part of the budget of certified training, which is natural training",
        only=_with_setting("certified_warmup"),
    ),
    Field(
        "attack.certified_rampup",
        0.5,
        PART,
        "part of the budget of certified training, after the warm-up, in which the radius "
        "rises from 0 and kappa falls from 1",
        only=_with_setting("certified_rampup"),
    ),
    Field(
        "attack.certified_kappa",
        0.5,
        Rule("0 to 1", lambda value, _: 0 <= value <= 1),
        "last weight of the natural loss in certified training; the bound has the rest",
        only=_with_setting("certified_kappa"),
    ),
    Field(
        "attack.crown_ibp_beta",
        0.0,
        Rule("0 to 1", lambda value, _: 0 <= value <= 1),
        "last weight of CROWN's bound in CROWN-IBP, from 1 on; IBP's has the rest",
        only=_with_setting("crown_ibp_beta"),
    ),
    Field(
        "validation.every_passes",
        1.0,
        ABOVE_ZERO,
        "passes over the training images between two measurements of natural and PGD-10 "
        "accuracy on the held-out images",
        changeable=True,
        only=VALIDATED,
    ),
    Field(
        "validation.stop_on_collapse",
        False,
        ANY,
        "stop when robust validation accuracy collapses while the training loss falls",
        changeable=True,
        only=Rule(
            "data.validation_examples and adversarial methods",
            lambda c: VALIDATED.holds(c) and ADVERSARIAL.holds(c),
        ),
    ),
    Field(
        "checkpoint.every_updates",
        2_000,
        ONE_OR_MORE,
        "updates between two checkpoints",
        changeable=True,
    ),
    Field(
        "checkpoint.keep",
        2,
        ONE_OR_MORE,
        "newest checkpoints that are kept, beside the best by robust validation accuracy",
        changeable=True,
    ),
    Field(
        "logging.every_updates",
        80,
        ONE_OR_MORE,
        "updates between two lines of metrics.jsonl, each with the means since the line "
        "before",
        changeable=True,
    ),
    Field(
        "evaluation.attacks",
        ("natural", "pgd-20", "pgd-100", "cw-100", "pgd-20-x10"),
        Rule(
            "at least one attack: natural, fgsm, pgd-, cw- or dlr-STEPS[-xRESTARTS], "
            "apgd-ce, apgd-dlr, apgd-t, fab-t, fmn, square, autoattack, autoattack-plus, "
            "autoattack-quick; certificates: ibp, crown-ibp, crown, alpha-crown",
            lambda value, _: len(value) > 0,
        ),
        "the attacks of the evaluation, with commas between",
        changeable=True,
    ),
    Field(
        "evaluation.step_size",
        Share("attack.epsilon", 4),
        _in_ball_units(2),
        "step of the attacks pgd-, cw- and dlr-",
        changeable=True,
    ),
    Field(
        "evaluation.examples",
        0,
        ZERO_OR_MORE,
        "evaluate the first so many test images; 0: all",
        changeable=True,
    ),
    Field(
        "evaluation.batch_size",
        200,
        ONE_OR_MORE,
        "images attacked at a time, over all devices together",
        changeable=True,
    ),
)

_BY_NAME = {field.name: field for field in FIELDS}
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "a string",
    tuple: "a tuple, all of one type and finite",
}


def base_config() -> ConfigDict:
    """Return the authors' CIFAR-10 recipe for Free-8 (Shafahi et al. 2019).

    Epsilons and step sizes are in [0, 1] pixels. The configuration is locked: an unknown
    field fails.
    """
    config = ConfigDict()
    for field in FIELDS:
        group, _, name = field.name.rpartition(".")
        if group and group not in config:
            config[group] = ConfigDict()
        holder, value = (config[group] if group else config), field.default
        if isinstance(value, Share):
            other, _, source = value.field.rpartition(".")
            value = config[other].get_ref(source) / value.divisor
        holder[name] = value
    return config.lock()


def replays(config: ConfigDict) -> int:
    """Return the number of weight updates from one minibatch."""
    return METHODS[config.method].updates(config.attack)


def passes(config: ConfigDict) -> int:
    """Return the number of forward and backward passes for one minibatch."""
    return METHODS[config.method].passes(config.attack)


def validate(config: ConfigDict) -> None:
    """Raise InputError for the first invalid field, naming the allowed values."""
    _check_types(config.to_dict())
    for field in FIELDS:
        value = value_of(config, field.name)
        if not field.allowed.holds(value, config):
            raise InputError(f"{field.name} = {value!r}: must be {field.allowed.text}")
    m = replays(config)
    if config.updates % m:
        below = config.updates // m * m
        nearest = f"{below} or {below + m}" if below else f"{m}"
        raise InputError(
            f"updates = {config.updates}: must be a multiple of attack.replays = {m}; "
            f"nearest: {nearest}"
        )


def without_effect(config: ConfigDict, names: Iterable[str]) -> list[str]:
    """Return 'FIELD (only with CONDITION)' for those of `names` that `config` ignores.

    `config` is valid, and `names` are the fields that somebody set.
    """
    return [
        f"{field.name} (only with {field.only.text})"
        for field in map(_BY_NAME.get, names)
        if field.only and not field.only.holds(config)
    ]


def differences(saved: dict, config: ConfigDict) -> list[str]:
    """Return 'FIELD: SAVED -> NEW' for each difference that keeps a run from continuing.

    `saved` is the configuration in run.json.
    """
    # A run made before a field existed has its default.
    old, new = _flat(base_config().to_dict()) | _flat(saved), _flat(config.to_dict())
    return [
        f"{name}: {old.get(name)!r} -> {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
        and not (name in _BY_NAME and _BY_NAME[name].changeable)
    ]


def value_of(config: ConfigDict, name: str):
    """Return the value of the field `name`, such as 'attack.epsilon'."""
    value = config
    for part in name.split("."):
        value = value[part]
    return value


def set_from_text(config: ConfigDict, name: str, text: str) -> None:
    """Set the field `name` from text of the command line.

    Numbers may be written 8/255. A tuple is written with commas, with or without
    parentheses and quotes. Raise InputError for a text that the field cannot hold.
    """
    try:
        value = _parsed(text.strip(), _BY_NAME[name])
    except ValueError as fault:
        raise InputError(wrong_type(name, text)) from fault
    group, _, last = name.rpartition(".")
    (config[group] if group else config)[last] = value


def _parsed(text: str, field: Field):
    if field.kind is bool:
        if text.lower() not in _BOOLEANS:
            raise ValueError(text)
        return _BOOLEANS[text.lower()]
    if field.kind is float:
        return parse_number(text)
    if field.kind is not tuple:
        return field.kind(text)
    if text[:1] + text[-1:] in ("()", "[]"):
        text = text[1:-1]
    items = [item.strip() for item in text.strip().removesuffix(",").split(",")]
    if items == [""]:
        return ()
    if isinstance(field.default[0], str):
        return tuple(item.strip("'\"") for item in items)
    return tuple(map(parse_number, items))


def parse_number(text: str) -> float:
    """Return the finite number that a text such as '0.03' or '8/255' writes.

    Raise ValueError for any other text.
    """
    numerator, slash, denominator = text.partition("/")
    try:
        value = float(numerator) / float(denominator) if slash else float(text)
    except ZeroDivisionError as fault:
        raise ValueError(f"{text} divides by 0") from fault
    if not math.isfinite(value):
        raise ValueError(f"{text} is not finite")
    return value


def field_names() -> list[str]:
    """Return the names of all fields; those of a group are 'group.field'."""
    return list(_BY_NAME)


def wrong_type(name: str, value) -> str:
    """Return one line about a value that is not of its field's type."""
    field = _BY_NAME[name]
    return (
        f"{name} = {value!r}: must be {_KINDS[field.kind]}, such as "
        f"{value_of(base_config(), name)!r}"
    )


def unknown_field(name: str) -> str:
    """Return one line about a field that does not exist, with the nearest that does."""
    known = field_names()
    tails = {field.split(".")[-1]: field for field in known}
    near = difflib.get_close_matches(name, known, n=1) or [
        tails[tail]
        for tail in difflib.get_close_matches(name.split(".")[-1], tails, n=1)
    ]
    hint = f"did you mean {near[0]!r}?" if near else f"fields: {', '.join(known)}"
    return f"config has no field {name!r}; {hint}"


def _flat(tree: dict, prefix: str = "") -> dict:
    """{'a.b': value} of nested dicts, with tuples for the lists of JSON."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = tuple(value) if isinstance(value, list) else value
    return flat


def _check_types(config: dict) -> None:
    """Raise InputError unless the fields are those of FIELDS, with values of their types."""
    config, base = _flat(config), _flat(base_config().to_dict())
    for name, value in config.items():
        if name not in base:
            raise InputError(unknown_field(name))
        kind = type(base[name])
        if kind is tuple and isinstance(value, tuple):
            wrong = any(type(item) is not type(base[name][0]) for item in value)
        else:
            wrong = type(value) is not kind
        items = value if isinstance(value, tuple) else (value,)
        if wrong or any(isinstance(x, float) and not math.isfinite(x) for x in items):
            raise InputError(wrong_type(name, value))
    if missing := base.keys() - config.keys():
        raise InputError(f"config lacks {', '.join(sorted(missing))}")
