"""The evaluated models of a report, and comparisons on the images they share."""

import dataclasses
import json

import numpy as np

from freeadv_jax.analysis.comparison import ComparedModel
from freeadv_jax.analysis.measurement import Measurements
from freeadv_jax.attacks.robustness import WORST_CASE, accuracy_row
from freeadv_jax.errors import InputError
from freeadv_jax.files import read_json
from freeadv_jax.intervals import wilson
from freeadv_jax.report.published import Published, published_row
from freeadv_jax.runs.metrics import read_metrics
from freeadv_jax.runs.outcomes import read_arrays

NATURAL = "natural"
AUTOATTACK = "autoattack"


@dataclasses.dataclass(frozen=True)
class ReportedModel:
    """A model of the report with everything that its folder holds.

    `place` numbers the kind, which decides the colour. `results` is results.json; its
    red flags are dropped where they belong to another ball than the model's. `rows` maps
    each attack inside the ball to its row of results.json, with an interval, and
    `outcomes` holds the arrays of evaluation.npz by those names, bool[n], true where the
    image stays robust, beside 'label' and 'prediction' int[n]. `images` is the checksum
    of the evaluated set. Folders of early versions have no outcomes and no checksum.
    `metrics` are the lines of metrics.jsonl.
    """

    model: ComparedModel
    place: int
    results: dict
    rows: dict[str, dict]
    outcomes: dict[str, np.ndarray]
    images: int | None
    metrics: list[dict]
    measured: Measurements | None
    published: Published | None

    label = property(lambda self: self.model.label)
    kind = property(lambda self: self.model.kind)
    config = property(lambda self: self.model.config)

    def metrics_of(self, kind: str) -> list[dict]:
        """Return the lines of metrics.jsonl of one kind, such as 'train'."""
        return [line for line in self.metrics if line["kind"] == kind]

    def robust(self, attack: str) -> np.ndarray | None:
        """Return which images stay robust under an attack, bool[n], None if unknown.

        The worst case of several attacks covers the images that all these attacks have.
        """
        names = self.rows[attack]["attack"].get("attacks", [attack])
        arrays = [self.outcomes.get(_short(name)) for name in names]
        if any(array is None for array in arrays):
            return None
        examples = min(self.rows[attack]["examples"], *map(len, arrays))
        return np.logical_and.reduce([array[:examples] for array in arrays])

    def row_on_first(self, attack: str, examples: int) -> dict | None:
        """Return the row of an attack on the first `examples` images.

        A row of more images is counted again from the outcomes. Return None where the
        attack was run on fewer images, or where the outcomes are unknown.
        """
        row = self.rows.get(attack)
        if row is None or row["examples"] == examples:
            return row
        robust = self.robust(attack)
        if robust is None or len(robust) < examples:
            return None
        return row | accuracy_row(robust[:examples])


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One attack on all models: their rows on the first `examples` images."""

    attack: str
    examples: int
    rows: list[dict]


def read_reported(
    models: list[ComparedModel], measured: list[Measurements] | None
) -> list[ReportedModel]:
    """Return the models with their evaluations.

    Raise InputError where a model was not evaluated, or only without an attack.
    """
    kinds = list(dict.fromkeys(model.kind for model in models))
    return [
        _read(model, kinds.index(model.kind), measured[number] if measured else None)
        for number, model in enumerate(models)
    ]


def first_of_each_kind(models: list[ReportedModel]) -> list[ReportedModel]:
    """Return one model of each kind, where other seeds would look the same."""
    return list({model.kind: model for model in reversed(models)}.values())[::-1]


def attack_names(models: list[ReportedModel]) -> list[str]:
    """Return the attacks of all models in the order of the table's columns.

    Natural accuracy and AutoAttack, the strongest, come first, so that a narrow window
    shows both. The other attacks follow in the order of their evaluation, and the worst
    case is the last.
    """
    names = dict.fromkeys(name for model in models for name in model.rows)

    def rank(name):
        if name == WORST_CASE:
            return 3
        return 0 if name == NATURAL else 1 if name.startswith(AUTOATTACK) else 2

    return sorted(names, key=rank)


def compare(models: list[ReportedModel], attack: str) -> Comparison | None:
    """Return the rows of an attack on the images that every model has.

    Return None unless the attack was run on every model with the same settings and on
    the same images. The seed may differ.
    """
    if not _alike(models, attack):
        return None
    examples = min(model.rows[attack]["examples"] for model in models)
    rows = [model.row_on_first(attack, examples) for model in models]
    return None if None in rows else Comparison(attack, examples, rows)


def compare_on_first(
    models: list[ReportedModel], attack: str, examples: int
) -> Comparison | None:
    """Return the rows of an attack on the first `examples` images, None without them."""
    if not _alike(models, attack):
        return None
    rows = [model.row_on_first(attack, examples) for model in models]
    return None if None in rows else Comparison(attack, examples, rows)


def strongest_attack(models: list[ReportedModel]) -> Comparison | None:
    """Return the comparison under the strongest attack that was run on every model.

    AutoAttack, alone or within the worst case, comes before any other attack; otherwise
    the attack that leaves the fewest images robust. Return None if no attack is
    comparable.
    """
    found = [
        comparison
        for name in attack_names(models)
        if name != NATURAL and (comparison := compare(models, name))
    ]

    def strength(comparison):
        attack = comparison.attack
        names = comparison.rows[0]["attack"].get("attacks", [attack])
        accuracy = sum(row["accuracy"] for row in comparison.rows)
        return any(name.startswith(AUTOATTACK) for name in names), -accuracy

    # Among equals the last wins: the worst case covers all other attacks.
    return max(reversed(found), key=strength, default=None)


def _alike(models, attack):
    """Whether the attack was run on every model, with the same settings and images."""
    if not all(attack in model.rows for model in models):
        return False
    settings = [_settings(model.rows[attack]["attack"]) for model in models]
    sets = {model.images for model in models} - {None}
    return len(sets) <= 1 and all(other == settings[0] for other in settings)


def _settings(attack):
    """An attack's settings without its seed; the names of a worst case without balls."""
    settings = {name: value for name, value in attack.items() if name != "seed"}
    if "attacks" in settings:
        settings["attacks"] = list(map(_short, settings["attacks"]))
    return settings


