"""Measurements of a report beyond the evaluation, kept in the models' folders.

They are robust accuracy by epsilon and by attack steps, predictions on attacked images,
and predictions on images that were attacked on the other models.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from freeadv_jax.analysis.comparison import ComparedModel, Examples
from freeadv_jax.attacks.campaign import Campaign
from freeadv_jax.attacks.pgd import PGD
from freeadv_jax.console import say
from freeadv_jax.progress import Progress
from freeadv_jax.runs.outcomes import ArrayFile

# Multiples of the threat's epsilon.
RADII = (0.25, 0.5, 1, 1.5, 2, 3, 4)
STEP_COUNTS = (1, 2, 5, 10, 20, 50, 100)
# The steps of PGD for the curve by epsilon and for the attacked images.
STEPS = 20
_KEPT = "report"


@dataclasses.dataclass(frozen=True)
class Measurements:
    """The measurements of one model on its first n test images.

    `by_epsilon` and `by_steps` say which images stay robust, bool[n], by the radius in
    [0, 1] pixels and by the number of steps. `attacked` f32[n, h, w, c] are the last
    iterates of PGD from every image, even a misclassified one, so that they can be
    transferred. `transferred` has this model's predictions int[n] on the images that
    were attacked on the model of each label.
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
    def correct(self) -> np.ndarray:
        """The images that are classified correctly without an attack, as bool[n]."""
        return self.logits.argmax(axis=-1) == self.labels

    def robust_to_attack_on(self, label: str) -> np.ndarray:
        """Return which images stay correct, natural and attacked on that model."""
        return self.correct & (self.transferred[label] == self.labels)


def measure(
    models: list[ComparedModel], load: Callable[[], Examples], *, examples: int
) -> list[Measurements]:
    """Return the measurements of all models, after making those that are missing.

    `load()` returns the first `examples` of the test set; it is called only if needed.
    After an interruption the same call makes only the missing measurements.
    """
    load = functools.cache(load)
    campaigns: dict = {}
    measuring = []
    for model in models:
        size = model.batch_size
        campaign = campaigns.setdefault(size, Campaign(batch_size=size))
        kept = _kept(model, examples)
        measuring.append(_Measuring(model, campaign, kept, load))
    for one in measuring:
        one.measure_alone()
    for one in measuring:
        one.measure_transfers(measuring)
    return kept_measurements(models, examples=examples)


def kept_measurements(
    models: list[ComparedModel], *, examples: int
) -> list[Measurements] | None:
    """Return earlier measurements, None unless they are complete for every model."""
    results = []
    for model in models:
        arrays = _kept(model, examples).arrays
        if not all(_transfer(other) in arrays for other in models):
            return None
        results.append(_measurements(model, arrays, models))
    return results


@dataclasses.dataclass(frozen=True)
class _Measuring:
    """One model with its kept arrays; each array is measured once."""

    model: ComparedModel
    campaign: Campaign
    kept: ArrayFile
    load: Callable[[], Examples]

    def measure_alone(self):
        """Measure everything that needs only this model."""
        threat, step_size = self.model.threat, self.model.step_size
        self._once("label", lambda: self.load().labels)
        self._once("class", lambda: np.array(self.load().class_names))
        self._once("image", lambda: self.load().images)
        self._once("logits", self._logits_of, "image")
        pgd = functools.partial(PGD, **threat, step_size=step_size, steps=STEPS)
        self._once("attacked", self._attacked, pgd(last_iterate=True))
        self._once("attacked logits", self._logits_of, "attacked")
        for radius in _radii(self.model):
            sized = pgd(
                epsilon=radius, step_size=step_size * radius / threat["epsilon"]
            )
            title = f"epsilon {radius:.4g}"
            self._once(_at_epsilon(radius), self._robust, sized, title)
        for steps in STEP_COUNTS:
            title = f"{steps} steps"
            self._once(_after(steps), self._robust, pgd(steps=steps), title)

    def measure_transfers(self, measuring):
        """Predict the images that were attacked on each model."""
        for other in measuring:
            name = _transfer(other.model)
            self._once(name, self._predictions, other.kept.arrays["attacked"])

    def _once(self, name, make, *arguments):
        """Keep `make(*arguments)` under a name that has no array yet."""
        if name not in self.kept.arrays:
            self.kept.arrays[name] = make(*arguments)
            self.kept.save()

    def _logits_of(self, name):
        return self._logits(self.kept.arrays[name])

    def _predictions(self, images):
        return self._logits(images).argmax(axis=-1)

    def _logits(self, images):
        return self.campaign.logits(self.model.logits_fn, images)

    def _attack(self, attack, title, attempted, **options):
        progress = Progress(
            f"{self.model.label}: {title}",
            total=int(attempted.sum()),
            unit="images",
            write=say,
        )
        return self.campaign.attack(
            attack,
            self.model.logits_fn,
            self.kept.arrays["image"],
            self.kept.arrays["label"],
            attempted,
            watch=lambda done, robust, work: progress.show(
                done, work=work, accuracy=robust.mean()
            ),
            **options,
        )

    def _robust(self, attack, title):
        """Return bool[n], true for correctly classified images that stay robust."""
        arrays = self.kept.arrays
        correct = arrays["logits"].argmax(axis=-1) == arrays["label"]
        return self._attack(attack, title, correct)

    def _attacked(self, attack):
        images = self.kept.arrays["image"]
        adversarial = np.zeros(images.shape, np.float32)
        everywhere = np.ones(len(images), bool)
        self._attack(attack, "attacked images", everywhere, adversarial=adversarial)
        return adversarial


def _kept(model, examples):
    settings = {"examples": examples, "step_size": model.step_size, "steps": STEPS}
    return model.kept_arrays(_KEPT, settings | {"data": model.data_name} | model.threat)


def _measurements(model, arrays, models):
    correct = arrays["logits"].argmax(axis=-1) == arrays["label"]
    return Measurements(
        images=arrays["image"],
        labels=arrays["label"],
        class_names=tuple(map(str, arrays["class"])),
        logits=arrays["logits"],
        attacked=arrays["attacked"],
        attacked_logits=arrays["attacked logits"],
        by_epsilon={0.0: correct}
        | {radius: arrays[_at_epsilon(radius)] for radius in _radii(model)},
        by_steps={steps: arrays[_after(steps)] for steps in STEP_COUNTS},
        transferred={other.label: arrays[_transfer(other)] for other in models},
    )


def _radii(model):
    """The radii of the curve in [0, 1] pixels; beyond 1 an L-inf ball does not grow."""
    most = 1.0 if model.threat["norm"] == "linf" else np.inf
    return sorted({min(part * model.threat["epsilon"], most) for part in RADII})


def _at_epsilon(radius):
    return f"epsilon/{radius!r}"


def _after(steps):
    return f"steps/{steps}"


def _transfer(model):
    return f"transfer/{model.checksum}"
