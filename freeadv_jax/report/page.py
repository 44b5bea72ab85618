"""A report as one self-contained HTML page, and its tables as Markdown or CSV."""

import dataclasses

import freeadv_jax
from freeadv_jax.analysis.comparison import threat_text
from freeadv_jax.analysis.plotting import missing_extra
from freeadv_jax.report import (
    accuracy_tables,
    certified_tables,
    class_tables,
    corruption_tables,
    run_tables,
)
from freeadv_jax.report.figures import (
    class_bars,
    robustness_curves,
    sandwich_plots,
    training_curves,
)
from freeadv_jax.report.pictures import picture_grids
from freeadv_jax.report.reported import ReportedModel
from freeadv_jax.report.table import Table, as_csv, as_markdown
from freeadv_jax.report.verdict import verdict

FORMATS = ("html", "markdown", "csv")


@dataclasses.dataclass(frozen=True)
class Tables:
    """All tables of a report; None where nothing was measured or can be compared."""

    results: Table
    seeds: Table | None
    certified: Table | None
    transfer: Table | None
    corruptions: Table | None
    classes: Table | None
    confused: Table | None
    cost: Table
    flags: Table
    differences: Table | None
    environment: Table
    settings: Table


def make_tables(models: list[ReportedModel]) -> Tables:
    """Return the tables, the same for every format."""
    return Tables(
        results=accuracy_tables.results_table(models),
        seeds=accuracy_tables.seeds_table(models),
        certified=certified_tables.certified_table(models),
        transfer=accuracy_tables.transfer_table(models),
        corruptions=corruption_tables.corruptions_table(models),
        classes=class_tables.classes_table(models),
        confused=class_tables.confused_table(models),
        cost=run_tables.cost_table(models),
        flags=run_tables.flags_table(models),
        differences=run_tables.settings_table(models, differing=True),
        environment=run_tables.environment_table(models),
        settings=run_tables.settings_table(models, differing=False),
    )


def render(models: list[ReportedModel], form: str) -> str:
    """Return the report in one of FORMATS."""
    made = make_tables(models)
    tables = [
        table
        for field in dataclasses.fields(made)
        if (table := getattr(made, field.name))
    ]
    if form == "csv":
        return as_csv(tables)
    if form == "markdown":
        headline, *sentences = verdict(models)
        lines = [f"# {title(models)}", "", f"**{headline}** {' '.join(sentences)}", ""]
        return "\n".join([*lines, *map(as_markdown, tables)])
    return _html(models, made)


def title(models: list[ReportedModel]) -> str:
    """Return the kinds of the models and their data set, where a run names it."""
    kinds = ", ".join(dict.fromkeys(model.kind for model in models))
    names = [model.config.data.name for model in models if model.config]
    return f"{kinds} on {names[0]}" if names else kinds


def _html(models, made):
    headline, *sentences = verdict(models)
    return rendered(
        "page.html.jinja",
        title=title(models),
        threat=threat_text(**models[0].model.threat),
        headline=headline,
        sentences=sentences,
        tables=made,
        training=training_curves(models),
        robustness=robustness_curves(models),
        sandwiches=sandwich_plots(models),
        classes=class_bars(models),
        pictures=picture_grids(models),
        measured=all(model.measured for model in models),
        measurable=any(model.config for model in models),
        folders=[str(model.model.results_folder) for model in models],
    )


def rendered(template: str, *, package: str = "freeadv_jax.report", **values) -> str:
    """Return a page: a `template` of `package` with these values and the version.

    A template may import the plots, tables and style of "parts.html.jinja". Raise
    InputError where jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as fault:
        raise missing_extra("pages", "jinja2") from fault
    packages = dict.fromkeys((package, "freeadv_jax.report"))
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader(name, ".") for name in packages]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template)
    return page.render(version=freeadv_jax.__version__, **values)
