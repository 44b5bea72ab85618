"""The phrases that the one-line messages share."""

import pytest

from freeadv_jax.errors import (
    InputError,
    did_you_mean,
    one_line,
    require_choice,
    shortened,
    unknown_choice,
)


def test_an_allowed_choice_passes():
    require_choice("norm", "l2", ("linf", "l2"))


def test_an_unknown_choice_is_answered_with_the_nearest_and_all_allowed_names():
    with pytest.raises(InputError) as refusal:
        require_choice("norm", "l-inf", {"linf": 1, "l2": 2})
    assert str(refusal.value) == (
        "norm 'l-inf' is unknown; did you mean 'linf'? allowed: linf, l2"
    )


def test_a_choice_of_another_type_is_refused_in_the_same_way():
    with pytest.raises(InputError, match=r"^norm 2 is unknown; did you mean 'l2'\?"):
        require_choice("norm", 2, ("linf", "l2"))


def test_patterns_can_stand_for_the_allowed_names():
    refusal = unknown_choice("attack", "pgd20", ["pgd-20"], shown=["pgd-<steps>"])
    assert str(refusal) == (
        "attack 'pgd20' is unknown; did you mean 'pgd-20'? allowed: pgd-<steps>"
    )


def test_nothing_is_suggested_where_no_name_is_near():
    assert did_you_mean("xyz", ["linf", "l2"]) == ""


def test_names_beyond_the_most_are_counted():
    assert shortened(["a", "b", "c"], most=3) == "a, b, c"
    assert shortened(["a", "b", "c"], most=2) == "a, b and 1 more"


def test_the_first_line_of_an_exception_is_what_it_says():
    assert one_line(ValueError("\n  first \nsecond")) == "first"
    assert one_line(KeyError()) == "KeyError"
