"""An audit chooses by the seed alone, and its bound is that of Clopper and Pearson."""

import numpy as np
import pytest
from scipy.stats import binomtest

from freeadv_jax.attacks.audit import Audit, check_share
from freeadv_jax.errors import InputError

TENTH = Audit(0.1, ("audit",))


def test_more_images_leave_the_choice_among_the_first_as_it_is():
    few, many = TENTH.chosen(300, 7), TENTH.chosen(5000, 7)
    np.testing.assert_array_equal(few, many[:300])
    assert 440 < many.sum() < 560
    assert (TENTH.chosen(5000, 8) != many).any()


def test_nobody_and_everybody_can_be_chosen():
    assert not Audit(0.0, ("audit",)).chosen(100, 0).any()
    assert Audit(1.0, ("audit",)).chosen(100, 0).all()


def bound(audit, survivors, broken, images=1000):
    """Return the bound where the audit broke the first so many chosen survivors."""
    chosen = np.flatnonzero(audit.chosen(images, 0)[:survivors])
    robust = np.arange(images) < survivors
    robust[chosen[:broken]] = False
    standing = {"natural": 900, "quick": survivors, "audit": int(robust.sum())}
    return audit.bound(robust, standing, 0), len(chosen)


@pytest.mark.parametrize("broken", [0, 1, 5])
def test_the_bound_holds_the_share_of_scipys_exact_interval(broken):
    found, audited = bound(TENTH, 600, broken)
    exact = binomtest(broken, audited).proportion_ci(0.9, method="exact").high
    assert found["audited"] == audited
    assert found["broken"] == broken
    assert found["missed_at_most"] == int(exact * 600) - broken
    left = 600 - broken - found["missed_at_most"]
    assert found["accuracy_at_least"] == pytest.approx(left / 1000)


def test_a_whole_audit_misses_nothing():
    found, _ = bound(Audit(1.0, ("audit",)), 600, 20)
    assert found == {
        "share": 1.0,
        "audited": 600,
        "survived": 580,
        "broken": 20,
        "missed_at_most": 0,
        "accuracy_at_least": 0.58,
    }


def test_without_audited_images_everything_may_be_missed():
    found, _ = bound(Audit(0.0, ("audit",)), 600, 0)
    assert (found["audited"], found["missed_at_most"]) == (0, 600)
    assert found["accuracy_at_least"] == 0


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_an_impossible_share_is_refused(share):
    with pytest.raises(InputError, match="must be a share from 0 to 1"):
        check_share(share)
