"""The page of a gallery: its table, a plot of how the defences fall, and pictures."""

import dataclasses

import numpy as np

from freeadv_jax.analysis.plotting import INK, SERIES, as_svg, new_figure
from freeadv_jax.attacks.robustness import epsilon_text
from freeadv_jax.gallery.defence import Defence
from freeadv_jax.gallery.defences import DEFENCES
from freeadv_jax.gallery.row import Row
from freeadv_jax.report.figures import Plot
from freeadv_jax.report.page import rendered
from freeadv_jax.report.pictures import Picture, data_address
from freeadv_jax.report.table import NONE, Cell, Table, percent

# A defence has fallen where an attack leaves less than this share of its naive accuracy.
_FALLEN = 0.5


@dataclasses.dataclass(frozen=True)
class Exhibit:
    """A defence as the page shows it: facts, red flags and rows of pictures."""

    defence: Defence
    threat: str
    attacks: str
    flags: list[tuple[str, str]]
    advice: list[str]
    pictures: dict[str, list[Picture]]


def render(rows: list[Row]) -> str:
    """Return the page of these rows, which are of the defences of DEFENCES."""
    names = {"digits": "scikit-learn's digits", "cifar10": "CIFAR-10"}
    data = " and ".join(
        names[name] for name in dict.fromkeys(row.record["data"] for row in rows)
    )
    return rendered(
        "page.html.jinja",
        package="freeadv_jax.gallery",
        title=f"Defences and what breaks them, on {data}",
        headline=headline(rows),
        sentences=sentences(rows),
        table=results_table(rows),
        plots=[_plot_of_falls(rows)],
        exhibits=[_exhibit(row) for row in rows],
    )


def headline(rows: list[Row]) -> str:
    """Return how many of the masking defences are flagged and fall."""
    masking = [row.record for row in rows if row.record["masks"]]
    if not masking:
        return "No defence that masks its gradients is among these"
    flagged = sum(bool(record["flags"]) for record in masking)
    return (
        f"{flagged} of {len(masking)} defences that mask their gradients raise red flags; "
        f"adaptive attacks leave them {_range(masking, 'adaptive')}"
    )


def sentences(rows: list[Row]) -> list[str]:
    """Return what the honest defences keep, and how to read the columns."""
    records = [row.record for row in rows]
    honest = [record for record in records if not record["masks"]]
    said = []
    if honest:
        alarms = [record["defence"] for record in honest if record["flags"]]
        said.append(
            f"Among {len(honest)} defences that mask nothing, "
            + (f"{', '.join(alarms)} raised a flag" if alarms else "none raised a flag")
            + f"; adaptive attacks leave them {_range(honest, 'adaptive')}."
        )
    said.append(
        "Naive is what an author sees who attacks with PGD-20 as it is usually written. "
        "Adaptive is what is left after the attacks that were made for the defence."
    )
    said.append(
        "The published figures are those of the papers' networks, which are larger."
    )
    return said


def _range(records, name):
    low, high = (choose(record[name] for record in records) for choose in (min, max))
    return f"{percent(low)} to {percent(high)} percent"


def results_table(rows: list[Row]) -> Table:
    """Return the table: natural, naive, flags, adaptive and published."""
    lines = []
    for row in rows:
        record, defence = row.record, DEFENCES[row.record["defence"]]
        flags = record["flags"]
        lost = record["naive"] - record["adaptive"]
        fell = lost > max(_FALLEN * record["naive"], 0.05)
        lines.append(
            [
                Cell(defence.title, defence.paper),
                Cell(defence.kind),
                _share(record, "natural"),
                _share(record, "naive"),
                Cell(", ".join(flags), mark="suspicious") if flags else Cell("none"),
                _share(
                    record,
                    "adaptive",
                    mark="suspicious" if fell else "",
                    note=_certificate(record),
                ),
                NONE
                if defence.published is None
                else Cell(f"{100 * defence.published:g}", mark="published"),
            ]
        )
    few = rows[0].record["examples"]
    caption = (
        f"Accuracy in percent on {few} test images. Red flags are raised on the first "
        f"{rows[0].record['flagged']} of them. A red figure is less than half of what the "
        "naive attack left."
    )
    columns = (
        "defence",
        "masks by",
        "natural",
        "naive PGD-20",
        "red flags",
        "adaptive",
        "published",
    )
    return Table("results", "How each defence falls", caption, columns, lines)


