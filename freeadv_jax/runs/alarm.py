"""The alarm before a collapse: the gradients of the images are no longer aligned."""

from freeadv_jax.runs.metrics import Window
from freeadv_jax.training.alignment import ALIGNMENT

# The alarm is raised where the alignment is below this share of its highest value.
SHARE = 0.5
# The alignment is a mean over this part of a pass over the training images.
PART_OF_PASS = 1 / 4


class CollapseAlarm:
    """Hear the alignment of every step, and raise one alarm when it has fallen.

    The alignment is judged by its means over `period` steps. `raised` is None, or the
    alarm: {"updates", "alignment", "highest"}. A dictionary that `as_dict` returned makes
    the same alarm again.
    """

    def __init__(
        self,
        period: int,
        *,
        block: dict | None = None,
        highest: float = 0.0,
        raised: dict | None = None,
    ):
        self._period, self._highest, self.raised = period, highest, raised
        self._block = Window(**block or {})

    def hears(self, updates: int, alignment: float) -> bool:
        """Return whether the alignment of the step that ends at `updates` raises it."""
        self._block.add({ALIGNMENT: alignment})
        if self._block.count < self._period:
            return False
        mean = self._block.take()[ALIGNMENT]
        self._highest = max(self._highest, mean)
        if self.raised or mean >= SHARE * self._highest:
            return False
        self.raised = {
            "updates": updates,
            "alignment": mean,
            "highest": self._highest,
        }
        return True

    def as_dict(self) -> dict:
        """Return the arguments beside the period that make the same alarm again."""
        return {
            "block": self._block.as_dict(),
            "highest": self._highest,
            "raised": self.raised,
        }
