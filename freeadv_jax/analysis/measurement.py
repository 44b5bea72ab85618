"""What a report measures on a model beyond its evaluation, kept in the run folder.

Robust accuracy against epsilon and against steps, what the model says of attacked
images, and what it says of images attacked on other models.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from freeadv_jax.analysis.comparison import Examples, Subject, threat
from freeadv_jax.attacks.campaign import Campaign
from freeadv_jax.attacks.pgd import PGD
from freeadv_jax.console import say
from freeadv_jax.progress import Progress
from freeadv_jax.runs.outcomes import ArrayFile

# Of the epsilon of the training.
RADII = (0.25, 0.5, 1, 1.5, 2, 3, 4)
STEP_COUNTS = (1, 2, 5, 10, 20, 50, 100)
# Of the curve over epsilon and of the attacked images.
STEPS = 20
_KEPT = "report"


@dataclasses.dataclass(frozen=True)
class Measured:
    """The figures of one model on its first n test images.

    `by_epsilon` and `by_steps` say which images stand, bool[n]; the attacked images are
    the last iterates of PGD from every image, right or wrong, so that they can be
    carried to another model: `transferred` has what this model says of those made on
    the others, int[n] by their labels.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    logits: np.ndarray
    attacked: np.ndarray
    attacked_logits: np.ndarray
    by_epsilon: dict[float, np.ndarray]
    by_steps: dict[int, np.ndarray]
    transferred: dict[str, np.ndarray]

    @property
    def right(self) -> np.ndarray:
        """Which images are classified right as they are, bool[n]."""
        return self.logits.argmax(axis=-1) == self.labels

    def standing_under(self, label: str) -> np.ndarray:
        """Which images stand, as they are and attacked on the model of that label."""
        return self.right & (self.transferred[label] == self.labels)


def measure(
    subjects: list[Subject], load: Callable[[], Examples], *, examples: int
) -> list[Measured]:
    """Measures what the run folders do not hold already.

    `load()` gives the first `examples` of the test set; it is called only if needed.
    The same call goes on where it was cut off.
    """
    load = functools.cache(load)
    campaigns: dict = {}
    kept = []
    for subject in subjects:
        size = subject.run.config.evaluation.batch_size
        campaign = campaigns.setdefault(size, Campaign(batch_size=size))
        kept.append(_Measuring(subject, campaign, _outcomes(subject, examples), load))
    for measuring in kept:
        measuring.alone()
    for measuring in kept:
        measuring.transfers(kept)
    return found(subjects, examples=examples)


def found(subjects: list[Subject], *, examples: int) -> list[Measured] | None:
    """What was measured before, None unless it is there for every model."""
    results = []
    for subject in subjects:
        arrays = _outcomes(subject, examples).arrays
        if not all(_transfer(other) in arrays for other in subjects):
            return None
        results.append(_measured(subject, arrays, subjects))
    return results


@dataclasses.dataclass(frozen=True)
class _Measuring:
    """One model at work."""

    subject: Subject
    campaign: Campaign
    outcomes: ArrayFile
    load: Callable[[], Examples]

    def alone(self):
        """All that takes only this model."""
        config = self.subject.run.config
        ball, step_size = threat(config), config.evaluation.step_size
        self._once("label", lambda: self.load().labels)
        self._once("class", lambda: np.array(self.load().class_names))
        self._once("image", lambda: self.load().images)
        self._once("logits", self._logits_of, "image")
        pgd = functools.partial(PGD, **ball, step_size=step_size, steps=STEPS)
        self._once("attacked", self._attacked, pgd(last_iterate=True))
        self._once("attacked logits", self._logits_of, "attacked")
        for radius in _radii(config):
            sized = pgd(epsilon=radius, step_size=step_size * radius / ball["epsilon"])
            title = f"epsilon {radius:.4g}"
            self._once(_at_epsilon(radius), self._standing, sized, title)
        for steps in STEP_COUNTS:
            title = f"{steps} steps"
            self._once(_after(steps), self._standing, pgd(steps=steps), title)

    def transfers(self, measurings):
        """What this model says of the images attacked on each."""
        for other in measurings:
            name = _transfer(other.subject)
            self._once(name, self._says_of, other.outcomes.arrays["attacked"])

    def _once(self, name, make, *arguments):
        """Measures and keeps it, unless it is there."""
        if name not in self.outcomes.arrays:
            self.outcomes.arrays[name] = make(*arguments)
            self.outcomes.save()

    def _logits_of(self, name):
        return self._logits(self.outcomes.arrays[name])

    def _says_of(self, images):
        return self._logits(images).argmax(axis=-1)

    def _logits(self, images):
        return self.campaign.logits(self.subject.logits_fn, images)

    def _attack(self, attack, title, standing, **options):
        progress = Progress(
            f"{self.subject.label}: {title}",
            total=int(standing.sum()),
            unit="images",
            write=say,
        )
        return self.campaign.attack(
            attack,
            self.subject.logits_fn,
            self.outcomes.arrays["image"],
            self.outcomes.arrays["label"],
            standing,
            watch=lambda done, left: progress.show(done, accuracy=left.mean()),
            **options,
        )

    def _standing(self, attack, title):
        """Which of the images classified right withstand."""
        arrays = self.outcomes.arrays
        right = arrays["logits"].argmax(axis=-1) == arrays["label"]
        return self._attack(attack, title, right)

    def _attacked(self, attack):
        images = self.outcomes.arrays["image"]
        adversarial = np.zeros(images.shape, np.float32)
        everywhere = np.ones(len(images), bool)
        self._attack(attack, "the images", everywhere, adversarial=adversarial)
        return adversarial


def _outcomes(subject, examples):
    config = subject.run.config
    step_size = config.evaluation.step_size
    about = {"examples": examples, "step_size": step_size, "steps": STEPS}
    about |= {"data": config.data.name} | threat(config)
    return subject.kept(_KEPT, about)


def _measured(subject, arrays, subjects):
    return Measured(
        images=arrays["image"],
        labels=arrays["label"],
        class_names=tuple(map(str, arrays["class"])),
        logits=arrays["logits"],
        attacked=arrays["attacked"],
        attacked_logits=arrays["attacked logits"],
        by_epsilon={0.0: arrays["logits"].argmax(axis=-1) == arrays["label"]}
        | {
            radius: arrays[_at_epsilon(radius)] for radius in _radii(subject.run.config)
        },
        by_steps={steps: arrays[_after(steps)] for steps in STEP_COUNTS},
        transferred={other.label: arrays[_transfer(other)] for other in subjects},
    )


def _radii(config):
    """Those of the curve, in [0, 1] pixels; beyond 1 an L-inf ball holds no more."""
    most = 1.0 if config.attack.norm == "linf" else np.inf
    return sorted({min(part * config.attack.epsilon, most) for part in RADII})


def _at_epsilon(radius):
    return f"epsilon/{radius!r}"


def _after(steps):
    return f"steps/{steps}"


def _transfer(subject):
    return f"transfer/{subject.checksum}"
