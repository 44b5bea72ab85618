"""The tables of a report on single classes, models against one another, and settings."""

import numpy as np

from freeadv_jax.attacks.red_flags import weaker
from freeadv_jax.report.shown import Shown, first_of_each_kind, hardest_attack
from freeadv_jax.report.table import Cell, Table, percent
from freeadv_jax.runs.results import WORST_CASE

_PAIRS = 5


def standing_by_class(run: Shown, attack: str | None):
    """(labels int[n], natural bool[n], robust bool[n]); None where nothing says it.

    Robust under `attack` of the evaluation, or else under the report's own PGD.
    """
    arrays = run.outcomes
    row = run.rows.get(attack, {"attack": {}})
    names = ["natural", *row["attack"].get("attacks", [attack])]
    if attack and all(name in arrays for name in names):
        # Some may have been made on more images than others.
        examples = min(len(arrays[name]) for name in names)
        natural, *attacked = (arrays[name][:examples] for name in names)
        labels = arrays["label"][:examples]
        return labels, natural, np.logical_and.reduce(attacked)
    if run.measured:
        found = run.measured
        epsilon = min(
            found.by_epsilon, key=lambda radius: abs(radius - run.config.attack.epsilon)
        )
        return found.labels, found.right, found.by_epsilon[epsilon]
    return None


def class_names(run: Shown) -> tuple[str, ...]:
    """Those of the data set, or numbers where nothing was measured."""
    if run.measured:
        return run.measured.class_names
    return tuple(map(str, range(run.subject.run.num_classes)))


def classes_table(shown: list[Shown]) -> Table | None:
    """Natural and robust accuracy of each class, for one run of each kind."""
    attack = hardest_attack(shown)
    runs = [
        (run, standing)
        for run in first_of_each_kind(shown)
        if (standing := standing_by_class(run, attack))
    ]
    if not runs:
        return None
    columns = ["class"]
    for run, _ in runs:
        columns += [f"{run.label}, natural", f"{run.label}, robust"]
    rows = []
    for number, name in enumerate(class_names(runs[0][0])):
        row = [Cell(name)]
        for _, (labels, *standings) in runs:
            row += [_share(standing[labels == number]) for standing in standings]
        rows.append(row)
    caption = (
        "Percent of the images of each class classified right, as they are and under "
        f"{_attack_text(attack)}. Classes that look alike lose most."
    )
    return Table("classes", "Class by class", caption, tuple(columns), rows)


def confused_table(shown: list[Shown]) -> Table | None:
    """Which class is most often taken for which."""
    rows = []
    for run in first_of_each_kind(shown):
        names = class_names(run)
        if "prediction" in run.outcomes:
            predicted = run.outcomes["prediction"]
            labels = run.outcomes["label"][: len(predicted)]
            rows.append(_pairs(f"{run.label}, as they are", names, labels, predicted))
        elif run.measured:
            predicted = run.measured.logits.argmax(axis=-1)
            row = _pairs(
                f"{run.label}, as they are", names, run.measured.labels, predicted
            )
            rows.append(row)
        if run.measured:
            predicted = run.measured.attacked_logits.argmax(axis=-1)
            row = _pairs(
                f"{run.label}, attacked", names, run.measured.labels, predicted
            )
            rows.append(row)
    if not rows:
        return None
    caption = (
        "The classes most often taken for another (cat → dog: a cat taken for a dog), and "
        "how many of how many, as they are and under PGD. A robust model confuses what people "
        "would; a natural one can be driven anywhere."
    )
    columns = ("model and images", *map(_rank, range(1, _PAIRS + 1)))
    return Table("confused", "Most confused", caption, columns, rows)


