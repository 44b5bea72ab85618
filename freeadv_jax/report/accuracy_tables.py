"""Tables of accuracies: under each attack, over the seeds, under transferred attacks."""

import statistics

import numpy as np

from freeadv_jax.analysis.comparison import threat_text
from freeadv_jax.attacks.audit import audit_text
from freeadv_jax.attacks.red_flags import weaker
from freeadv_jax.report.reported import (
    ReportedModel,
    attack_names,
    compare,
    compare_on_first,
)
from freeadv_jax.report.table import NONE, Cell, Table, interval_text, percent


def results_table(models: list[ReportedModel]) -> Table:
    """Return the accuracy under each attack, with intervals and published rows.

    Where evaluations cover different numbers of images, each number has lines of its
    own: a line counts every attack on the same images.
    """
    names = attack_names(models)
    sizes = sorted(
        {row["examples"] for model in models for row in model.rows.values()},
        reverse=True,
    )
    best = {(size, name): _best(models, name, size) for size in sizes for name in names}
    rows = []
    published_before = []
    for model in models:
        for size in sizes:
            found = {name: model.row_on_first(name, size) for name in names}
            if any(found.values()):
                cells = [_accuracy(found[name], best[size, name]) for name in names]
                note = f"the first {size:,} images" if len(sizes) > 1 else ""
                rows.append([Cell(model.label, note=note), *cells])
        published = model.published
        if published and published not in published_before:
            published_before.append(published)
            rows.append(_published_line(model, names))
    caption = _results_caption(models, sizes, best)
    return Table("results", "Results", caption, ("model", *names), rows)


def seeds_table(models: list[ReportedModel]) -> Table | None:
    """Return mean and deviation over the seeds of each kind, None for single runs."""
    groups: dict[str, list[int]] = {}
    for number, model in enumerate(models):
        groups.setdefault(model.kind, []).append(number)
    found = [compare(models, name) for name in attack_names(models)]
    comparisons = [comparison for comparison in found if comparison]
    if not comparisons or all(len(numbers) == 1 for numbers in groups.values()):
        return None
    lines = {
        kind: [Cell(f"{kind}, {len(numbers)} run{'s' if len(numbers) > 1 else ''}")]
        for kind, numbers in groups.items()
    }
    for comparison in comparisons:
        accuracies = {
            kind: [comparison.rows[number]["accuracy"] for number in numbers]
            for kind, numbers in groups.items()
        }
        means = {kind: statistics.mean(values) for kind, values in accuracies.items()}
        highest = max(means.values()) if len(groups) > 1 else None
        for kind, values in accuracies.items():
            lines[kind].append(_mean(values, best=means[kind] == highest))
    caption = (
        "Mean and standard deviation, in percent, over runs that differ only in their "
        "seed. The table holds the attacks that were run on every model. A difference "
        "between methods counts if it is several deviations."
    )
    columns = ("method", *(comparison.attack for comparison in comparisons))
    return Table("seeds", "Over the seeds", caption, columns, list(lines.values()))


def transfer_table(models: list[ReportedModel]) -> Table | None:
    """Return each model's accuracy under attacks made on each, None for one model."""
    if len(models) < 2 or not all(model.measured for model in models):
        return None
    rows, slightly_lower, flagged = [], [], []
    for model in models:
        own = model.measured.robust_to_attack_on(model.label)
        row = [Cell(model.label)]
        for other in models:
            robust = model.measured.robust_to_attack_on(other.label)
            mark = "own" if other is model else ""
            if other is not model and robust.mean() < own.mean():
                pair = f"attacks made on {other.label} break {model.label}"
                if weaker(own, robust):
                    mark = "suspicious"
                    flagged.append(pair)
                else:
                    slightly_lower.append(pair)
            row.append(share_cell(robust, mark=mark, shade=True))
        rows.append(row)
    examples = len(models[0].measured.labels)
    caption = (
        f"Percent of {examples:,} images that the model of the row classifies correctly "
        "after PGD attacked them on the model of the column (last iterate). In the "
        "framed white-box entry both are the same model. It must be the lowest of its "
        "row: an attacker who knows the model must not do worse than one who does not. "
    )
    if flagged:
        caption += (
            f"RED FLAG: {'; '.join(flagged)} more often than attacks on itself do. Its "
            "gradients mislead the attack, and its robust accuracy is too high."
        )
    elif slightly_lower:
        caption += (
            f"It is, up to chance ({'; '.join(slightly_lower)} slightly more often)."
        )
    else:
        caption += "It is, in every row."
    columns = ("attacked model", *(f"made on {model.label}" for model in models))
    return Table("transfer", "Transferred attacks", caption, columns, rows)


