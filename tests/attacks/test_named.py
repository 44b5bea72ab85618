"""Attacks are found by name, and records hold their settings."""

import pytest

from freeadv_jax.attacks.apgd import APGD
from freeadv_jax.attacks.named import attack_by_name
from freeadv_jax.errors import InputError


def named(name, num_classes=10):
    return attack_by_name(
        name, norm="linf", epsilon=0.1, step_size=0.02, num_classes=num_classes
    )


def test_names_contain_steps_restarts_and_loss():
    record = named("cw-100-x7").record(seed=3)
    asked = {
        "norm": "linf",
        "epsilon": 0.1,
        "steps": 100,
        "step_size": 0.02,
        "restarts": 7,
        "loss": "margin",
        "seed": 3,
    }
    assert asked.items() <= record.items()
    (fgsm,) = named("fgsm").stages.values()
    assert (fgsm.steps, fgsm.step_size, fgsm.random_start) == (1, 0.1, False)
    (dlr,) = named("dlr-50").stages.values()
    assert (dlr.steps, dlr.loss) == (50, "dlr")


def test_dlr_is_refused_with_too_few_classes():
    with pytest.raises(InputError, match="needs 3 classes and the model has 2"):
        named("dlr-50", num_classes=2)
    assert named("dlr-50", num_classes=3).stages


def test_natural_attacks_nothing():
    attack = named("natural")
    assert attack.stages == {}
    assert attack.record(seed=0) == {
        "norm": "linf",
        "epsilon": 0.0,
        "steps": 0,
        "step_size": 0.0,
        "restarts": 1,
        "loss": "cross-entropy",
        "seed": 0,
    }


def test_every_record_has_the_fields_of_the_schema():
    schema = {"norm", "epsilon", "steps", "step_size", "restarts", "loss", "seed"}
    for name in ("natural", "fgsm", "pgd-20", "apgd-t", "fab-t", "square"):
        assert schema <= named(name).record(seed=0).keys()
    record = named("autoattack").record(seed=0)
    assert schema <= record.keys()
    assert list(record["stages"]) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert record["stages"]["square"]["steps"] == 5000


def test_attacks_named_alone_equal_those_of_autoattack():
    stages = named("autoattack").stages
    for name, stage in stages.items():
        assert named(name).stages == {name: stage}
    assert named("apgd-dlr").stages == {"apgd-dlr": APGD("linf", 0.1, loss="dlr")}


@pytest.mark.parametrize(
    ("classes", "loss"), [(2, "margin"), (3, "margin"), (4, "dlr")]
)
def test_the_margin_replaces_targeted_dlr_with_too_few_classes(classes, loss):
    (attack,) = named("apgd-t", num_classes=classes).stages.values()
    assert attack.loss == loss
    assert attack.targets == classes - 1


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("pdg-20", "'pgd-20'"),
        ("autoatack", "'autoattack'"),
        ("apgdt", "'apgd-t'"),
        ("pgd-0", "pgd-<steps>"),
        ("pgd-20-x0", "pgd-<steps>"),
        ("fgsm-2", "'fgsm'"),
        ("", "allowed: natural, fgsm"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest_and_the_known_ones(name, near):
    with pytest.raises(InputError, match="is unknown; .*allowed: natural") as refused:
        named(name)
    assert near in str(refused.value)


def test_a_record_names_the_audit_and_hides_what_is_not_set():
    record = named("autoattack-quick").record(seed=0)
    assert record["audit"] == 0.04
    assert record["stages"]["apgd-t"]["reach"] == 6.0
    assert "reach" not in record["stages"]["audit apgd-t"]
    assert "reach" not in named("apgd-ce").record(seed=0)
    assert "audit" not in named("autoattack").record(seed=0)
