import pytest

from freeadv_jax.command import run_command

FULL = "No space left on device"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (OSError(28, FULL, "run.json"), f"run.json: {FULL}"),
        (OSError(28, FULL), FULL),
        (OSError("no such disk"), "no such disk"),
    ],
)
def test_of_a_fault_of_the_system_is_told_what_is_known(monkeypatch, fault, said):
    def main(argv):
        raise fault

    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == f"error: {said}"
