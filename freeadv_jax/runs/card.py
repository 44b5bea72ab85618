"""The files beside exported weights: a model card, and an entry for RobustBench.

They repeat what the records say, and say "not yet run" for everything else.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping

import numpy as np
from ml_collections import ConfigDict

from freeadv_jax.attacks.audit import audit_text
from freeadv_jax.attacks.red_flags import verdict_line
from freeadv_jax.attacks.robustness import NATURAL, epsilon_text, is_worst_case
from freeadv_jax.config import field_names
from freeadv_jax.console import say
from freeadv_jax.corrupted.accuracy import errors_by_severity
from freeadv_jax.corrupted.images import SEVERITIES
from freeadv_jax.files import AnyPath, checksum, read_json
from freeadv_jax.runs.outcomes import read_arrays
from freeadv_jax.runs.results import CORRUPTIONS, RED_FLAGS
from freeadv_jax.training.methods import METHODS

NOT_RUN = "not yet run"
# The hub's word where nobody stated a licence.
UNKNOWN = "unknown"
_UNRECORDED = "not recorded"
_AUTOATTACK = "autoattack"
# Folders of the machine that trained, of no use to others.
_PRIVATE = ("data.dir", "data.manual_dir")
# The data sets' names on the hub.
_HUB_DATA = {"cifar10": "cifar10", "cifar100": "cifar100", "imagenet": "imagenet-1k"}


@dataclasses.dataclass(frozen=True)
class Facts:
    """The facts about an exported model.

    `description` is its model.json, `parameters` their number. `results` is the
    results.json of these weights, {} without one, and `config` the configuration of the
    run, None for a model from elsewhere.
    """

    description: dict
    parameters: int
    license: str = UNKNOWN
    results: dict = dataclasses.field(default_factory=dict)
    config: ConfigDict | None = None

    @property
    def rows(self) -> dict[str, dict]:
        """The accuracies by attack, worst cases last."""
        rows = self.results.get("evaluation", {})
        return dict(sorted(rows.items(), key=lambda item: is_worst_case(item[0])))

    @property
    def origin(self) -> dict:
        """The entry of the zoo that the weights are of, {} for others."""
        return self.description.get("origin") or {}

    @property
    def data(self) -> str | None:
        """The name of the data set, without the folders of this machine."""
        if self.config:
            return _without_folder(self.config.data.name)
        found = self.results.get("data") or self.origin.get("data")
        return found and _without_folder(found)

    @property
    def threat(self) -> dict | None:
        """The norm and epsilon of the training, else of all attacks if they share them."""
        attacks = [row["attack"] for row in self.rows.values()]
        evaluated = {
            (attack["norm"], attack["epsilon"])
            for attack in attacks
            if attack["epsilon"]
        }
        if not self.description["threat"] and len(evaluated) == 1:
            return dict(zip(("norm", "epsilon"), *evaluated))
        return self.description["threat"]

    @property
    def title(self) -> str:
        """The network, and how it was trained on which data where that is known."""
        parts = [self.description["model"], self.origin.get("name", "")]
        if self.config:
            method = METHODS[self.config.method].title(self.config.attack)
            parts.append(f"{method} on {self.data}")
        return ", ".join(filter(None, parts))

    def row(self, attack: str) -> dict | None:
        """Return the row of an attack within the threat, None where it was not run."""
        for name, row in self.rows.items():
            made = {part: row["attack"][part] for part in ("norm", "epsilon")}
            if name.partition("@")[0] == attack and (
                attack == NATURAL or made == self.threat
            ):
                return row
        return None


def parameter_count(arrays: Mapping[str, np.ndarray]) -> int:
    """Return how many numbers the arrays by path hold, without BatchNorm's averages."""
    trained = [array for path, array in arrays.items() if path.startswith("params/")]
    return sum(np.size(array) for array in trained or arrays.values())


def recorded_results(folder: AnyPath, logits_fn: Callable, *, checkpoint: str) -> dict:
    """Return the results.json of exactly this model in its folder, {} without one.

    A line says where the results are of other weights.
    """
    suffix = "-best" if checkpoint == "best" else ""
    path = folder / f"results{suffix}.json"
    arrays = folder / f"evaluation{suffix}.npz"
    if not path.exists() or not arrays.exists():
        return {}
    about = json.loads(str(read_arrays(arrays).get("about", "{}")))
    if about.get("model") != checksum(logits_fn):
        say(f"{path} is of other weights: the model card has no figures")
        return {}
    return read_json(path)


def card_files(facts: Facts) -> dict[str, str]:
    """Return the texts of README.md, a model card, and of robustbench.json."""
    entry = json.dumps(robustbench_entry(facts), indent=2)
    return {"README.md": model_card(facts), "robustbench.json": f"{entry}\n"}


