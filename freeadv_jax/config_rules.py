"""What the fields of a configuration may hold, and which may change within a run."""

import difflib
import math

from ml_collections import ConfigDict

from freeadv_jax.attacks.threat import NORMS
from freeadv_jax.config import base_config, replays
from freeadv_jax.errors import InputError
from freeadv_jax.models import DTYPES, NORMALIZATIONS
from freeadv_jax.optim import DECAYED, SCHEDULES
from freeadv_jax.training.free import STARTS

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
