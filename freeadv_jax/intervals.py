"""The interval of a share that was counted on a sample."""

import math

from scipy import special


def wilson(correct: int, examples: int, *, z: float = 1.959964) -> tuple[float, float]:
    """Return the ends of the confidence interval of the share `correct` / `examples`.

    This is the score interval of Wilson (1927), both ends in [0, 1]. The default `z` is
    the normal quantile of 0.975, for 95 %. Without examples the interval is (0, 1).
    """
    wrong = examples - correct
    centre = correct + z**2 / 2
    half = z * math.sqrt(correct * wrong / max(examples, 1) + z**2 / 4)
    total = examples + z**2
    # The lower end for 0 and the upper end for all are exact; rounding can miss them.
    lowest = (centre - half) / total if correct else 0.0
    highest = (centre + half) / total if wrong else 1.0
    return lowest, highest


def clopper_pearson(correct: int, examples: int, *, alpha: float) -> float:
    """Return the exact lower bound of the share `correct` / `examples`.

    The true share is below it with probability `alpha` at most (Clopper & Pearson, 1934).
    """
    if not correct:
        return 0.0
    return float(special.betaincinv(correct, examples - correct + 1, alpha))