def robustbench_entry(facts: Facts) -> dict:
    """Return the description of a model in the form of RobustBench's model_info.

    The fields about a paper are empty, to be filled in by hand.
    """
    natural, robust = facts.row(NATURAL), facts.row(_AUTOATTACK)
    corrupted = facts.results.get(CORRUPTIONS)
    flags = facts.results.get(RED_FLAGS, {}).get("flags")
    counts = {
        "natural": natural and natural["examples"],
        "AutoAttack": robust and robust["examples"],
        "corruptions": corrupted and corrupted["examples"],
    }
    images = [f"{name} {count:,}" for name, count in counts.items() if count]
    entry = {
        "link": "",
        "name": "",
        "authors": "",
        "additional_data": _additional_data(facts.config),
        "number_forward_passes": 1,
        "dataset": facts.data or "",
        "venue": "",
        "architecture": facts.description["model"],
        "eps": epsilon_text(facts.threat["epsilon"]) if facts.threat else "",
        "clean_acc": _percent(natural),
        "reported": "",
        "autoattack_acc": _percent(robust),
    }
    if corrupted:
        entry["corruptions_acc"] = f"{100 * (1 - corrupted['mean_error']):.2f}"
    entry["footnote"] = f"Test images: {', '.join(images) or NOT_RUN}."
    entry["unreliable"] = (
        any(flag["suspicious"] for flag in flags.values()) if flags else NOT_RUN
    )
    return entry


def _additional_data(config):
    """Whether the training saw images beside the data set, None where nobody knows."""
    if config and config.data.extra:
        return True
    # Weights from elsewhere may have seen others.
    return False if config and not config.init else None


def _percent(row):
    return f"{100 * row['accuracy']:.2f}" if row else NOT_RUN


def model_card(facts: Facts) -> str:
    """Return a model card in the form of the Hugging Face hub: YAML, then Markdown."""
    sides = ", ".join(map(str, facts.description["image_shape"]))
    sections = {
        "": [
            f"# {facts.title}",
            "",
            (
                f"An image classifier in JAX and Flax: images [b, {sides}] in [0, 1] to "
                f"{facts.description['num_classes']} logits, {facts.parameters:,} parameters. "
                f"Written by freeadv_jax {facts.description['freeadv_jax']}."
            ),
            "",
            "```python",
            "import freeadv_jax as fa",
            "",
            'classifier = fa.load("FOLDER")  # the folder of these files',
            f"logits = classifier(images)  # f32[b, {sides}] in [0, 1]",
            "```",
        ],
        "Data, threat and recipe": _training(facts),
        "Figures": _figures(facts),
        "Red flags": _flags(facts),
        "Common corruptions": _corruptions(facts),
        "Licence": [
            "The licence of these weights was not stated."
            if facts.license == UNKNOWN
            else facts.license
        ],
        "Environment of the evaluation": _environment(facts),
    }
    lines = _head(facts)
    for title, section in sections.items():
        lines += [f"## {title}", ""] * bool(title) + [*section, ""]
    return "\n".join(lines)


def _head(facts):
    """The YAML in front. Its texts are written as JSON, which YAML includes."""
    lines = [
        "---",
        f"license: {json.dumps(facts.license)}",
        "library_name: freeadv_jax",
        "pipeline_tag: image-classification",
        "tags: [adversarial-robustness, flax, jax]",
        "metrics: [accuracy]",
    ]
    if facts.data in _HUB_DATA:
        lines.append(f"datasets: [{_HUB_DATA[facts.data]}]")
    if facts.rows:
        data = json.dumps(facts.data or _UNRECORDED)
        lines += [
            "model-index:",
            f"- name: {json.dumps(facts.title)}",
            "  results:",
            "  - task: {type: image-classification}",
            f"    dataset: {{name: {data}, type: {data}}}",
            "    metrics:",
        ]
        for name, row in facts.rows.items():
            title = json.dumps(f"accuracy, {name}")
            value = f"{100 * row['accuracy']:.2f}"
            lines.append(f"    - {{type: accuracy, name: {title}, value: {value}}}")
    return [*lines, "---", ""]


