"""One self-contained HTML page, and the same tables as Markdown and CSV."""

import dataclasses

import freeadv_jax
from freeadv_jax.analysis.comparison import threat, threat_text
from freeadv_jax.analysis.plotting import missing_extra
from freeadv_jax.report import detail_tables, tables
from freeadv_jax.report.figures import class_bars, robustness_curves, training_curves
from freeadv_jax.report.pictures import picture_grids
from freeadv_jax.report.shown import Shown
from freeadv_jax.report.table import Table, as_csv, as_markdown
from freeadv_jax.report.verdict import verdict

FORMATS = ("html", "markdown", "csv")


@dataclasses.dataclass(frozen=True)
class Tables:
    """All tables of a report, None where nothing was measured or nothing to compare."""

    results: Table
    seeds: Table | None
    transfer: Table | None
    classes: Table | None
    confused: Table | None
    cost: Table
    flags: Table
    differences: Table | None
    environment: Table
    settings: Table


def make_tables(shown: list[Shown]) -> Tables:
    """The tables, the same for every format."""
    return Tables(
        results=tables.results_table(shown),
        seeds=tables.seeds_table(shown),
        transfer=detail_tables.transfer_table(shown),
        classes=detail_tables.classes_table(shown),
        confused=detail_tables.confused_table(shown),
        cost=tables.cost_table(shown),
        flags=tables.flags_table(shown),
        differences=detail_tables.settings_table(shown, differing=True),
        environment=detail_tables.environment_table(shown),
        settings=detail_tables.settings_table(shown, differing=False),
    )


def render(shown: list[Shown], form: str) -> str:
    """The report in one of FORMATS."""
    made = make_tables(shown)
    listed = [
        table
        for field in dataclasses.fields(made)
        if (table := getattr(made, field.name))
    ]
    if form == "csv":
        return as_csv(listed)
    if form == "markdown":
        headline, *sentences = verdict(shown)
        lines = [f"# {title(shown)}", "", f"**{headline}** {' '.join(sentences)}", ""]
        return "\n".join([*lines, *map(as_markdown, listed)])
    return _html(shown, made)


def title(shown: list[Shown]) -> str:
    """What is compared, on what."""
    kinds = ", ".join(dict.fromkeys(run.kind for run in shown))
    return f"{kinds} on {shown[0].config.data.name}"


def _html(shown, made):
    try:
        import jinja2
    except ImportError as fault:
        raise missing_extra("pages", "jinja2") from fault
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("freeadv_jax.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    headline, *sentences = verdict(shown)
    page = environment.get_template("page.html.jinja")
    return page.render(
        title=title(shown),
        threat=threat_text(**threat(shown[0].config)),
        headline=headline,
        sentences=sentences,
        tables=made,
        training=training_curves(shown),
        robustness=robustness_curves(shown),
        classes=class_bars(shown),
        pictures=picture_grids(shown),
        measured=all(run.measured for run in shown),
        folders=[str(run.subject.run.workdir) for run in shown],
        version=freeadv_jax.__version__,
    )
