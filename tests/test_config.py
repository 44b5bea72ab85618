"""The configuration: allowed values of each field, and the changes a run allows."""

import json
import math

import pytest

from freeadv_jax.config import (
    FIELDS,
    base_config,
    differences,
    field_names,
    passes,
    replays,
    set_from_text,
    unknown_field,
    validate,
    value_of,
    without_effect,
)
from freeadv_jax.errors import InputError
from freeadv_jax.training.methods import METHODS


def with_values(**values):
    """Return base_config() with fields set; `__` stands for the dot in a field's name."""
    config = base_config()
    for name, value in values.items():
        field = name.replace("__", ".")
        group, _, last = field.rpartition(".")
        setattr(config[group] if group else config, last, value)
    return config


def message_of(config):
    with pytest.raises(InputError) as raised:
        validate(config)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_the_base_recipe_is_valid():
    validate(base_config())


def test_the_base_recipe_takes_no_new_field():
    config = base_config()
    with pytest.raises(AttributeError, match="updatez"):
        config.updatez = 1
    with pytest.raises(AttributeError, match="epsilonn"):
        config.attack.epsilonn = 0.1


def test_a_changed_recipe_leaves_the_next_one_as_it_was():
    base_config().attack.epsilon = 0.5
    assert base_config().attack.epsilon == 8 / 255


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("method", "freee", "natural, free, pgd, fgsm-rs, trades, alp"),
        ("updates", 0, "1 or more"),
        ("updates", True, "a whole number, such as 80000"),
        ("batch_size", 0, "1 or more"),
        ("seed", -1, "0 to 2**32 - 1"),
        ("seed", 2**32, "0 to 2**32 - 1"),
        ("data.validation_examples", -1, "0 or more"),
        ("data.pad", -1, "0 or more"),
        ("data.extra", "images.npz", "'' or npz:FILE"),
        ("data.extra", "npz:", "'' or npz:FILE"),
        ("data.extra_fraction", 1.0, "above 0 and below 1"),
        ("data.prefetch", -1, "0 or more"),
        ("data.image_size", 0, "1 or more"),
        ("data.max_corrupt", 1.0, "at least 0 and below 1"),
        ("data.max_corrupt", -0.1, "at least 0 and below 1"),
        ("model.normalization", "batch", "per_image, mean_std"),
        ("model.mean", (math.nan,), "finite"),
        ("model.mean", (0,), "all of one type"),
        ("model.std", (0.0,), "all above 0"),
        ("model.dtype", "float16", "float32, bfloat16"),
        ("optimizer.learning_rate", 0.0, "above 0"),
        ("optimizer.learning_rate", math.inf, "a finite number"),
        ("optimizer.schedule", "linear", "step, triangular, cosine"),
        ("optimizer.turns", (0.75, 0.5), "rising fractions"),
        ("optimizer.turns", (0.5, 1.0), "above 0 and below 1"),
        ("optimizer.momentum", 1.0, "at least 0 and below 1"),
        ("optimizer.weight_decay", -1e-4, "0 or more"),
        ("optimizer.decayed", "some", "kernels, all"),
        ("optimizer.name", "adam", "sgd, adamw"),
        ("optimizer.beta2", 1.0, "at least 0 and below 1"),
        ("optimizer.clip_norm", -1.0, "0 or more"),
        ("model.drop_path", 1.0, "at least 0 and below 1"),
        (
            "attack.norm",
            "l3",
            "linf, l2, l1, patch; patch only with free, pgd or fgsm-rs",
        ),
        ("attack.epsilon", 0.0, "above 0"),
        ("attack.epsilon", 8.0, "8 / 255"),
        ("attack.step_size", 10.0, "10 / 255|8 / 255"),
        ("attack.replays", 0, "1 or more"),
        ("attack.steps", 0, "1 or more"),
        ("attack.beta", -1.0, "0 or more"),
        ("attack.awp_gamma", -0.01, "0 or more"),
        ("validation.every_passes", 0.0, "above 0"),
        ("checkpoint.every_updates", 0, "1 or more"),
        ("checkpoint.keep", 0, "1 or more"),
        ("logging.every_updates", 0, "1 or more"),
        ("evaluation.attacks", (), "at least one attack"),
        ("evaluation.step_size", 2.5, "8 / 255"),
        ("evaluation.examples", -1, "0 or more"),
        ("evaluation.batch_size", 0, "1 or more"),
    ],
)
def test_an_invalid_value_is_named_with_the_allowed_ones(field, value, allowed):
    message = message_of(with_values(**{field.replace(".", "__"): value}))
    assert message.startswith(f"{field} = {value!r}: ")
    assert any(words in message for words in allowed.split("|"))


