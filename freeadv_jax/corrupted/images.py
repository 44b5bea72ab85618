"""Images with common corruptions, from files or made of given images.

The fifteen kinds and five severities are those of Hendrycks & Dietterich (2019),
https://arxiv.org/abs/1903.12261. This is the only module that knows `imagecorruptions`.
"""

import dataclasses
import functools
import importlib.metadata
import pathlib
import zlib
from typing import Protocol, runtime_checkable

import numpy as np

from freeadv_jax.attacks.campaign import Images
from freeadv_jax.errors import InputError, one_line, require_choice
from freeadv_jax.files import local_path, sha256

KINDS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
SEVERITIES = (1, 2, 3, 4, 5)

# These draw from a generator of their own, which takes its seed as an argument.
_SEEDED = ("impulse_noise", "glass_blur")
# The library refuses smaller images.
_SMALLEST = 32


@runtime_checkable
class CorruptedImages(Protocol):
    """Labelled images under each kind and severity of corruption.

    `labels` are int32[n]. `image_shape` is (h, w, c).
    """

    labels: np.ndarray
    image_shape: tuple[int, ...]

    def part(self, kind: str, severity: int, chosen: slice) -> np.ndarray:
        """Return the chosen images uint8[b, h, w, c] with one corruption."""

    def about(self) -> dict:
        """Return what tells these corruptions from others, for results.json."""


@dataclasses.dataclass(frozen=True, eq=False)
class MadeImages:
    """Corruptions that `imagecorruptions` makes of images [n, h, w, c].

    The images are uint8, or floats in [0, 1]. Each corrupted image is a function of the
    seed, the kind, the severity and its place, and of the library's version.
    """

    images: Images
    labels: np.ndarray
    seed: int

    def __post_init__(self):
        """Raise InputError for images that the library cannot corrupt, or without it."""
        height, width, channels = self.image_shape
        if min(height, width) < _SMALLEST or channels not in (1, 3):
            raise InputError(
                f"images of {height} x {width} pixels and {channels} channels: "
                f"corruptions are made of {_SMALLEST} x {_SMALLEST} pixels or more and 1 or "
                "3 channels"
            )
        _library()

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Height, width and channels."""
        return tuple(self.images.shape[1:])

    def part(self, kind: str, severity: int, chosen: slice) -> np.ndarray:
        """Return the chosen images uint8[b, h, w, c] with one corruption."""
        pixels = np.asarray(self.images[chosen])
        if pixels.dtype != np.uint8:
            pixels = np.rint(255 * pixels).astype(np.uint8)
        first = chosen.indices(len(self.labels))[0]
        channels = pixels.shape[-1]
        before = np.random.get_state()
        try:
            corrupted = [
                self._corrupted(image, kind, severity, first + place)[..., :channels]
                for place, image in enumerate(pixels)
            ]
        finally:
            np.random.set_state(before)
        return np.stack(corrupted)

    def _corrupted(self, image, kind, severity, index):
        # The library draws from NumPy's global generator.
        np.random.seed([self.seed, zlib.crc32(kind.encode()), severity, index])
        seed = {"seed": np.random.randint(2**31)} if kind in _SEEDED else {}
        return _library().corrupt(
            image, severity=severity, corruption_name=kind, **seed
        )

    def about(self) -> dict:
        """Return the library, its version and the seed."""
        # Several distributions have a module of this name.
        known = importlib.metadata.packages_distributions()
        library = known.get("imagecorruptions", [None])[0]
        version = library and importlib.metadata.version(library)
        return {"library": library, "version": version, "seed": self.seed}


@dataclasses.dataclass(frozen=True, eq=False)
class StoredImages:
    """Corruptions in a folder of .npy files, as CIFAR-10-C and CIFAR-100-C have them.

    KIND.npy holds uint8[5 n, h, w, c], the n images at severity 1, then at 2 and so on,
    and labels.npy the n labels, once or five times.
    """

    folder: pathlib.Path

    @classmethod
    def open(cls, folder) -> "StoredImages":
        """Return the corruptions of a folder.

        Raise InputError where a file is missing, cannot be read without running code, or
        has another shape than the others.
        """
        stored = cls(local_path(folder))
        names = [f"{name}.npy" for name in (*KINDS, "labels")]
        missing = [name for name in names if not (stored.folder / name).is_file()]
        if missing:
            raise InputError(f"{stored.folder} lacks {', '.join(missing)}")
        for kind in KINDS:
            stored._array(kind)
        if len(stored.labels) * len(SEVERITIES) != len(stored._array(KINDS[0])):
            raise InputError(
                f"{stored.folder / 'labels.npy'}: {len(stored.labels)} labels for "
                f"{len(stored._array(KINDS[0]))} images of a kind"
            )
        return stored

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """The labels int32[n]."""
        path = self.folder / "labels.npy"
        labels = _read(path)
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise InputError(
                f"{path} holds {labels.dtype} {list(labels.shape)}: must be whole numbers "
                "[n]"
            )
        images, severities = len(self._array(KINDS[0])), len(SEVERITIES)
        if len(labels) == images:
            once, *others = np.split(np.asarray(labels), severities)
            if any((once != other).any() for other in others):
                raise InputError(f"{path}: the labels differ from severity to severity")
            labels = once
        return np.asarray(labels, np.int32)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Height, width and channels."""
        return tuple(self._array(KINDS[0]).shape[1:])

    def part(self, kind: str, severity: int, chosen: slice) -> np.ndarray:
        """Return the chosen images uint8[b, h, w, c] with one corruption."""
        n = len(self.labels)
        of_severity = self._array(kind)[(severity - 1) * n : severity * n]
        return np.asarray(of_severity[chosen])

    def about(self) -> dict:
        """Return the SHA-256 of each file."""
        return {"sha256": dict(self._checksums)}

    @functools.cached_property
    def _checksums(self):
        return {kind: sha256(self.folder / f"{kind}.npy") for kind in KINDS}

    @functools.cached_property
    def _arrays(self):
        return {}

    def _array(self, kind):
        """Return the array of a kind, of which only the parts that are used are read."""
        if kind not in self._arrays:
            path = self.folder / f"{kind}.npy"
            array = self._arrays[kind] = _read(path)
            shape = self._arrays[KINDS[0]].shape
            if (
                array.dtype != np.uint8
                or array.ndim != 4
                or len(array) % len(SEVERITIES)
                or array.shape != shape
            ):
                raise InputError(
                    f"{path} holds {array.dtype} {list(array.shape)}: must be uint8 "
                    "[5 n, height, width, channels], in all files the same"
                )
        return self._arrays[kind]


def check_kinds(kinds) -> tuple[str, ...]:
    """Return the kinds as a tuple; raise InputError for an unknown one and for none."""
    kinds = tuple(dict.fromkeys([kinds] if isinstance(kinds, str) else kinds))
    for kind in kinds:
        require_choice("kind of corruption", kind, KINDS)
    if not kinds:
        raise InputError(f"kinds is empty: give at least one of {', '.join(KINDS)}")
    return kinds


def _read(path):
    """Return the array of a .npy file, which stays on the disk until it is used."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as fault:
        raise InputError(
            f"{path} cannot be read as an array of numbers: {one_line(fault)}"
        ) from fault


def _library():
    try:
        import imagecorruptions
    except ImportError as fault:
        raise InputError(
            f"imagecorruptions, which makes corruptions, cannot be imported "
            f"({one_line(fault)}): pip install 'freeadv_jax[corruptions]', or give the "
            "folder of CIFAR-10-C"
        ) from fault
    return imagecorruptions
