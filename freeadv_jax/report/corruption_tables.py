"""The table of errors under common corruptions."""

import functools

from freeadv_jax.corrupted.accuracy import errors_by_severity
from freeadv_jax.corrupted.images import KINDS
from freeadv_jax.report.reported import ReportedModel
from freeadv_jax.report.table import NONE, Cell, Table, interval_text, percent
from freeadv_jax.runs.results import CORRUPTIONS


def corruptions_table(models: list[ReportedModel]) -> Table | None:
    """Return the errors by kind and severity, None where no model has any."""
    records = [model.results.get(CORRUPTIONS) for model in models]
    found = [record for record in records if record]
    if not found:
        return None
    made = [(record["images"], record["examples"]) for record in found]
    alike = len(found) == len(models) > 1 and all(one == made[0] for one in made)
    cells = {"none": _natural, "mean of all": _mean}
    cells |= {kind: functools.partial(_kind, kind=kind) for kind in KINDS}
    rows = [
        _row(name.replace("_", " "), records, cell_of, best=alike)
        for name, cell_of in cells.items()
    ]
    counts = " or ".join(f"{count:,}" for count in dict.fromkeys(n for _, n in made))
    caption = (
        f"Percent of {counts} test images classified wrongly after noise, blur, weather "
        "or compression (Hendrycks & Dietterich 2019), which no adversary chooses: the "
        "mean over five severities, and below it each severity. Lower is better."
    )
    if len(models) > 1 and not alike:
        caption += (
            " Nothing is marked as best: the models were not evaluated on the same "
            "corruptions of the same images."
        )
    columns = ("corruption", *(model.label for model in models))
    return Table("corruptions", "Common corruptions", caption, columns, rows)


def _row(name, records, cell_of, *, best):
    """The cells of all models; the lowest error is marked where `best` has a meaning."""
    cells = [cell_of(record) if record else NONE for record in records]
    errors = [cell.numbers.get("error") for cell in cells]
    if best and None not in errors:
        lowest = min(errors)
        cells = [
            cell if error > lowest else Cell(cell.text, cell.note, "best", cell.numbers)
            for cell, error in zip(cells, errors, strict=True)
        ]
    return [Cell(name), *cells]


def _natural(record):
    row = record["natural"]
    if row is None:
        return NONE
    low, high = row["interval"]
    return _cell(1 - row["accuracy"], interval_text([1 - high, 1 - low]))


def _mean(record):
    return _cell(record["mean_error"], interval_text(record["interval"]))


def _kind(record, kind):
    if kind not in record["kinds"]:
        return NONE
    errors = errors_by_severity(record, kind)
    mean = record["kinds"][kind]["mean_error"]
    severities = {f"severity {n}": error for n, error in enumerate(errors, start=1)}
    return _cell(mean, " ".join(map(percent, errors)), **severities)


def _cell(error, note, **numbers):
    return Cell(percent(error), note=note, numbers={"error": error} | numbers)
