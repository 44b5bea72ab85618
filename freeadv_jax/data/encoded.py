"""Images that stay encoded until their pixels are needed."""

import concurrent.futures
import dataclasses
import os
import zlib
from collections.abc import Sequence

import numpy as np

from freeadv_jax.data import jpeg, pillow
from freeadv_jax.errors import InputError

# The readers of encoded images, and the modules that decode for them.
TF_DATA, GRAIN = "tf.data", "grain"
CODECS = {TF_DATA: jpeg, GRAIN: pillow}
# Encoded images that a fingerprint holds in memory: some 30 MB of ImageNet's.
_READ_TOGETHER = 256


@dataclasses.dataclass(frozen=True)
class EncodedImages:
    """Look like an array of images uint8[n, size, size, 3], decoded when needed.

    A slice or an array of indices returns another `EncodedImages` and decodes nothing.
    `np.asarray`, and any NumPy function that needs an array, decodes: it resizes the
    short side of each image to 256/224 of `size` and takes the center. Images given as
    bytes stay in memory as long as a slice of them does: about 7 GB for ImageNet's 50,000
    validation images.
    """

    # One dimension, of bytes, or of paths and others with `read_bytes()`.
    items: np.ndarray
    size: int
    # The origin of images given as bytes, for error messages; files are named themselves.
    source: str = "the data set"
    reader: str = TF_DATA

    @classmethod
    def of(cls, items: Sequence, **fields) -> "EncodedImages":
        """Return the images of these bytes or files."""
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
        """Return the pixels; raise InputError for an image that cannot be decoded."""
        if copy is False:
            raise ValueError("encoded images cannot become pixels without a copy")
        codec = CODECS[self.reader]
        decode = codec.center_decoder(self.size)
        pixels = np.empty(self.shape, np.uint8)

        def fill(index):
            item = self.items[index]
            try:
                pixels[index] = decode(as_bytes(item))
            except codec.undecodable() as error:
                is_file = not isinstance(item, bytes)
                subject = item if is_file else f"an image of {self.source}"
                raise InputError(f"{subject} cannot be decoded") from error

        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
            # The list is needed to raise a thread's error here.
            list(threads.map(fill, range(len(self))))
        return pixels if dtype is None else pixels.astype(dtype, copy=False)

    def fingerprint(self) -> int:
        """Return a checksum of the encoded images in their order, and of `size`."""
        crc = zlib.crc32(self.size.to_bytes(4, "little"))
        if self.reader != TF_DATA:  # Its pixels differ by a level here and there.
            crc = zlib.crc32(self.reader.encode(), crc)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
            for first in range(0, len(self), _READ_TOGETHER):
                items = self.items[first : first + _READ_TOGETHER]
                for content in threads.map(as_bytes, items):
                    crc = zlib.crc32(content, crc)
        return crc


def as_bytes(item) -> bytes:
    """Return the encoded image, read from its file if it is a path or the like."""
    return item if isinstance(item, bytes) else item.read_bytes()
