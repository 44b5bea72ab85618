"""The models of RobustBench by name: an index, downloaded files and their checksums."""

import dataclasses
import functools
import http.client
import importlib.resources
import json
import logging
import math
import os
import pathlib
import sys
import urllib.request

from freeadv_jax.errors import InputError, did_you_mean, one_line
from freeadv_jax.files import local_path, sha256
from freeadv_jax.progress import Progress

_LOGGER = logging.getLogger(__name__)
PREFIX = "robustbench:"
_INDEX = "robustbench.json"
# An address that is silent for so many seconds counts as unreachable.
_PATIENCE = 30
_CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}
_NORMS = {"Linf": "linf", "L2": "l2"}
# The package takes these where a name alone is given.
_FIRST = "cifar10/Linf/"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One model of the index.

    `data` and `threat` are those of the `robustbench` package: 'cifar10', 'cifar100' or
    'imagenet', and 'Linf', 'L2' or 'corruptions'. `file` is the name of the weights at
    the index's address. The network `model` takes (images - mean) / std. `key` is that of
    the state_dict in a file of several. `sha256` is None where nobody published it.
    `natural` and `robust` are published accuracies in percent, and `paper` is an address.
    """

    data: str
    threat: str
    name: str
    file: str
    model: str
    mean: list[float]
    std: list[float]
    natural: float
    robust: float
    paper: str
    key: str | None = None
    sha256: str | None = None

    @property
    def path(self) -> str:
        """The data set, the threat and the name, which no other entry shares."""
        return f"{self.data}/{self.threat}/{self.name}"

    @property
    def title(self) -> str:
        """The full name, as `freeadv_jax.load` takes it."""
        return PREFIX + self.path

    @property
    def num_classes(self) -> int:
        """The number of classes of the data set."""
        return _CLASSES[self.data]

    @property
    def attack(self) -> dict | None:
        """The norm and the epsilon, in [0, 1] pixels, of the leaderboard.

        It is None for corruptions.
        """
        if self.threat not in _NORMS:
            return None
        epsilon = {"L2": 0.5, "Linf": (4 if self.data == "imagenet" else 8) / 255}
        return {"norm": _NORMS[self.threat], "epsilon": epsilon[self.threat]}


@dataclasses.dataclass(frozen=True)
class Index:
    """The entries, the `address` of their files, and the `source` of all of this."""

    source: str
    address: str
    entries: tuple[Entry, ...]


@dataclasses.dataclass(frozen=True)
class Fetched:
    """A file of an entry on this machine, and the SHA-256 that was found and checked."""

    entry: Entry
    path: pathlib.Path
    sha256: str

    def origin(self) -> dict:
        """Return what a description records of the file: name, SHA-256, figures."""
        entry = self.entry
        return {
            "name": entry.title,
            "sha256": self.sha256,
            "data": entry.data,
            "published": {
                "natural": entry.natural,
                "autoattack" if entry.attack else "corruptions": entry.robust,
                "paper": entry.paper,
                "source": index().source,
            },
        }

    def remember(self) -> None:
        """Keep the SHA-256 beside the file, for the next load to check.

        A line is logged where it is kept for the first time. Raise InputError where it
        cannot be written.
        """
        kept = _kept(self.path)
        if self.entry.sha256 or kept.exists():
            return
        try:
            kept.write_text(f"{self.sha256}  {self.path.name}\n")
        except OSError as fault:
            raise InputError(f"{kept} cannot be written: {fault.strerror}") from fault
        _LOGGER.warning(
            "%s: the SHA-256 of its file is not published; %s has %s, which %s keeps for "
            "the next time",
            self.entry.title,
            self.path,
            self.sha256,
            kept.name,
        )


def is_zoo_name(source: object) -> bool:
    """Return whether `source` names an entry of the zoo and not a file."""
    return str(source).startswith(PREFIX)


@functools.cache
def index() -> Index:
    """Return the index of the package."""
    resource = importlib.resources.files(__package__) / _INDEX
    content = json.loads(resource.read_text())
    entries = tuple(Entry(**entry) for entry in content.pop("entries"))
    return Index(**content, entries=entries)


def find_entry(name: str) -> Entry:
    """Return the entry of 'robustbench:NAME' or 'robustbench:DATA/THREAT/NAME'.

    NAME alone is the entry of CIFAR-10 and Linf where there is one, as in the
    `robustbench` package. Raise InputError for an unknown name and for one of several
    entries.
    """
    entries = index().entries
    wanted = name.removeprefix(PREFIX)
    found = [entry for entry in entries if wanted in (entry.path, entry.name)]
    found = [entry for entry in found if entry.path.startswith(_FIRST)] or found
    if len(found) == 1:
        return found[0]
    if found:
        names = " or ".join(entry.title for entry in found)
        raise InputError(f"{name} is in the zoo more than once: give {names}")
    if not wanted:
        names = ", ".join(entry.path for entry in entries)
        raise InputError(f"{PREFIX} needs a name behind it; allowed: {names}")
    hint = did_you_mean(wanted, [each for x in entries for each in (x.name, x.path)])
    raise InputError(
        f"{name} is unknown; {hint}allowed: {len(entries)} names, which {PREFIX} alone "
        "lists"
    )


def cache_folder() -> pathlib.Path:
    """Return the folder of downloaded files: FREEADV_CACHE, or the platform's custom."""
    if given := os.environ.get("FREEADV_CACHE"):
        return local_path(given)
    home = pathlib.Path.home()
    custom = home / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or custom) / "freeadv_jax"


