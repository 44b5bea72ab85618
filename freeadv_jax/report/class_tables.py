"""Tables about classes: accuracy in each class, and the most frequent confusions."""

import numpy as np

from freeadv_jax.attacks.robustness import WORST_CASE
from freeadv_jax.report.accuracy_tables import share_cell
from freeadv_jax.report.reported import (
    Comparison,
    ReportedModel,
    first_of_each_kind,
    strongest_attack,
)
from freeadv_jax.report.table import NONE, Cell, Table

_PAIRS = 5


def robust_images(
    model: ReportedModel, comparison: Comparison | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return labels int[n], natural bool[n] and robust bool[n], None if unknown.

    `natural` and `robust` say which images are classified correctly without an attack
    and under the attack of the comparison, on its images. Without recorded outcomes the
    report's own PGD takes the place of the attack.
    """
    if comparison and "label" in model.outcomes:
        natural = model.robust("natural")
        robust = model.robust(comparison.attack)
        if natural is not None and robust is not None:
            examples = min(comparison.examples, len(natural), len(robust))
            labels = model.outcomes["label"][:examples]
            return labels, natural[:examples], robust[:examples]
    if model.measured:
        found = model.measured
        trained_for = model.model.threat["epsilon"]
        epsilon = min(found.by_epsilon, key=lambda radius: abs(radius - trained_for))
        return found.labels, found.correct, found.by_epsilon[epsilon]
    return None


def class_names(model: ReportedModel) -> tuple[str, ...]:
    """Return the names of the data set's classes, or numbers where they are unknown."""
    if model.measured:
        return model.measured.class_names
    return tuple(map(str, range(model.model.num_classes)))


def classes_table(models: list[ReportedModel]) -> Table | None:
    """Return natural and robust accuracy in each class, for one model of each kind."""
    comparison = strongest_attack(models)
    found = [
        (model, images)
        for model in first_of_each_kind(models)
        if (images := robust_images(model, comparison))
    ]
    if not found:
        return None
    columns = ["class"]
    for model, _ in found:
        columns += [f"{model.label}, natural", f"{model.label}, robust"]
    rows = []
    for number, name in enumerate(class_names(found[0][0])):
        row = [Cell(name)]
        for _, (labels, *outcomes) in found:
            row += [share_cell(outcome[labels == number]) for outcome in outcomes]
        rows.append(row)
    counts = dict.fromkeys(len(labels) for _, (labels, *_) in found)
    caption = (
        f"Percent of the images of each class classified correctly, natural and under "
        f"{_attack_text(comparison)}; {_counts_text(counts)} images in all. Classes that "
        "look alike lose most."
    )
    return Table("classes", "Class by class", caption, tuple(columns), rows)


def confused_table(models: list[ReportedModel]) -> Table | None:
    """Return the classes that each model most often mistakes for another."""
    rows = []
    lengths = [len(model.outcomes.get("prediction", ())) for model in models]
    # Every model is counted on the images that all models share.
    examples = min((length for length in lengths if length), default=0)
    for model in first_of_each_kind(models):
        names, measured = class_names(model), model.measured
        predictions = {}
        if "prediction" in model.outcomes:
            predictions["natural"] = (
                model.outcomes["label"][:examples],
                model.outcomes["prediction"][:examples],
            )
        elif measured:
            predictions["natural"] = measured.labels, measured.logits.argmax(axis=-1)
        if measured:
            predicted = measured.attacked_logits.argmax(axis=-1)
            predictions["attacked"] = measured.labels, predicted
        for which, (labels, predicted) in predictions.items():
            heading = Cell(f"{model.label}, {which}", note=f"{len(labels):,} images")
            rows.append([heading, *_pairs(names, labels, predicted)])
    if not rows:
        return None
    caption = (
        "The classes most often mistaken for another (cat → dog: a cat classified as a "
        "dog), and how many images of the class, natural and under PGD. A robust model "
        "confuses what people would confuse; a natural model can be driven to any class."
    )
    ranks = ("most often", "2nd", "3rd", *(f"{n}th" for n in range(4, _PAIRS + 1)))
    columns = ("model and images", *ranks)
    return Table("confused", "Most confused", caption, columns, rows)


def _pairs(names, labels, predicted):
    """Cells of the most frequent mistakes, each with its count."""
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, (labels, predicted), 1)
    of_class = counts.sum(axis=1)
    np.fill_diagonal(counts, 0)
    cells = []
    for index in np.argsort(-counts, axis=None, kind="stable")[:_PAIRS]:
        true, mistaken = np.unravel_index(index, counts.shape)
        count = int(counts[true, mistaken])
        if not count:
            break
        cells.append(
            Cell(
                f"{names[true]} → {names[mistaken]}".replace("_", " "),
                note=f"{count} of {of_class[true]}",
                numbers={"count": count, "examples": int(of_class[true])},
            )
        )
    return cells + [NONE] * (_PAIRS - len(cells))


def _counts_text(counts):
    return " or ".join(f"{count:,}" for count in counts)


def _attack_text(comparison):
    if comparison is None:
        return "the report's own PGD"
    if comparison.attack == WORST_CASE:
        return "all attacks together"
    return comparison.attack
