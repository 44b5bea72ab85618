"""Everything a report knows of one run, read from its folder."""

import dataclasses
import json

import numpy as np

from freeadv_jax.analysis.comparison import Subject, threat
from freeadv_jax.analysis.measurement import Measured
from freeadv_jax.errors import InputError
from freeadv_jax.files import read_json
from freeadv_jax.intervals import wilson
from freeadv_jax.report.published import Published, published_row
from freeadv_jax.runs.metrics import read_lines
from freeadv_jax.runs.outcomes import read_arrays
from freeadv_jax.runs.results import WORST_CASE


@dataclasses.dataclass(frozen=True)
class Shown:
    """A run of the report; `place` gives it its colour, which its kind shares.

    `results` is results.json, whose red flags, if any, are under the threat of the
    training, as are its `rows`; `outcomes` are the arrays of evaluation.npz (none in
    the folders of early versions), `metrics` the lines of metrics.jsonl.
    """

    subject: Subject
    place: int
    results: dict
    rows: dict[str, dict]
    outcomes: dict[str, np.ndarray]
    metrics: list[dict]
    measured: Measured | None
    published: Published | None

    label = property(lambda self: self.subject.label)
    kind = property(lambda self: self.subject.kind)
    config = property(lambda self: self.subject.run.config)

    def of_kind(self, kind: str) -> list[dict]:
        """The lines of metrics.jsonl of one kind."""
        return [line for line in self.metrics if line["kind"] == kind]


def read_shown(subjects: list[Subject], measured: list[Measured] | None) -> list[Shown]:
    """The runs of a report; InputError where one was not evaluated, or not this way."""
    kinds = list(dict.fromkeys(subject.kind for subject in subjects))
    return [
        _read(subject, kinds.index(subject.kind), measured[place] if measured else None)
        for place, subject in enumerate(subjects)
    ]


def first_of_each_kind(shown: list[Shown]) -> list[Shown]:
    """One run a kind, for what would say the same of each seed."""
    return list({run.kind: run for run in reversed(shown)}.values())[::-1]


def _read(subject, place, measured):
    workdir = subject.run.workdir
    again = f"evaluate it: python -m freeadv_jax.evaluate --workdir={workdir}"
    path = workdir / "results.json"
    if not path.exists():
        raise InputError(f"{workdir} holds no evaluation, there is no {path}; {again}")
    results = read_json(path)
    config = subject.run.config
    ball = threat(config)
    # Early versions kept those of the last evaluation, of whatever ball.
    if not ball.items() <= results.get("red_flags", {}).items():
        results.pop("red_flags", None)
    rows = _rows(results.get("evaluation", {}), ball)
    if "natural" not in rows or len(rows) < 2:
        raise InputError(
            f"{workdir} was not evaluated as it is and under an attack; {again}"
        )
    path = workdir / "evaluation.npz"
    outcomes = read_arrays(path) if path.exists() else {}
    about = json.loads(str(outcomes.pop("about", "null")))
    if about and about["model"] != subject.checksum:
        raise InputError(
            f"{workdir} was evaluated with other weights than it holds now; {again}"
        )
    return Shown(
        subject=subject,
        place=place,
        results=results,
        rows=rows,
        outcomes=outcomes,
        metrics=list(read_lines(workdir / "metrics.jsonl")),
        measured=measured,
        published=published_row(config),
    )


def _rows(evaluation, ball):
    """Those without an attack or with one inside this ball, each with its interval."""
    rows = {}
    for name, row in evaluation.items():
        attack = row["attack"]
        within = {"norm": attack["norm"], "epsilon": attack["epsilon"]} == ball
        if within or name == "natural":
            interval = row.get("interval") or wilson(row["correct"], row["examples"])
            rows[name] = row | {"interval": list(interval)}
    return rows


def attack_names(shown: list[Shown]) -> list[str]:
    """All attacks of the runs, in the order of their evaluations, the worst case last."""
    names = dict.fromkeys(name for run in shown for name in run.rows)
    return sorted(names, key=lambda name: name == WORST_CASE)


def comparable(shown: list[Shown], name: str) -> bool:
    """Whether an attack was made on every run, the same way and on as many images."""
    if not all(name in run.rows for run in shown):
        return False
    made = [
        {key: value for key, value in run.rows[name]["attack"].items() if key != "seed"}
        | {"examples": run.rows[name]["examples"]}
        for run in shown
    ]
    return all(other == made[0] for other in made)


def hardest_attack(shown: list[Shown]) -> str | None:
    """Of the attacks made the same way on every run, what fewest images withstand."""
    names = [
        name
        for name in attack_names(shown)
        if name != "natural" and comparable(shown, name)
    ]
    # Of two as hard the later, which is the cascade or the worst case.
    return min(
        reversed(names),
        key=lambda name: sum(run.rows[name]["accuracy"] for run in shown),
        default=None,
    )
