import numpy as np
import pytest

from freeadv_jax.errors import InputError
from freeadv_jax.outcomes import Outcomes

ABOUT = {"model": 1, "images": 2}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "evaluation.npz"


def test_what_was_saved_is_there_for_the_same_model_alone(path):
    outcomes = Outcomes(path, ABOUT)
    outcomes.arrays["pgd-20"] = np.array([True, False])
    outcomes.save()
    again = Outcomes(path, ABOUT)
    assert again.arrays.keys() == {"pgd-20"}
    np.testing.assert_array_equal(again.arrays["pgd-20"], [True, False])
    assert Outcomes(path, ABOUT | {"model": 3}).arrays == {}


def test_attack_under_way_goes_on_from_what_was_saved(path):
    outcomes = Outcomes(path, ABOUT)
    state = outcomes.under_way({"name": "square"}, standing=np.ones(3, bool))
    state["standing"][1] = False
    outcomes.save()
    again = Outcomes(path, ABOUT)
    state = again.under_way({"name": "square"}, standing=np.ones(3, bool))
    np.testing.assert_array_equal(state["standing"], [True, False, True])
    other = again.under_way({"name": "fab-t"}, standing=np.ones(3, bool))
    assert other["standing"].all()
    again.forget_under_way()
    assert again.arrays == {}


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nothing", b"text"])
def test_damaged_file_is_named_and_kept(path, content):
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"evaluation.npz is damaged: .*begin anew"):
        Outcomes(path, ABOUT)
    assert path.read_bytes() == content


def test_half_of_a_file_is_damaged(path):
    outcomes = Outcomes(path, ABOUT)
    outcomes.arrays["pgd-20"] = np.zeros(10_000, bool)
    outcomes.save()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="damaged"):
        Outcomes(path, ABOUT)


def test_saving_costs_a_small_part_of_the_time(path, monkeypatch):
    clock = iter([0.0, 5.0, 11.0, 11.0, 17.0, 100.0, 132.0, 132.0, 132.5])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    outcomes = Outcomes(path, ABOUT)  # At 0.
    outcomes.save_sometimes()  # At 5: too early.
    assert not path.exists()
    outcomes.save_sometimes()  # At 11: saves until 17, next after 120 s more.
    assert path.exists()
    path.unlink()
    outcomes.save_sometimes()  # At 100.
    assert not path.exists()
    outcomes.save_sometimes()  # At 132: too early, 17 + 120 = 137.
    assert not path.exists()