def _share(record, name, mark="", note=""):
    return Cell(percent(record[name]), note, mark=mark, numbers={name: record[name]})


def _certificate(record):
    return f"certified {percent(record['certified'])}" if "certified" in record else ""


def _plot_of_falls(rows):
    """A line for each defence, from its naive to its adaptive accuracy."""
    titles = [DEFENCES[row.record["defence"]].title for row in rows]
    places = -np.arange(len(rows))
    figure = new_figure(5.4, 1.0 + 0.26 * len(rows))
    axes = figure.subplots()
    values = {
        name: 100 * np.array([row.record[name] for row in rows])
        for name in ("naive", "adaptive", "natural")
    }
    axes.hlines(places, values["adaptive"], values["naive"], color=INK, linewidth=0.8)
    styles = {
        "natural": {"marker": "|", "color": SERIES[5]},
        "naive": {"marker": "o", "color": SERIES[0]},
        "adaptive": {"marker": "D", "color": SERIES[1]},
    }
    for name, style in styles.items():
        label = {"naive": "naive PGD-20"}.get(name, name)
        axes.plot(values[name], places, linestyle="none", label=label, **style)
    axes.set_yticks(places, titles)
    axes.set(xlabel="percent correct", xlim=(-2, 102))
    axes.legend(fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.4, 1.0))
    said = ", ".join(
        f"{title} {naive:.0f} to {adaptive:.0f}"
        for title, naive, adaptive in zip(titles, values["naive"], values["adaptive"])
    )
    title = "From the naive to the adaptive attack"
    return Plot(
        title,
        as_svg(figure, "falls", f"{title}, in percent. {said}."),
        "A long line is a defence that only looked robust: the plain attack left it the "
        "circle, the attack made for it the diamond.",
    )


def _exhibit(row):
    record = row.record
    defence = DEFENCES[record["defence"]]
    attacks = ", ".join(
        f"{name} {percent(share)}"
        for name, share in record["adaptive_by_attack"].items()
    )
    answers = record["answers"]
    return Exhibit(
        defence=defence,
        threat=f"{record['norm']} epsilon {epsilon_text(record['epsilon'])}",
        attacks=attacks,
        flags=[(name, answer["text"]) for name, answer in answers.items()],
        advice=list(dict.fromkeys(answer["advice"] for answer in answers.values())),
        pictures=_pictures(row),
    )


def _pictures(row):
    """Rows of pictures: images, what the network sees, attacked, and what it sees then."""
    found = row.pictures
    names = [str(name) for name in found["class_names"]]

    def name(label):
        return "rejected" if label < 0 else names[label].replace("_", " ")

    def pictures(images, description, classes=None):
        return [
            Picture(
                data_address(image),
                f"{description} of class {name(label)}"
                + ("" if classes is None else f"; the network says {name(said)}"),
                "" if classes is None else name(said),
                bool(classes is None or said in (label, -1)),
            )
            for image, label, said in zip(
                images, found["labels"], found["labels"] if classes is None else classes
            )
        ]

    shown, after = found["shown"], found["attacked_shown"]
    rows = {"Image": pictures(found["images"], "Test image", found["classes"])}
    if len(shown):
        rows["What the network sees of it"] = pictures(shown, "The defended image")
    rows["Attacked"] = pictures(
        found["attacked"], "The attacked image", found["attacked_classes"]
    )
    if len(after):
        rows["What the network sees of the attacked image"] = pictures(
            after, "The attacked image, defended,"
        )
    return rows