def test_updates_must_be_a_multiple_of_replays_and_the_nearest_are_named():
    message = message_of(with_values(updates=804))
    assert "attack.replays = 8; nearest: 800 or 808" in message
    message = message_of(with_values(updates=5))
    assert message.endswith("nearest: 8")


def test_replays_count_only_in_free_training():
    assert replays(base_config()) == 8
    config = with_values(method="pgd", updates=805)
    validate(config)
    assert replays(config) == 1


def test_the_triangular_schedule_has_one_turn():
    message = message_of(with_values(optimizer__schedule="triangular"))
    assert "one turn" in message
    validate(
        with_values(optimizer__schedule="triangular", optimizer__turns=(0.5,)),
    )


def test_an_l2_epsilon_may_exceed_one():
    validate(with_values(attack__norm="l2", attack__epsilon=1.5))


def test_a_missing_or_unknown_field_is_named():
    config = base_config().unlock()
    del config.attack["beta"]
    assert "lacks attack.beta" in message_of(config)
    config = base_config().unlock()
    config.attack.betta = 6.0
    assert "no field 'attack.betta'; did you mean 'attack.beta'" in message_of(config)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("updatez", "updates"),
        ("attack.epsilonn", "attack.epsilon"),
        ("learning_rate", "optimizer.learning_rate"),
        ("atack.replay", "attack.replays"),
        ("batchsize", "batch_size"),
    ],
)
def test_an_unknown_field_is_answered_with_the_nearest(name, nearest):
    assert unknown_field(name) == (
        f"config has no field {name!r}; did you mean {nearest!r}?"
    )


def test_an_unknown_field_like_no_other_is_answered_with_all_fields():
    message = unknown_field("zzzzzz")
    assert all(field in message for field in field_names())
    assert "\n" not in message


def test_a_configuration_does_not_differ_from_its_own_json():
    saved = json.loads(json.dumps(base_config().to_dict()))
    assert differences(saved, base_config()) == []


@pytest.mark.parametrize("field", field_names())
def test_a_run_may_change_only_fields_that_leave_its_weights(field):
    saved = json.loads(json.dumps(base_config().to_dict()))
    config = base_config().copy_and_resolve_references()
    group, _, last = field.rpartition(".")
    holder = config[group] if group else config
    old = holder[last]
    new = {
        bool: lambda: not old,
        int: lambda: old + 8,
        float: lambda: old / 2,
        str: lambda: f"{old}x",
        tuple: lambda: (*old, *old),
    }[type(old)]()
    if old == new:  # Half of 0 is 0.
        new = old + 1
    setattr(holder, last, new)
    free = {
        "updates",
        "data.dir",
        "data.manual_dir",
        "data.prefetch",
        "validation.every_passes",
        "validation.stop_on_collapse",
        "checkpoint.every_updates",
        "checkpoint.keep",
        "logging.every_updates",
        "evaluation.attacks",
        "evaluation.step_size",
        "evaluation.examples",
        "evaluation.batch_size",
    }
    expected = [] if field in free else [f"{field}: {old!r} -> {new!r}"]
    assert differences(saved, config) == expected


def test_step_sizes_follow_epsilon_unless_they_are_set():
    config = base_config()
    config.attack.epsilon = 0.5
    assert (config.attack.step_size, config.evaluation.step_size) == (0.5, 0.125)
    config.attack.step_size = 0.2
    config.attack.epsilon = 1.0
    assert (config.attack.step_size, config.evaluation.step_size) == (0.2, 0.25)
    assert json.loads(config.to_json())["evaluation"]["step_size"] == 0.25