def fetched(entry: Entry) -> Fetched:
    """Return the file of an entry in the cache folder; download it if it is not there.

    Its SHA-256 must be that of the index or, where the index has none, the one that was
    kept beside the file when it was first read. Raise InputError for any other file, and
    where it cannot be downloaded: the message says which file to put where.
    """
    path = cache_folder() / "robustbench" / f"{entry.path}.pt"
    if not path.is_file():
        _download(entry, path)
    found = Fetched(entry, path, sha256(path))
    _check(found, f"remove {path} to download it again")
    return found


def _kept(path):
    """Return the file beside `path` that holds its SHA-256, as `sha256sum` writes it."""
    return path.with_name(f"{path.name}.sha256")


def _check(found, remedy):
    """Raise InputError, which ends with the `remedy`, for a file of another SHA-256."""
    expected, source = found.entry.sha256, "the index"
    kept = _kept(found.path)
    if expected is None and kept.exists():
        expected, source = (kept.read_text().split() or [""])[0], kept
    if expected is not None and found.sha256 != expected.lower():
        raise InputError(
            f"{found.entry.title}: the file has the SHA-256 {found.sha256}, and {source} "
            f"says {expected}: {remedy}"
        )


def _download(entry, path):
    """Write the file of an entry to `path` as a whole, or raise InputError."""
    address = index().address.format(file=entry.file)
    by_hand = f"download {address} elsewhere and put it at {path}"
    # Two processes may download the same file at once.
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _copy(address, partial, entry.title)
            found = Fetched(entry, path, sha256(partial))
            _check(found, f"it was not kept; {by_hand}")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, http.client.HTTPException) as fault:
        raise InputError(
            f"{entry.title} cannot be downloaded ({one_line(fault)}): {by_hand}"
        ) from fault


def _copy(address, path, title):
    """Write what lies at an address to `path`; raise OSError unless it is a whole file."""
    with (
        urllib.request.urlopen(address, timeout=_PATIENCE) as answer,
        path.open("wb") as file,
    ):
        # A drive that asks for a confirmation, or refuses, does so in a page.
        if answer.headers.get_content_type() == "text/html":
            raise OSError("a web page in place of the file")
        total, done = int(answer.headers.get("Content-Length") or 0), 0
        progress = Progress(title, total=math.ceil(total / 1e6), unit="MB")
        while part := answer.read(1 << 20):
            file.write(part)
            done += len(part)
            if total:
                progress.show(done / 1e6)
    if total and done != total:
        raise OSError(f"{done:,} of {total:,} bytes came")
