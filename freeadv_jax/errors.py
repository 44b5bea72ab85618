"""Errors with one-line messages, and the phrases that many of these messages share."""

import difflib
from collections.abc import Collection, Iterable, Sequence


class InputError(ValueError):
    """Report an unusable flag, field, path, file, checkpoint, model or array.

    The message is one line that says what is wrong and what is allowed. The commands
    print it and exit with status 1.
    """


class TrainingStoppedError(RuntimeError):
    """Report that training cannot usefully continue; the message is one line."""


def require_choice(what: str, given: object, allowed: Collection[str]) -> None:
    """Raise InputError unless `given` is one of the `allowed` names."""
    if given not in allowed:
        raise unknown_choice(what, given, allowed)


def unknown_choice(
    what: str, given: object, allowed: Iterable[str], *, shown: Iterable[str] = ()
) -> InputError:
    """Return the InputError for a name that does not exist.

    The message names `what`, the nearest allowed name and all allowed names. `shown`
    replaces them in the message where patterns read better, such as 'pgd-<steps>'.
    """
    names = ", ".join(map(str, shown or allowed))
    hint = did_you_mean(given, allowed)
    return InputError(f"{what} {given!r} is unknown; {hint}allowed: {names}")


def did_you_mean(given: object, known: Iterable[str]) -> str:
    """Return "did you mean 'NAME'? " with the nearest known name, or "" without one."""
    near = difflib.get_close_matches(str(given), list(known), n=1)
    return f"did you mean {near[0]!r}? " if near else ""


def shortened(names: Sequence, *, most: int = 10) -> str:
    """Return the first names separated by commas, then "and N more" beyond `most`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


def one_line(fault: BaseException) -> str:
    """Return the first line of an exception's message; without one, the class name."""
    lines = (line.strip() for line in str(fault).splitlines())
    return next(filter(None, lines), type(fault).__name__)
