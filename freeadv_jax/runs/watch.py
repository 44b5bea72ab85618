"""Watching a training: its log, its progress, and signs that it should stop."""

import contextlib
import logging
import math
import time
from collections.abc import Callable

import numpy as np

from freeadv_jax.attacks.robustness import VALIDATION_ATTACK
from freeadv_jax.errors import TrainingStoppedError
from freeadv_jax.progress import Progress
from freeadv_jax.runs.alarm import CollapseAlarm
from freeadv_jax.runs.metrics import MetricsLog, Window
from freeadv_jax.training.alignment import ALIGNMENT

_LOGGER = logging.getLogger(__name__)

# Robust validation accuracy that falls by more than this while the training loss falls
# too shows catastrophic overfitting. The code of Wong et al. (ICLR 2020) stops at the
# same fall, on a training batch.
COLLAPSE = 0.2


class Watch:
    """Turn the metrics of each step into lines of the log and lines to read.

    `progress()` is all that a later `Watch` needs as `saved` to go on after a kill as if
    nothing had happened.
    """

    def __init__(
        self,
        log: MetricsLog,
        *,
        replays: int,
        updates: int,
        logs_at: Callable[[int], bool],
        learning_rate: Callable,
        saved: dict,
        write: Callable[[str], None],
        adversarial: bool = True,
        alarm_period: int = 1,
    ):
        # The accuracy of a training step is on the images that it trained on.
        self._accuracy = "accuracy on attacked images" if adversarial else "accuracy"
        self._log, self._replays, self._write = log, replays, write
        self._logs_at, self._learning_rate = logs_at, learning_rate
        self._since_line = Window(**saved.get("since_line", {}))
        self._since_validation = Window(**saved.get("since_validation", {}))
        self.alarm = CollapseAlarm(alarm_period, **saved.get("alarm", {}))
        self.clock = Clock(saved.get("clock", {}))
        self._shown = Progress("training", total=updates, unit="updates", write=write)

    def progress(self) -> dict:
        """Return copies of all that must be saved beside the state."""
        return {
            "since_line": self._since_line.as_dict(),
            "since_validation": self._since_validation.as_dict(),
            "alarm": self.alarm.as_dict(),
            "clock": dict(self.clock.seconds),
        }

    def steps(self, steps: range, metrics: dict) -> None:
        """Take the metrics of these steps: arrays with at least as many entries.

        Raise TrainingStoppedError for a metric that is not finite.
        """
        values = {name: np.asarray(array).tolist() for name, array in metrics.items()}
        for number, step in enumerate(steps):
            self._step(step, {name: value[number] for name, value in values.items()})

    def _step(self, step, metrics):
        updates = step * self._replays
        if not all(map(math.isfinite, metrics.values())):
            raise TrainingStoppedError(
                f"the loss is {metrics['loss']} at update {updates} (step {step})"
            )
        self._since_line.add(metrics)
        self._since_validation.add(metrics)
        # The alignment has an alarm; the accuracy comes last, as a percentage.
        apart = ("accuracy", ALIGNMENT)
        shown = {name: metrics[name] for name in metrics if name not in apart}
        if "accuracy" in metrics:
            shown[self._accuracy] = f"{metrics['accuracy']:.2%}"
        self._shown.show(updates, **shown)
        if self._logs_at(step):
            self._log.write(
                "train",
                step=step,
                updates=updates,
                **self._since_line.take(),
                learning_rate=float(self._learning_rate(updates - 1)),
                seconds=self.clock.seconds["training"],
            )
        if ALIGNMENT in metrics and self.alarm.hears(updates, metrics[ALIGNMENT]):
            self._log.write("alarm", step=step, **self.alarm.raised)
            _LOGGER.warning(
                "COLLAPSE AHEAD at update %d: the alignment of input gradients fell from "
                "%.2f to %.2f; a smaller attack.step_size, more attack.replays or "
                "attack.misalignment may prevent it",
                updates,
                self.alarm.raised["highest"],
                self.alarm.raised["alignment"],
            )

    def validation(self, step: int, **accuracies: float) -> None:
        """Take the accuracies on the validation images, and show them."""
        updates = step * self._replays
        train_loss = self._since_validation.take()["loss"]
        self._log.write(
            "validation",
            step=step,
            updates=updates,
            **accuracies,
            train_loss=train_loss,
        )
        shown = "  ".join(f"{name} {value:.2%}" for name, value in accuracies.items())
        self._write(f"validation at update {updates}: {shown}")

    def collapse(self) -> str | None:
        """Return a message if robust validation accuracy has collapsed, else None."""
        *before, now = self._log.of_kind("validation")
        attack = VALIDATION_ATTACK
        best = max(before, key=lambda line: line[attack], default=now)
        fall = best[attack] - now[attack]
        if fall <= COLLAPSE or now["train_loss"] >= best["train_loss"]:
            return None
        message = (
            f"CATASTROPHIC OVERFITTING at update {now['updates']}: robust validation "
            f"accuracy fell from {best[attack]:.2%} (update {best['updates']}) to "
            f"{now[attack]:.2%} while the training loss fell from "
            f"{best['train_loss']:.4f} to {now['train_loss']:.4f}"
        )
        _LOGGER.warning("%s", message)
        return message


class Clock:
    """Seconds of a training by their use, summed over all its resumptions."""

    def __init__(self, seconds: dict[str, float]):
        self.seconds = {"training": 0.0, "waiting": 0.0, "compiling": 0.0} | seconds

    @contextlib.contextmanager
    def spending(self, on: str):
        """Count the time inside the `with` block as spent on this."""
        started = time.perf_counter()
        yield
        self.seconds[on] += time.perf_counter() - started
