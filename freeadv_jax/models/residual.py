"""The parts that all residual networks share: layers, strides and the last layer's start."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn

from freeadv_jax.models.batch_norm import batch_norm
from freeadv_jax.models.conv import Conv

# PyTorch's default for a dense kernel: uniform within 1 / sqrt(fan in).
torch_dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def layers(
    *, train: bool, epsilon: float, dtype: Any, batch_norm_axis: str | None
) -> tuple[Callable[..., nn.Module], Callable[..., Any]]:
    """Return the convolution and the batch normalisation with a network's settings.

    `epsilon` is that of the normalisation; the other settings are those of `batch_norm`.
    """
    normalize = functools.partial(
        batch_norm,
        train=train,
        epsilon=epsilon,
        dtype=dtype,
        axis_name=batch_norm_axis,
    )
    return functools.partial(Conv, dtype=dtype), normalize


def stages_and_strides(units: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Yield (stage, stride) for each unit of a network with `units` units a stage.

    The first unit of every stage but the first has stride 2, all others have stride 1.
    """
    for stage, count in enumerate(units):
        for unit in range(count):
            yield stage, 2 if stage > 0 and unit == 0 else 1


def ends_of_stages(units: tuple[int, ...]) -> set[int]:
    """Return the numbers, counted from 0, of the units that are the last of a stage."""
    return {count - 1 for count in itertools.accumulate(units)}
