"""Training batches in PyTorch: augmented on the device, or one by one on the host.

A batch is float32 images [b, c, h, w] in [0, 1] with labels; each pass has a new order.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F

from freeadv_jax.data.split import Split
from freeadv_jax.runs.folder import Run

Batch = tuple[torch.Tensor, torch.Tensor]


def device_batches(run: Run, split: Split, device) -> Iterator[Batch]:
    """Yield batches without end from uint8 images on the device."""
    fields, size = run.config.data, run.config.batch_size
    images = torch.from_numpy(split.images).permute(0, 3, 1, 2)  # channels_last
    images, labels = images.to(device), torch.from_numpy(split.labels).to(device).long()
    height, width = images.shape[2:]
    every_image = torch.arange(size, device=device)[:, None, None]
    while True:
        order = torch.randperm(len(labels), device=device)
        for chosen in order[: len(order) // size * size].split(size):
            batch = images[chosen]
            if fields.pad:
                padded = F.pad(batch, (fields.pad,) * 4)
                offsets = torch.randint(2 * fields.pad + 1, (2, size, 1), device=device)
                rows = offsets[0] + torch.arange(height, device=device)
                columns = offsets[1] + torch.arange(width, device=device)
                pixels = padded.permute(0, 2, 3, 1)
                batch = pixels[every_image, rows[:, :, None], columns[:, None, :]]
                batch = batch.permute(0, 3, 1, 2)
            if fields.flip:
                mirrored = torch.rand(size, 1, 1, 1, device=device) < 0.5
                batch = torch.where(mirrored, batch.flip(3), batch)
            batch = batch.to(torch.float32, memory_format=torch.channels_last)
            yield batch.div_(255), labels[chosen]


class _HostImages(torch.utils.data.Dataset):
    """Float32 images [c, h, w], augmented one at a time."""

    def __init__(self, split: Split, *, pad: int, flip: bool):
        self._split, self._pad, self._flip = split, pad, flip
        self._random = np.random.default_rng(0)

    def __len__(self):
        return len(self._split.labels)

    def __getitem__(self, index):
        image, pad = self._split.images[index], self._pad
        if pad:
            top, left = self._random.integers(0, 2 * pad + 1, 2)
            height, width = image.shape[:2]
            image = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
            image = image[top : top + height, left : left + width]
        if self._flip and self._random.random() < 0.5:
            image = image[:, ::-1]
        image = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return image.float().div_(255), int(self._split.labels[index])


def host_batches(run: Run, split: Split, device) -> Iterator[Batch]:
    """Yield batches without end from a DataLoader in this process."""
    fields = run.config.data
    loader = torch.utils.data.DataLoader(
        _HostImages(split, pad=fields.pad, flip=fields.flip),
        batch_size=run.config.batch_size,
        shuffle=True,
        drop_last=True,
        pin_memory=device.type == "cuda",
    )
    while True:
        for images, labels in loader:
            yield (
                images.to(device, non_blocking=True),
                labels.to(device, non_blocking=True),
            )
