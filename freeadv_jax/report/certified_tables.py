"""The sandwich of each model as a table: certified, open and broken images."""

from freeadv_jax.attacks.robustness import epsilon_text
from freeadv_jax.attacks.sandwich import SANDWICH
from freeadv_jax.report.reported import NATURAL, ReportedModel
from freeadv_jax.report.table import Cell, Table, percent

PARTS = ("certified", "open", "broken")


def sandwiches_of(model: ReportedModel) -> list[dict]:
    """Return the records of the model's sandwiches, by norm and rising epsilon."""
    found = [
        record for name, record in model.results.items() if name.startswith(SANDWICH)
    ]
    return sorted(found, key=lambda record: (record["norm"], record["epsilon"]))


def shares_by_epsilon(model: ReportedModel) -> dict[float, dict[str, float]]:
    """Return the shares of PARTS by epsilon, in the norm that the model was trained for.

    At epsilon 0 an image is certified if it is classified correctly. The result is empty
    without a certificate in that norm.
    """
    records = [
        record
        for record in sandwiches_of(model)
        if record["norm"] == model.model.threat["norm"]
    ]
    if not records:
        return {}
    few = min(record["examples"] for record in records)
    natural = model.row_on_first(NATURAL, few) or model.rows[NATURAL]
    right = natural["accuracy"]
    shares = {0.0: {"certified": right, "open": 0.0, "broken": 1 - right}}
    return shares | {record["epsilon"]: _shares(record) for record in records}


def certified_table(models: list[ReportedModel]) -> Table | None:
    """Return what certificates and attacks say together, None without a certificate."""
    rows = []
    for model in models:
        for record in sandwiches_of(model):
            ball = f"{record['norm']} {epsilon_text(record['epsilon'])}"
            sides = ", ".join(_short(record["certificates"]))
            against = ", ".join(_short(record["attacks"])) or "no attack"
            rows.append(
                [
                    Cell(model.label, note=f"{sides}; {against}"),
                    Cell(ball),
                    *(_cell(share) for share in _shares(record).values()),
                    Cell(f"{record['examples']:,}"),
                    Cell(
                        record["text"] if record["suspicious"] else "none",
                        mark="suspicious" if record["suspicious"] else "",
                    ),
                ]
            )
    if not rows:
        return None
    caption = (
        "Percent of test images. Certified: no attack within this norm and epsilon can "
        "succeed, by a proof. Broken: an attack succeeded, or the image is misclassified "
        "as it is. Open: neither side has decided. No image may be both certified and "
        "broken."
    )
    columns = ("model", "within", *PARTS, "images", "contradictions")
    return Table("certified", "Certified, open, broken", caption, columns, rows)


def _shares(record):
    return {part: record[part] / record["examples"] for part in PARTS}


def _cell(share):
    return Cell(percent(share), numbers={"accuracy": share})


def _short(names):
    return [name.partition("@")[0] for name in names]
