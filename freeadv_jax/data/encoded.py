"""Many images that are kept encoded and decoded when they are looked at."""

import concurrent.futures
import dataclasses
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from freeadv_jax.data import jpeg
from freeadv_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class EncodedImages:
    """Images uint8[n, size, size, 3], of files or of encoded bytes, as lazy pixels.

    A slice or an array of indices gives another one, which costs nothing; pixels come
    from `np.asarray`, wherever NumPy wants an array: the center of the image after its
    short side was resized to 256/224 of `size`. Bytes stay in memory as long as a part
    of them is in use: for ImageNet's 50,000 validation images some 7 GB.
    """

    # Of bytes or of Path, one dimension.
    items: np.ndarray
    size: int
    # Of which the images are, for errors; one that is a file is named itself.
    source: str = "the data set"

    @classmethod
    def of(cls, items: Sequence[bytes | Path], **fields) -> "EncodedImages":
        """The images of these bytes or files."""
        array = np.empty(len(items), object)
        array[:] = items
        return cls(array, **fields)

    dtype = np.dtype(np.uint8)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.items), self.size, self.size, 3

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, chosen: slice | np.ndarray) -> "EncodedImages":
        return dataclasses.replace(self, items=self.items[chosen])

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """InputError where an image cannot be decoded."""
        if copy is False:
            raise ValueError("encoded images cannot become pixels without a copy")
        decode = jpeg.center_decoder(self.size)
        pixels = np.empty(self.shape, np.uint8)

        def fill(place):
            item = self.items[place]
            try:
                pixels[place] = decode(as_bytes(item)).numpy()
            except jpeg.undecodable() as error:
                of = item if isinstance(item, Path) else f"an image of {self.source}"
                raise InputError(f"{of} cannot be decoded") from error

        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
            # A list, so that an error of a thread is raised here.
            list(threads.map(fill, range(len(self))))
        return pixels if dtype is None else pixels.astype(dtype, copy=False)

    def fingerprint(self) -> int:
        """A checksum of the encoded images in their order, and of their size."""
        crc = zlib.crc32(self.size.to_bytes(4, "little"))
        for item in self.items:
            crc = zlib.crc32(as_bytes(item), crc)
        return crc


def as_bytes(item: bytes | Path) -> bytes:
    """The encoded image."""
    return item if isinstance(item, bytes) else item.read_bytes()
