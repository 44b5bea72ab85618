"""What ends a program early, told in one line and with exit status 1."""


class InputError(ValueError):
    """A flag, config field, path, file, checkpoint or image is unusable.

    The message is one line: what is wrong, and what is allowed.
    """


class TrainingStoppedError(RuntimeError):
    """Training cannot usefully go on; the message is one line that says why."""
