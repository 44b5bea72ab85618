import numpy as np
import pytest

from freeadv_jax.errors import InputError
from freeadv_jax.files import partial_path
from freeadv_jax.runs.outcomes import ArrayFile

ABOUT = {"model": 1, "images": 2}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "evaluation.npz"


def test_saved_arrays_are_read_for_the_same_model_only(path):
    outcomes = ArrayFile(path, ABOUT)
    outcomes.arrays["pgd-20"] = np.array([True, False])
    outcomes.save()
    again = ArrayFile(path, ABOUT)
    assert again.arrays.keys() == {"pgd-20"}
    np.testing.assert_array_equal(again.arrays["pgd-20"], [True, False])
    assert ArrayFile(path, ABOUT | {"model": 3}).arrays == {}


@pytest.mark.parametrize(
    ("about", "of_one_model", "said"),
    [
        (
            {"model": 1, "images": 3},
            False,
            "beside it are of other images, and would be lost",
        ),
        ({"model": 2, "images": 2}, True, "are of another model or other images"),
    ],
)
def test_arrays_of_other_images_are_refused_and_not_dropped(
    path, about, of_one_model, said
):
    outcomes = ArrayFile(path, ABOUT)
    outcomes.arrays["pgd-20"] = np.array([True, False])
    outcomes.save()
    with pytest.raises(InputError, match=said):
        ArrayFile(path, about, of_one_model=of_one_model)


def test_the_identity_tells_models_images_and_arrays_apart(path):
    outcomes = ArrayFile(path, ABOUT)
    outcomes.arrays["pgd-20"] = np.array([True, False])
    outcomes.save()
    found = ArrayFile(path, ABOUT).identity
    assert found == outcomes.identity
    others = [ArrayFile(path.with_name("other.npz"), ABOUT | {"model": 3}).identity]
    for change in ({"pgd-20": np.array([True, True])}, {"fgsm": np.zeros(2, bool)}):
        other = ArrayFile(path, ABOUT)
        other.arrays |= change
        others.append(other.identity)
    assert len({found, *others}) == 4


def test_unfinished_attack_continues_from_the_saved_state(path):
    outcomes = ArrayFile(path, ABOUT)
    state = outcomes.under_way({"name": "square"}, standing=np.ones(3, bool))
    state["standing"][1] = False
    outcomes.save()
    again = ArrayFile(path, ABOUT)
    state = again.under_way({"name": "square"}, standing=np.ones(3, bool))
    np.testing.assert_array_equal(state["standing"], [True, False, True])
    other = again.under_way({"name": "fab-t"}, standing=np.ones(3, bool))
    assert other["standing"].all()
    again.forget_under_way()
    assert again.arrays == {}


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nothing", b"text"])
def test_damaged_file_is_named_and_kept(path, content):
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"evaluation.npz is damaged: .*start again"):
        ArrayFile(path, ABOUT)
    assert path.read_bytes() == content


def test_half_a_file_is_refused_as_damaged(path):
    outcomes = ArrayFile(path, ABOUT)
    outcomes.arrays["pgd-20"] = np.zeros(10_000, bool)
    outcomes.save()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="damaged"):
        ArrayFile(path, ABOUT)


@pytest.mark.parametrize(
    ("mark", "offset", "reason"),
    [
        # No kind of block begins with these bytes, after the name and the 20 bytes of
        # its sizes.
        (b"a.npy", 25, "Error -3 while decompressing"),
        (b"PK\x01\x02", 10, "That compression method is not supported"),
    ],
)
def test_damaged_byte_of_a_compressed_file_is_reported(path, mark, offset, reason):
    np.savez_compressed(path, a=np.zeros(100))
    content = bytearray(path.read_bytes())
    content[content.index(mark) + offset] = 0xFF
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"evaluation.npz is damaged: {reason}"):
        ArrayFile(path, ABOUT)


def test_file_that_cannot_be_written_is_named(path):
    partial_path(path).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as raised:
        ArrayFile(path, ABOUT).save()
    assert raised.value.filename == str(path)


def test_saving_costs_a_small_part_of_the_time(path, monkeypatch):
    clock = iter([0.0, 5.0, 11.0, 11.0, 17.0, 100.0, 132.0, 132.0, 132.5])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    outcomes = ArrayFile(path, ABOUT)  # The clock is at 0.
    outcomes.save_sometimes()  # It is 5: too early.
    assert not path.exists()
    outcomes.save_sometimes()  # Saves from 11 to 17; next after 120 s.
    assert path.exists()
    path.unlink()
    outcomes.save_sometimes()  # It is 100: too early.
    assert not path.exists()
    outcomes.save_sometimes()  # It is 132: before 17 + 120 = 137.
    assert not path.exists()
