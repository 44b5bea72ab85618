"""The images of a set that each step draws: a function of (seed, step) alone."""

import dataclasses
import functools

import numpy as np

from freeadv_jax.data.sampling import steps_per_pass

# A large number, unlike those that other modules combine with the same seed.
_SHUFFLE = 3_446_203_747


@dataclasses.dataclass(frozen=True)
class Order:
    """The order in which `examples` images are drawn: each pass has its own.

    A pass draws each image at most once; the remainder of the last batch is dropped.
    Raise InputError where there is no whole batch.
    """

    examples: int
    batch_size: int
    seed: int

    def __post_init__(self):
        steps_per_pass(self.examples, self.batch_size)

    @property
    def steps(self) -> int:
        """Return the steps of a pass."""
        return steps_per_pass(self.examples, self.batch_size)

    def batch(self, step: int) -> np.ndarray:
        """Return the indices [batch_size] of the images of a step, from 0."""
        pass_number, position = divmod(step, self.steps)
        order = _order_of_pass(self.examples, self.seed, pass_number)
        return order[position * self.batch_size :][: self.batch_size]

    def draws(self, step: int) -> np.ndarray:
        """Return the numbers [batch_size] of the draws of a step, of the whole run."""
        return np.arange(step * self.batch_size, (step + 1) * self.batch_size)


@functools.lru_cache(maxsize=2)
def _order_of_pass(examples, seed, pass_number):
    """Return the indices of all images; those of ImageNet take 10 MB and 20 ms."""
    rng = np.random.default_rng([_SHUFFLE, seed, pass_number])
    return rng.permutation(examples)
