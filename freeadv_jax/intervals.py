"""How sure a share is that was counted on a sample."""

import math


def wilson(correct: int, examples: int, *, z: float = 1.959964) -> tuple[float, float]:
    """The interval for a share of which `correct` of `examples` were counted.

    Wilson (1927), 95 % for the default `z`, the normal quantile of 0.975. Without
    examples it is (0, 1).
    """
    wrong = examples - correct
    centre = correct + z**2 / 2
    half = z * math.sqrt(correct * wrong / max(examples, 1) + z**2 / 4)
    total = examples + z**2
    # Of none the lowest is 0 and of all the highest 1, which rounding can miss.
    lowest = (centre - half) / total if correct else 0.0
    highest = (centre + half) / total if wrong else 1.0
    return lowest, highest