def share_cell(robust: np.ndarray, *, mark: str = "", shade: bool = False) -> Cell:
    """Return the percent of true entries of bool[n] as a cell."""
    if not len(robust):
        return NONE
    share = float(np.mean(robust))
    numbers = {
        "accuracy": share,
        "correct": int(np.sum(robust)),
        "examples": len(robust),
    }
    return Cell(
        percent(share), mark=mark, numbers=numbers, share=share if shade else None
    )


def _results_caption(models, sizes, best):
    caption = (
        "Percent of test images classified correctly without an attack (natural) and "
        f"under attacks within {threat_text(**models[0].model.threat)}. Higher is "
        "better, and the lowest figure of a row says how robust the model is. Below "
        "each figure are its 95 % interval and the number of images."
    )
    if len(sizes) > 1:
        caption += (
            " The attacks were run on different numbers of images. Compare figures on "
            "the same images only: each line counts all of its attacks on the first "
            "images of the test set, as many as it names."
        )
    if len(models) == 1:
        return caption
    caption += (
        " The best figure of a column is marked; where intervals overlap, the difference "
        "may be chance."
    )
    names = dict.fromkeys(name for _, name in best)
    unmarked = [
        name for name in names if all(best[size, name] is None for size in sizes)
    ]
    if unmarked:
        caption += (
            f" Nothing is marked for {', '.join(unmarked)}: not run on all models with "
            "the same settings and images."
        )
    return caption


def _best(models, name, size):
    """The highest accuracy, None unless several models can be compared."""
    if len(models) < 2:
        return None
    comparison = compare_on_first(models, name, size)
    return max(row["accuracy"] for row in comparison.rows) if comparison else None


def _accuracy(row, best):
    if row is None:
        return NONE
    low, high = row["interval"]
    numbers = {"accuracy": row["accuracy"], "low": low, "high": high}
    note = f"{interval_text(row['interval'])}, of {row['examples']:,}"
    if "audit" in row:
        note = f"{note}; {audit_text(row['audit'])}"
        numbers["at_least"] = row["audit"]["accuracy_at_least"]
    return Cell(
        percent(row["accuracy"]),
        note=note,
        mark="best" if row["accuracy"] == best else "",
        numbers=numbers | {"correct": row["correct"], "examples": row["examples"]},
    )


def _published_line(model, names):
    published = model.published
    note = published.source
    if not published.same_recipe(model.config):
        note += f", another recipe: {published.model}, {published.updates:,} updates"
    heading = Cell(f"{model.kind}, published", note=note, mark="published")
    return [heading, *(_published(published.accuracy.get(name)) for name in names)]


def _published(accuracy):
    if accuracy is None:
        return NONE
    numbers = {"accuracy": accuracy / 100}
    return Cell(f"{accuracy:.1f}", mark="published", numbers=numbers)


def _mean(accuracies, *, best):
    mean = statistics.mean(accuracies)
    numbers = {"accuracy": mean}
    note = ""
    if len(accuracies) > 1:
        deviation = statistics.stdev(accuracies)
        note = f"± {percent(deviation)}"
        numbers["deviation"] = deviation
    mark = "best" if best else ""
    return Cell(percent(mean), note=note, mark=mark, numbers=numbers)