def transfer_table(shown: list[Shown]) -> Table | None:
    """Accuracy of each model under attacks made on each; None for a single run."""
    if len(shown) < 2 or not all(run.measured for run in shown):
        return None
    rows, lower, flagged = [], [], []
    for run in shown:
        own = run.measured.standing_under(run.label)
        row = [Cell(run.label)]
        for other in shown:
            standing = run.measured.standing_under(other.label)
            mark = "own" if other is run else ""
            if other is not run and standing.mean() < own.mean():
                pair = f"attacks made on {other.label} break {run.label}"
                if weaker(own, standing):
                    mark = "suspicious"
                    flagged.append(pair)
                else:
                    lower.append(pair)
            row.append(_share(standing, mark=mark, shade=True))
        rows.append(row)
    examples = len(shown[0].measured.labels)
    caption = (
        "Percent of images that the model of the row classifies right when they were "
        f"attacked (PGD, the last of its steps, {examples:,} images) on the model of "
        "the column. The white-box entry, where both are the same, is framed and must "
        "be the lowest of its row: who knows the model must not do worse than who does "
        "not. "
    )
    if flagged:
        caption += (
            f"RED FLAG: {'; '.join(flagged)} more often than attacks on itself do: its "
            "gradients mislead the attack, and its robust accuracy says too much."
        )
    elif lower:
        caption += f"It is, up to chance ({'; '.join(lower)} slightly more often)."
    else:
        caption += "It is, in every row."
    columns = ("attacked model", *(f"made on {run.label}" for run in shown))
    title = "Attacks carried over from other models"
    return Table("transfer", title, caption, columns, rows)


def settings_table(shown: list[Shown], *, differing: bool) -> Table | None:
    """Fields of the configurations, all or those that differ."""
    settings = [_flat(run.config.to_dict()) for run in shown]
    fields = dict.fromkeys(field for one in settings for field in one)
    rows = []
    for field in fields:
        values = [str(one.get(field, "–")) for one in settings]
        if not differing or len(set(values)) > 1:
            rows.append([Cell(field), *map(Cell, values)])
    if differing:
        name, title = "differences", "What differs between the runs"
        caption = "The fields of the configurations that are not the same."
    else:
        name, title = "settings", "All settings"
        caption = (
            "The configurations; epsilons and step sizes are in [0, 1] pixels. The "
            "fields are explained in freeadv_jax/config.py."
        )
    columns = ("field", *(run.label for run in shown))
    return Table(name, title, caption, columns, rows) if rows else None


def environment_table(shown: list[Shown]) -> Table:
    """Where each run was evaluated: versions, devices, commit."""
    environments = [_flat(run.results.get("environment", {})) for run in shown]
    names = dict.fromkeys(name for one in environments for name in one)
    rows = [
        [Cell("folder"), *(Cell(run.subject.run.workdir.name) for run in shown)],
        *(
            [Cell(name), *(Cell(str(one.get(name, "–"))) for one in environments)]
            for name in names
        ),
    ]
    caption = "Versions, devices and commit of the last evaluation of each run."
    columns = ("", *(run.label for run in shown))
    return Table("environment", "Environment", caption, columns, rows)


def _share(standing, mark="", *, shade=False):
    if not len(standing):
        return Cell("–")
    share = float(np.mean(standing))
    numbers = {"accuracy": share, "correct": int(np.sum(standing))}
    numbers["examples"] = len(standing)
    return Cell(
        percent(share), mark=mark, numbers=numbers, share=share if shade else None
    )


def _pairs(heading, names, labels, predicted):
    """A row: the commonest mistakes, each with its count."""
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, (labels, predicted), 1)
    of_class = counts.sum(axis=1)
    np.fill_diagonal(counts, 0)
    row = [Cell(heading)]
    for place in np.argsort(-counts, axis=None, kind="stable")[:_PAIRS]:
        true, taken = np.unravel_index(place, counts.shape)
        count = int(counts[true, taken])
        if not count:
            row.append(Cell("–"))
            continue
        row.append(
            Cell(
                f"{names[true]} → {names[taken]}".replace("_", " "),
                note=f"{count} of {of_class[true]}",
                numbers={"count": count, "examples": int(of_class[true])},
            )
        )
    return row + [Cell("–")] * (_PAIRS + 1 - len(row))


def _attack_text(attack):
    if attack is None:
        return "the report's own PGD"
    return "all attacks together" if attack == WORST_CASE else attack


def _rank(number):
    return {1: "most often", 2: "2nd", 3: "3rd"}.get(number, f"{number}th")


def _flat(tree, prefix=""):
    """{'a.b': value} of nested dicts."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