def test_a_field_that_a_saved_run_lacks_had_its_default():
    saved = base_config().to_dict()
    del saved["attack"]["beta"]
    assert differences(saved, base_config()) == []
    assert differences(saved, with_values(attack__beta=3.0)) == [
        "attack.beta: 6.0 -> 3.0"
    ]


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_every_field_has_a_meaning_of_one_sentence(field):
    assert field.meaning and not field.meaning.endswith(".")
    assert "\n" not in field.meaning
    if field.kind not in (bool, str, tuple):
        assert field.allowed.text


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_a_default_written_as_text_is_read_back(field):
    config = base_config()
    text = field.default_text
    if text.startswith("attack.epsilon"):
        text = {"attack.epsilon": "8/255", "attack.epsilon / 4": "2/255"}[text]
    set_from_text(config, field.name, text)
    assert config.to_dict() == base_config().to_dict()


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("attack.epsilon", "4/255", 4 / 255),
        ("attack.epsilon", "0.5/255", 0.5 / 255),
        ("attack.epsilon", "1e-2", 0.01),
        ("updates", "80_000", 80_000),
        ("data.flip", "False", False),
        ("data.flip", "1", True),
        ("model.mean", "125/255,0.5, 0", (125 / 255, 0.5, 0.0)),
        ("model.mean", "(0.5,)", (0.5,)),
        ("optimizer.turns", "()", ()),
        ("optimizer.turns", "", ()),
        ("optimizer.turns", "[0.25, 0.5]", (0.25, 0.5)),
        ("evaluation.attacks", "natural,pgd-20", ("natural", "pgd-20")),
        ("evaluation.attacks", "('natural', \"pgd-20\")", ("natural", "pgd-20")),
        ("evaluation.attacks", "('natural',)", ("natural",)),
        ("data.dir", "/a,b", "/a,b"),
    ],
)
def test_a_text_of_the_command_line_is_read(field, text, value):
    config = base_config()
    set_from_text(config, field, text)
    assert value_of(config, field) == value
    assert type(value_of(config, field)) is type(value)


@pytest.mark.parametrize(
    ("field", "text", "allowed"),
    [
        ("updates", "8.5", "a whole number, such as 80000"),
        ("updates", "8/1", "a whole number, such as 80000"),
        ("attack.epsilon", "8/0", "a finite number, such as 0.03"),
        ("attack.epsilon", "8/255/2", "a finite number, such as 0.03"),
        ("data.flip", "perhaps", "true or false, such as True"),
        ("model.mean", "0.5,x", "a tuple, all of one type and finite, such as (0.0,)"),
    ],
)
def test_a_text_that_a_field_cannot_hold_is_refused(field, text, allowed):
    with pytest.raises(InputError) as raised:
        set_from_text(base_config(), field, text)
    assert str(raised.value).startswith(f"{field} = {text!r}: must be {allowed}")


def test_passes_follow_the_method():
    counted = {method: passes(with_values(method=method)) for method in METHODS}
    assert counted == {
        "natural": 1,
        "free": 8,
        "pgd": 8,
        "fgsm-rs": 2,
        "trades": 9,
        "alp": 9,
        "llr": 11,
        "mart": 9,
        "awp": 9,
        "n-fgsm": 2,
        "fgsm-pgi": 3,
        "grad-align": 6,
        "gaussian": 1,
        "ibp": 3,
        "crown-ibp": 13,
    }


@pytest.mark.parametrize(
    ("values", "ignored"),
    [
        ({"method": "natural"}, {"attack.replays": "method = free"}),
        (
            {"method": "pgd"},
            {"attack.misalignment": "free, fgsm-rs, n-fgsm or fgsm-pgi"},
        ),
        ({"method": "pgd"}, {"attack.beta": "method = trades", "attack.start": "free"}),
        ({"method": "mart"}, {"attack.llr_mu": "method = llr"}),
        ({"method": "trades"}, {}),
        ({"data__name": "folder:x"}, {"data.pad": "data sets in memory"}),
        (
            {"data__extra_fraction": 0.7},
            {"data.extra_fraction": "data.extra = npz:FILE"},
        ),
        ({"data__name": "imagenet"}, {"data.max_corrupt": "folder:PATH"}),
        ({"data__name": "digits"}, {"data.dir": "files", "data.image_size": "folder"}),
        ({}, {"model.mean": "model.normalization = mean_std"}),
        ({}, {"optimizer.beta2": "optimizer.name = adamw"}),
        ({}, {"validation.every_passes": "data.validation_examples"}),
    ],
    ids=str,
)
def test_fields_without_effect_are_named_with_what_they_need(values, ignored):
    config = with_values(**values)
    lines = without_effect(config, [*ignored, "attack.epsilon", "updates"])
    assert len(lines) == len(ignored)
    for line, (field, condition) in zip(lines, ignored.items(), strict=True):
        assert line.startswith(f"{field} (only with ")
        assert condition in line
