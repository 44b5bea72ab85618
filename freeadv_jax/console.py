"""Standard output: what the commands and runs tell a person."""

import logging
import os
import shlex
import sys


def say(line: str) -> None:
    """Print a line at once, also where standard output is a file."""
    print(line, flush=True)


def quoted(path: object) -> str:
    """Return a path as a shell takes it."""
    return shlex.quote(str(path))


def warn(line: str) -> None:
    """Print a warning to standard error."""
    print(f"warning: {line}", file=sys.stderr, flush=True)


def show_library_messages() -> None:
    """Show what the library logs: information as plain lines, warnings on stderr.

    Where the environment has FREEADV_DEBUG, details such as Orbax's tracebacks are shown
    on stderr too.
    """
    logger = logging.getLogger("freeadv_jax")
    if logger.handlers:
        return
    information = logging.StreamHandler(sys.stdout)
    information.setFormatter(logging.Formatter("%(message)s"))
    information.addFilter(lambda record: record.levelno == logging.INFO)
    warnings = logging.StreamHandler(sys.stderr)
    warnings.addFilter(lambda record: record.levelno != logging.INFO)
    logger.addHandler(information)
    logger.addHandler(warnings)
    details = os.environ.get("FREEADV_DEBUG")
    logger.setLevel(logging.DEBUG if details else logging.INFO)
    # Or a root handler, such as absl's, would write each line once more.
    logger.propagate = False
