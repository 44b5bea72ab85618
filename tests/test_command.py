import os
import signal

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
def test_an_error_of_the_system_is_reported_with_its_file_and_reason(
    monkeypatch, fault, said
):
    def main(argv):
        raise fault

    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == f"error: {said}"


def test_sigterm_ends_a_command_with_status_143():
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            run_command(lambda argv: os.kill(os.getpid(), signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 143
