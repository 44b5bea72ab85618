"""Progress of long work, in lines."""

import logging
import time
from collections.abc import Callable

_LOGGER = logging.getLogger(__name__)


class Progress:
    """Report how far the work is, how fast it goes and how long it will still take.

    Lines go to `write`; by default they are logged at level INFO.
    """

    def __init__(
        self,
        name: str,
        *,
        total: int,
        unit: str,
        write: Callable[[str], None] = _LOGGER.info,
    ):
        self._write = write
        self._name, self._total, self._unit = name, total, unit
        self._begun: tuple[float, float, float] | None = None
        self._next = time.perf_counter() + 1

    def show(
        self,
        done: float,
        *,
        work: tuple[float, float] | None = None,
        **values: float | str,
    ) -> None:
        """Write a line if the last is old enough, or the work is finished.

        `done` may have a fraction, for work that is under way. Numbers are shown with four
        decimals, and texts as they are. The rate counts from the first call, because
        compilation comes before it. `work` is (made, left), where units take different
        times: the time left follows it then.
        """
        now = time.perf_counter()
        made, to_come = work or (done, self._total - done)
        first, start, made_first = self._begun = self._begun or (done, now, made)
        if now < self._next and done < self._total:
            return
        # Every second at first, then ever more rarely, up to every half minute.
        self._next = now + min(30, max(1, (now - start) / 10))
        texts = {
            name: value if isinstance(value, str) else f"{value:.4f}"
            for name, value in values.items()
        }
        shown = "".join(f"  {name} {text}" for name, text in texts.items())
        if done > first:
            shown += f"  {(done - first) / (now - start):.3g} {self._unit}/s"
        if made > made_first:
            left = to_come * (now - start) / (made - made_first)
            shown += f"  {duration(left)} left"
        share = f"{int(done)}/{self._total} {self._unit} ({done / self._total:.0%})"
        self._write(f"{self._name} {share}{shown}")


def duration(seconds: float) -> str:
    """Return seconds as h:mm:ss, m:ss below an hour, or '85 s' below two minutes."""
    if round(seconds) < 120:
        return f"{round(seconds)} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
