"""Arrays on disk that belong to one model: the outcome for each image of an evaluation.

They are read by the next evaluation, and saved while an attack runs, so that a kill loses
seconds.
"""

import json
import time
import zipfile
import zlib

import numpy as np

from freeadv_jax.devices.processes import is_first
from freeadv_jax.errors import InputError
from freeadv_jax.files import AnyPath, checksum, local_copy, whole_file

_ABOUT = "about"
# The state of an unfinished attack is under these names; all other names are results.
_UNDER_WAY = "under way/"
# Saving takes at most this share of the time.
_SHARE_OF_TIME = 0.05
SECONDS_BETWEEN_SAVES = 10


class ArrayFile:
    """The arrays of an .npz file by name.

    `about` holds the checksums of the model and, where there are any, of the images.
    Arrays of another model are dropped. `found` is whether the file held arrays of this
    model and these images. Raise InputError for a damaged file, for a file of this model
    and other images, and with `of_one_model` also for a file of another model.
    """

    def __init__(self, path: AnyPath, about: dict, *, of_one_model: bool = False):
        self._path, self._about = path, about
        self.arrays: dict[str, np.ndarray] = {}
        self._next_save = time.monotonic() + SECONDS_BETWEEN_SAVES
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

    @property
    def identity(self) -> str:
        """Return a text that differs for another model, other images and other arrays."""
        arrays = {name: checksum(self.arrays[name]) for name in sorted(self.arrays)}
        return json.dumps([self._about, arrays])

    def save(self) -> None:
        """Write the file whole or not at all; only the first process writes."""
        if not is_first():
            return
        begun = time.monotonic()
        about = np.array(json.dumps(self._about))
        with whole_file(self._path) as partial, partial.open("wb") as file:
            np.savez(file, **{_ABOUT: about}, **self.arrays)
        now = time.monotonic()
        pause = max(SECONDS_BETWEEN_SAVES, (now - begun) / _SHARE_OF_TIME)
        self._next_save = now + pause

    def save_sometimes(self) -> None:
        """Save if the last save is long enough ago."""
        if time.monotonic() > self._next_save:
            self.save()

    def under_way(self, what: dict, **fresh: np.ndarray) -> dict[str, np.ndarray]:
        """Return the arrays of an unfinished attack, to be changed in place.

        They are those saved under the same description `what`, else `fresh`. The state of
        any other attack is dropped.
        """
        name = _UNDER_WAY + _ABOUT
        description = np.array(json.dumps(what))
        if str(self.arrays.get(name)) != str(description):
            self.forget_under_way()
            self.arrays |= {_UNDER_WAY + key: array for key, array in fresh.items()}
            self.arrays[name] = description
        return {key: self.arrays[_UNDER_WAY + key] for key in fresh}

    def forget_under_way(self) -> None:
        """Drop the state of the attack that was under way; its result stays."""
        for name in [name for name in self.arrays if name.startswith(_UNDER_WAY)]:
            del self.arrays[name]


def read_arrays(path: AnyPath) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file by name; raise InputError where it is damaged."""
    try:
        with local_copy(path) as copy, np.load(copy, allow_pickle=False) as file:
            return dict(file)
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        RuntimeError,  # A damaged flag asks for a feature that zipfile does not have.
        zipfile.BadZipFile,
        zlib.error,
    ) as fault:
        raise InputError(
            f"{path} is damaged: {' '.join(str(fault).split())}; remove it to start again"
        ) from fault