def _short(name):
    """The name of an attack without its ball: pgd-20 of pgd-20@linf-0.0157."""
    return name.partition("@")[0]


def _read(model, place, measured):
    again = f"evaluate it: python -m freeadv_jax.evaluate --workdir={model.folder}"
    path = model.results_folder / "results.json"
    if not path.exists():
        raise InputError(
            f"{model.folder} holds no evaluation, there is no {path}; {again}"
        )
    results = read_json(path)
    # Early versions kept the red flags of the last evaluation, whatever its ball.
    if not model.threat.items() <= results.get("red_flags", {}).items():
        results.pop("red_flags", None)
    names = _names_inside(results.get("evaluation", {}), model.threat)
    rows = {
        short: _with_interval(results["evaluation"][name])
        for short, name in names.items()
    }
    if NATURAL not in rows or len(rows) < 2:
        raise InputError(
            f"{model.folder} was not evaluated both without an attack and under one; "
            f"{again}"
        )
    path = model.results_folder / "evaluation.npz"
    arrays = read_arrays(path) if path.exists() else {}
    about = json.loads(str(arrays.pop("about", "{}")))
    if about and about["model"] != model.checksum:
        raise InputError(
            f"{model.folder} was evaluated with other weights than it holds now; {again}"
        )
    kept = {"label": "label", "prediction": "prediction"} | names
    return ReportedModel(
        model=model,
        place=place,
        results=results,
        rows=rows,
        outcomes={new: arrays[old] for new, old in kept.items() if old in arrays},
        images=about.get("images"),
        metrics=read_metrics(model.folder),
        measured=measured,
        published=published_row(model.config) if model.config else None,
    )


def _names_inside(evaluation, threat):
    """{name without the ball: name} of the rows whose attack stays inside the ball."""
    names = {}
    for name, row in evaluation.items():
        ball = {part: row["attack"][part] for part in ("norm", "epsilon")}
        if name == NATURAL or ball == threat:
            names[_short(name)] = name
    return names


def _with_interval(row):
    """The row with its 95 % interval, which early versions did not write."""
    interval = row.get("interval") or wilson(row["correct"], row["examples"])
    return row | {"interval": list(interval)}
