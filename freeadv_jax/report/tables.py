"""The tables of a report that come from the evaluation and the training."""

import statistics

from freeadv_jax.analysis.comparison import threat, threat_text
from freeadv_jax.report.shown import Shown, attack_names, comparable
from freeadv_jax.report.table import Cell, Table, interval_text, minutes_text, percent

NONE = Cell("–")


def results_table(shown: list[Shown]) -> Table:
    """Accuracy under each attack with its interval, and beside it the published row."""
    names = attack_names(shown)
    best = {name: _best(shown, name) for name in names}
    rows = []
    told = []
    for run in shown:
        cells = [_accuracy(run.rows.get(name), best[name]) for name in names]
        rows.append([Cell(run.label), *cells])
        published = run.published
        if published and published not in told:
            told.append(published)
            recipe = "" if published.same_recipe(run.config) else ", another recipe: "
            recipe += recipe and f"{published.model}, {published.updates:,} updates"
            heading = Cell(
                f"{run.kind}, published",
                note=published.source + recipe,
                mark="published",
            )
            rows.append(
                [heading, *(_published(published.accuracy.get(name)) for name in names)]
            )
    apart = [name for name in names if len(shown) > 1 and not best[name]]
    ball = threat_text(**threat(shown[0].config))
    caption = (
        f"Percent of test images classified right, as they are (natural) and under "
        f"attacks within {ball}; higher is better, and the lowest figure of a row says "
        "how robust the model is. After each figure its 95 % interval and the number "
        "of images."
    )
    if len(shown) > 1:
        caption += (
            " The best of a column is marked; where intervals overlap, the difference "
            "may be chance."
        )
    if apart:
        caption += (
            f" Nothing is marked for {', '.join(apart)}: not made on all models in the "
            "same way and on as many images."
        )
    return Table("results", "Results", caption, ("model", *names), rows)


def seeds_table(shown: list[Shown]) -> Table | None:
    """Mean and deviation over the seeds of a kind; None where there are none to compare."""
    groups = {run.kind: [one for one in shown if one.kind == run.kind] for run in shown}
    names = [name for name in attack_names(shown) if comparable(shown, name)]
    if not names or all(len(runs) == 1 for runs in groups.values()):
        return None
    means = {
        (kind, name): statistics.mean(run.rows[name]["accuracy"] for run in runs)
        for kind, runs in groups.items()
        for name in names
    }
    rows = []
    for kind, runs in groups.items():
        row = [Cell(f"{kind}, {len(runs)} run{'s' if len(runs) > 1 else ''}")]
        for name in names:
            row.append(_mean(runs, name, means, best=_highest(means, name, groups)))
        rows.append(row)
    caption = (
        "Mean and standard deviation, in percent, of the runs that differ in their seed "
        "alone, under the attacks made on all: a difference between methods counts if "
        "it is several deviations."
    )
    return Table("seeds", "Over the seeds", caption, ("method", *names), rows)


def cost_table(shown: list[Shown]) -> Table:
    """What the training took."""
    rows = []
    for run in shown:
        training = run.results.get("training") or {}
        seconds = training.get("seconds")
        minutes = NONE
        if seconds is not None:
            text = minutes_text(seconds, digits=3)
            minutes = Cell(text, numbers={"minutes": seconds / 60})
        rows.append(
            [
                Cell(run.label),
                minutes,
                _figure(training, "images_per_second", "{:,.0f}"),
                _figure(training, "seconds_per_update", "{:.1f}", 1000),
                _figure(training, "updates", "{:,}"),
                _figure(training, "compile_seconds", "{:.1f}"),
                Cell(_published_minutes(run.published)),
            ]
        )
    caption = (
        "What the training took, without compilation. Free-m makes m updates from each "
        "image, and all of them count among its images per second; K-PGD pays K more "
        "passes for each update. The published minutes are for the full recipe."
    )
    columns = (
        "model",
        "minutes",
        "images per second",
        "ms per update",
        "updates",
        "seconds to compile",
        "published minutes",
    )
    return Table("cost", "Cost of the training", caption, columns, rows)


def flags_table(shown: list[Shown]) -> Table:
    """The red flags of every run that was looked at."""
    rows = []
    for run in shown:
        flags = (run.results.get("red_flags") or {}).get("flags")
        if flags is None:
            rows.append([Cell(run.label), Cell("–"), Cell("not looked for"), Cell("")])
        for name, flag in (flags or {}).items():
            suspicious = flag["suspicious"]
            verdict = Cell(
                "suspicious" if suspicious else "ok",
                mark="suspicious" if suspicious else "",
            )
            rows.append([Cell(run.label), Cell(name), verdict, Cell(flag["text"])])
    caption = (
        "Signs that a model only hides its gradients from the attacks, so that its "
        "figures above say too much (Athalye et al. 2018, Carlini et al. 2019). One "
        "line marked suspicious is reason not to believe a robust accuracy."
    )
    columns = ("model", "question", "answer", "what was found")
    return Table("red flags", "Can the figures be believed?", caption, columns, rows)


def _best(shown, name):
    """The highest accuracy, None where there is nothing to choose between."""
    if len(shown) < 2 or not comparable(shown, name):
        return None
    return max(run.rows[name]["accuracy"] for run in shown)


def _accuracy(row, best):
    if row is None:
        return NONE
    low, high = row["interval"]
    numbers = {"accuracy": row["accuracy"], "low": low, "high": high}
    return Cell(
        percent(row["accuracy"]),
        note=f"{interval_text(row['interval'])}, of {row['examples']:,}",
        mark="best" if row["accuracy"] == best else "",
        numbers=numbers | {"correct": row["correct"], "examples": row["examples"]},
    )


def _published(accuracy):
    if accuracy is None:
        return NONE
    numbers = {"accuracy": accuracy / 100}
    return Cell(f"{accuracy:.1f}", mark="published", numbers=numbers)


def _highest(means, name, groups):
    return max(means[kind, name] for kind in groups) if len(groups) > 1 else None


def _mean(runs, name, means, *, best):
    mean = means[runs[0].kind, name]
    numbers = {"accuracy": mean}
    note = ""
    if len(runs) > 1:
        deviation = statistics.stdev(run.rows[name]["accuracy"] for run in runs)
        note = f"± {percent(deviation)}"
        numbers["deviation"] = deviation
    mark = "best" if mean == best else ""
    return Cell(percent(mean), note=note, mark=mark, numbers=numbers)


def _figure(training, name, form, scale=1):
    value = training.get(name)
    if value is None:
        return NONE
    return Cell(form.format(value * scale), numbers={name: value})


def _published_minutes(published):
    return f"{published.minutes:,}" if published and published.minutes else "–"
