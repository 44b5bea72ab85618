"""What became of every image, on disk: read on, and written while an attack runs."""

import json
import pathlib
import time
import zipfile
import zlib

import numpy as np

from freeadv_jax.errors import InputError
from freeadv_jax.devices.processes import is_first
from freeadv_jax.files import whole_file

_ABOUT = "about"
# An attack under way keeps its state under these names, the others are results.
_UNDER_WAY = "under way/"
# Writing takes at most this part of the time.
_PART = 0.05
_SECONDS = 10


class Outcomes:
    """The arrays of an .npz file by name; what belongs to another model is dropped.

    `about` says which model and images they are of, `found` whether the file was of
    those. InputError for a damaged one, one of this model and other images, and with
    `of_one_model` for one of another model.
    """

    def __init__(self, path: pathlib.Path, about: dict, *, of_one_model: bool = False):
        self._path, self._about = path, about
        self.arrays: dict[str, np.ndarray] = {}
        self._next_save = time.monotonic() + _SECONDS
        if path.exists():
            found = read_arrays(path)
            before = json.loads(str(found.pop(_ABOUT, "{}")))
            same = {name: before.get(name) == about.get(name) for name in about}
            if before == about:
                self.arrays = found
            elif of_one_model or same["model"] and not same.get("images", True):
                raise InputError(
                    f"{path} and the results beside it are of "
                    f"{'another model or ' * of_one_model}other images, and would be "
                    "lost: move both away, or write elsewhere"
                )
        self.found = bool(self.arrays)

    def save(self) -> None:
        """By the first process; all of it or nothing."""
        if not is_first():
            return
        begun = time.monotonic()
        about = np.array(json.dumps(self._about))
        with whole_file(self._path) as partial, partial.open("wb") as file:
            np.savez(file, **{_ABOUT: about}, **self.arrays)
        now = time.monotonic()
        self._next_save = now + max(_SECONDS, (now - begun) / _PART)

    def save_sometimes(self) -> None:
        """Saves if the last time is long enough ago."""
        if time.monotonic() > self._next_save:
            self.save()

    def under_way(self, what: dict, **fresh: np.ndarray) -> dict[str, np.ndarray]:
        """The state of an attack, as it was cut off or `fresh`, to be changed in place.

        `what` tells this attack from any other; another's state is dropped.
        """
        name = _UNDER_WAY + _ABOUT
        said = np.array(json.dumps(what))
        if str(self.arrays.get(name)) != str(said):
            self.forget_under_way()
            self.arrays |= {_UNDER_WAY + key: array for key, array in fresh.items()}
            self.arrays[name] = said
        return {key: self.arrays[_UNDER_WAY + key] for key in fresh}

    def forget_under_way(self) -> None:
        """An attack has come to its end: only its result stays."""
        for name in [name for name in self.arrays if name.startswith(_UNDER_WAY)]:
            del self.arrays[name]


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name; InputError where it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        RuntimeError,  # Of a flag that asks for what zipfile cannot do.
        zipfile.BadZipFile,
        zlib.error,
    ) as fault:
        raise InputError(
            f"{path} is damaged: {' '.join(str(fault).split())}; remove it to begin anew"
        ) from fault