def _training(facts):
    threat = facts.threat
    recipe = _UNRECORDED
    if facts.config:
        config = facts.config
        updates = facts.description["updates"]
        recipe = (
            f"{METHODS[config.method].title(config.attack)}, {updates:,} updates of "
            f"{config.batch_size} images, seed {config.seed}"
        )
    rows = [
        ("data", facts.data or _UNRECORDED),
        ("threat", _threat_text(**threat) if threat else _UNRECORDED),
        ("recipe", recipe),
    ]
    if origin := facts.origin:
        rows.append(("file", f"`{origin['name']}`"))
        rows.append(("SHA-256 of the file", origin["sha256"]))
    lines = _table(("", ""), rows)
    if not facts.config:
        return lines
    fields = {
        name: functools.reduce(getattr, name.split("."), facts.config)
        for name in field_names()
        if name not in _PRIVATE
    }
    fields |= {
        "data.name": facts.data,
        "data.extra": _without_folder(fields["data.extra"]),
        "init": pathlib.PurePath(fields["init"]).name,
    }
    rows = [(f"`{name}`", str(value)) for name, value in fields.items()]
    return [*lines, "", "All fields of the configuration:", "", *_table(("", ""), rows)]


def _figures(facts):
    rows = []
    for name, row in facts.rows.items():
        attack, (low, high) = row["attack"], row["interval"]
        within = _threat_text(attack["norm"], attack["epsilon"])
        rows.append(
            (
                name,
                within if attack["epsilon"] else "–",
                f"{row['accuracy']:.2%}",
                f"{low:.2%} to {high:.2%}",
                f"{row['examples']:,}",
            )
        )
    within = _threat_text(**facts.threat) if facts.threat else "–"
    for attack, threat in ((NATURAL, "–"), (_AUTOATTACK, within)):
        if not facts.row(attack):
            rows.append((attack, threat, NOT_RUN, "", ""))
    columns = ("attack", "within", "accuracy", "95 % interval", "test images")
    lines = [
        (
            "Share of test images classified correctly without an attack (natural), and at "
            "every point that an attack tried."
        ),
        "",
        *_table(columns, rows),
    ]
    for name, row in facts.rows.items():
        if "audit" in row:
            lines += ["", f"{name}: {audit_text(row['audit'])}."]
    if published := facts.origin.get("published"):
        figures = [
            f"{name} {published[name]:.2f} %"
            for name in (NATURAL, _AUTOATTACK, CORRUPTIONS)
            if name in published
        ]
        lines += [
            "",
            (
                f"Published, and not measured here: {', '.join(figures)} "
                f"([paper]({published['paper']}); {published['source']})."
            ),
        ]
    return lines


def _flags(facts):
    found = {
        name: flags["flags"]
        for name, flags in facts.results.items()
        if name.startswith(RED_FLAGS)
    }
    if not found:
        return [f"Signs that the gradients are masked: {NOT_RUN}."]
    lines = []
    for name, flags in found.items():
        raised = [flag for flag in flags.values() if flag["suspicious"]]
        where = name.removeprefix(RED_FLAGS)
        lines += [
            (
                f"Signs that the gradients are masked{where and f' ({where[1:]})'}: "
                f"{verdict_line(len(raised), len(flags))}."
            ),
            "",
        ]
        for question, flag in flags.items():
            answer = "**suspicious**" if flag["suspicious"] else "ok"
            lines.append(f"- {question}: {answer}. {flag['text']}")
        lines.append("")
    return lines[:-1]


def _corruptions(facts):
    record = facts.results.get(CORRUPTIONS)
    if not record:
        return [f"Error under noise, blur, weather and compression: {NOT_RUN}."]
    low, high = record["interval"]
    rows = []
    for kind, made in record["kinds"].items():
        errors = (made["mean_error"], *errors_by_severity(record, kind))
        rows.append((kind.replace("_", " "), *(f"{error:.2%}" for error in errors)))
    images = record["images"]
    source = "files, whose SHA-256 are in results.json"
    if "library" in images:
        source = f"made by {images['library']} {images['version']}"
    return [
        (
            f"Mean error {record['mean_error']:.2%} (95 % interval {low:.2%} to {high:.2%}) on "
            f"{record['examples']:,} test images; corruptions: {source}."
        ),
        "",
        *_table(("error", "mean", *map(str, SEVERITIES)), rows),
    ]


def _environment(facts):
    environment = facts.results.get("environment")
    if not environment:
        return [NOT_RUN]
    versions = environment.get("versions", {})
    names = ("freeadv_jax", "jax", "flax", "numpy", "python")
    rows = [(name, str(versions[name])) for name in names if name in versions]
    rows += [
        (name, str(environment[key]))
        for name, key in (("device", "device_kind"), ("commit", "commit"))
        if environment.get(key)
    ]
    return _table(("", ""), rows)


def _table(columns, rows):
    """Lines of Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return [
        f"| {' | '.join(text.replace('|', '/') for text in line)} |" for line in lines
    ]


def _threat_text(norm, epsilon):
    return f"{norm} epsilon {epsilon_text(epsilon)}"


def _without_folder(name):
    """'folder:images' of 'folder:/home/me/images'."""
    kind, colon, path = name.partition(":")
    return f"{kind}:{pathlib.PurePath(path).name}" if colon else name
