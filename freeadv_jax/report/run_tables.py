"""Tables about the training and the evaluation: cost, red flags, settings, versions."""

from freeadv_jax.report.certified_tables import sandwiches_of
from freeadv_jax.report.reported import ReportedModel
from freeadv_jax.report.table import NONE, Cell, Table, minutes_text


def cost_table(models: list[ReportedModel]) -> Table:
    """Return the time and the updates of each training."""
    rows = []
    for model in models:
        training = model.results.get("training") or {}
        seconds = training.get("seconds")
        minutes = NONE
        if seconds is not None:
            text = minutes_text(seconds, digits=3)
            minutes = Cell(text, numbers={"minutes": seconds / 60})
        published = model.published
        rows.append(
            [
                Cell(model.label),
                minutes,
                _figure(training, "images_per_second", "{:,.0f}"),
                _figure(training, "seconds_per_update", "{:.1f}", 1000),
                _figure(training, "updates", "{:,}"),
                _figure(training, "compile_seconds", "{:.1f}"),
                Cell(
                    f"{published.minutes:,}" if published and published.minutes else "–"
                ),
            ]
        )
    caption = (
        "The cost of the training, without compilation. Free-m makes m updates from each "
        "image and counts all m in its images per second; K-PGD pays for K more "
        "passes in each update. The published minutes belong to the full recipe."
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


def flags_table(models: list[ReportedModel]) -> Table:
    """Return the red flags of every model, or that nobody checked it."""
    rows = []
    for model in models:
        flags = (model.results.get("red_flags") or {}).get("flags")
        if flags is None:
            rows.append([Cell(model.label), NONE, Cell("not checked"), Cell("")])
        for name, flag in (flags or {}).items():
            suspicious = flag["suspicious"]
            answer = Cell(
                "suspicious" if suspicious else "ok",
                mark="suspicious" if suspicious else "",
            )
            rows.append([Cell(model.label), Cell(name), answer, Cell(flag["text"])])
        for record in sandwiches_of(model):
            if record["suspicious"]:
                answer = Cell("suspicious", mark="suspicious")
                cells = Cell("certified and broken"), answer, Cell(record["text"])
                rows.append([Cell(model.label), *cells])
    caption = (
        "Signs that a model only hides its gradients from the attacks, which makes its "
        "robust accuracy look too high (Athalye et al. 2018, Carlini et al. 2019). One "
        "line marked suspicious is a reason to doubt the robust accuracy."
    )
    columns = ("model", "question", "answer", "observation")
    return Table("red flags", "Can the figures be believed?", caption, columns, rows)


def settings_table(models: list[ReportedModel], *, differing: bool) -> Table | None:
    """Return the fields of the configurations, all fields or those that differ."""
    settings = [_flat(_description(model)) for model in models]
    fields = dict.fromkeys(field for one in settings for field in one)
    rows = []
    for field in fields:
        values = [str(one.get(field, "–")) for one in settings]
        if not differing or len(set(values)) > 1:
            rows.append([Cell(field), *map(Cell, values)])
    if differing:
        name, title = "differences", "Differences between the runs"
        caption = "The fields of the configurations with different values."
    else:
        name, title = "settings", "All settings"
        caption = (
            "The configurations; epsilons and step sizes are in [0, 1] pixels. "
            "freeadv_jax/config.py explains the fields."
        )
    columns = ("field", *(model.label for model in models))
    return Table(name, title, caption, columns, rows) if rows else None


def environment_table(models: list[ReportedModel]) -> Table:
    """Return the versions, devices and commit of each model's last evaluation."""
    environments = [_flat(model.results.get("environment", {})) for model in models]
    names = dict.fromkeys(name for one in environments for name in one)
    rows = [
        [Cell("folder"), *(Cell(model.model.folder.name) for model in models)],
        *(
            [Cell(name), *(Cell(str(one.get(name, "–"))) for one in environments)]
            for name in names
        ),
    ]
    caption = "Versions, devices and commit of the last evaluation of each model."
    columns = ("", *(model.label for model in models))
    return Table("environment", "Environment", caption, columns, rows)


def _description(model):
    """The configuration of a run, or the description of an exported model."""
    if model.config:
        return model.config.to_dict()
    return model.results.get("model", {})


def _figure(training, name, form, scale=1):
    value = training.get(name)
    if value is None:
        return NONE
    return Cell(form.format(value * scale), numbers={name: value})


def _flat(tree, prefix=""):
    """{'a.b': value} from nested dicts."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
