"""Certified <= robust <= attacked, and an image that is both certified and broken is named."""

import numpy as np
import pytest

from freeadv_jax.attacks.sandwich import sandwich, sandwich_flags, sandwiches


def marked(*images, of=8):
    return np.isin(np.arange(of), images)


THREAT = {"norm": "linf", "epsilon": 0.1}
# Image 7 is misclassified, the attacks break 5 and 6, and 0 to 2 are certified.
NATURAL = ~marked(7)
ROBUST = {"fgsm": ~marked(6, 7), "pgd-20": ~marked(5, 6, 7)}
CERTIFIED = {"ibp": marked(0), "crown": marked(1, 2)}


def joined(**changed):
    given = {"natural": NATURAL, "robust": ROBUST, "certified": CERTIFIED}
    return sandwich(**given | changed, **THREAT)


def test_every_image_is_certified_open_or_broken():
    found = joined()
    counts = {name: found[name] for name in ("certified", "open", "broken")}
    assert counts == {"certified": 3, "open": 2, "broken": 3}
    assert found["examples"] == 8
    assert (found["certificates"], found["attacks"]) == (
        ["ibp", "crown"],
        ["fgsm", "pgd-20"],
    )
    assert found["text"] == "of 8 images 3 certified, 2 open, 3 broken"
    assert found["violations"] == [] and not found["suspicious"]
    assert sandwich_flags([found]) == []


def test_an_image_that_is_certified_and_broken_is_named_with_both_sides():
    found = joined(certified={"ibp": marked(0), "crown": marked(0, 5, 7)})
    assert found["violations"] == [
        {"image": 5, "certificates": ["crown"], "attacks": ["pgd-20"]},
        {
            "image": 7,
            "certificates": ["crown"],
            "attacks": ["natural", "fgsm", "pgd-20"],
        },
    ]
    (flag,) = sandwich_flags([found])
    assert flag.suspicious and flag.advice
    assert "image 5 is certified by crown and broken by pgd-20" in flag.text
    assert "image 7 is certified by crown and broken by natural and" in flag.text
    assert flag.numbers["violations"] == found["violations"]


def test_many_violations_are_counted_and_all_are_recorded():
    found = joined(robust={"pgd-20": marked()}, certified={"crown": marked(*range(7))})
    assert [each["image"] for each in found["violations"]] == list(range(7))
    assert found["text"].endswith("; so are 2 more images")


def test_the_sandwich_is_about_the_images_that_all_have():
    robust = ROBUST | {"autoattack": ~marked(5, of=6)}
    assert joined(robust=robust)["examples"] == 6
    assert joined(robust=robust)["broken"] == 1


def test_without_an_attack_the_misclassified_images_are_broken():
    found = joined(robust={})
    assert (found["certified"], found["open"], found["broken"]) == (3, 4, 1)


@pytest.mark.parametrize("suffix", ["", "@l2-0.5"])
def test_attacks_and_certificates_of_one_norm_and_epsilon_come_together(suffix):
    ball = {"norm": "l2", "epsilon": 0.5} if suffix else THREAT
    rows = {
        "natural": {"attack": {"norm": "linf", "epsilon": 0.0}},
        "fgsm": {"attack": THREAT},
        f"pgd-20{suffix}": {"attack": ball},
        f"worst-case{suffix}": {"attack": ball | {"attacks": ["pgd-20"]}},
    }
    robust = {name: ROBUST["pgd-20"] for name in rows}
    certified_rows = {f"crown{suffix}": {"certificate": ball}}
    certified = {f"crown{suffix}": CERTIFIED["crown"]}
    found = sandwiches(rows, robust, certified_rows, certified, natural=NATURAL)
    (record,) = found.values()
    assert list(found) == [f"sandwich{suffix}"]
    attacks = [f"pgd-20{suffix}"] if suffix else ["fgsm", "pgd-20"]
    assert record["attacks"] == attacks
    assert record["certificates"] == [f"crown{suffix}"]
    assert (record["norm"], record["epsilon"]) == (ball["norm"], ball["epsilon"])
