"""Accuracy, natural and under attack: exact, for any batch size and device count."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from freeadv_jax.console import say
from freeadv_jax.attacks.autoattack import warn_of_few_classes
from freeadv_jax.attacks.campaign import Campaign, Images
from freeadv_jax.attacks.checks import check_labels, check_logits
from freeadv_jax.attacks.named import NamedAttack, attack_by_name
from freeadv_jax.data.encoded import EncodedImages
from freeadv_jax.data.split import Split
from freeadv_jax.errors import InputError
from freeadv_jax.progress import Progress
from freeadv_jax.runs.outcomes import Outcomes
from freeadv_jax.files import checksum, read_json, write_json
from freeadv_jax.runs.provenance import environment
from freeadv_jax.attacks.red_flags import CHECKED_IMAGES, Flag, red_flags
from freeadv_jax.runs.folder import Run
from freeadv_jax.intervals import wilson

# In results.json, of the training's ball; those of another have its name behind.
RED_FLAGS = "red_flags"
WORST_CASE = "worst-case"
# Of results.json, in this order; a model from elsewhere has no config or training.
_FIELDS = ("model", "config", "environment", "training", "evaluation")


def configured_attacks(
    config: ConfigDict, names: tuple[str, ...], *, num_classes: int
) -> list[NamedAttack]:
    """The attacks `names` with the threat and step size of a run's configuration."""
    threat = {
        "norm": config.attack.norm,
        "epsilon": config.attack.epsilon,
        "step_size": config.evaluation.step_size,
    }
    return [attack_by_name(name, **threat, num_classes=num_classes) for name in names]


def logits_functions(model) -> Callable:
    """variables -> logits_fn; two of them differ in their arrays alone."""

    def logits_fn(variables, images):
        return model.apply(variables, images, train=False)

    return functools.partial(jax.tree_util.Partial, logits_fn)


def evaluate_run(run: Run, variables, split: Split, *, training: dict) -> dict:
    """The results.json of a run after its training, with the configured attacks."""
    evaluation = run.config.evaluation
    return evaluate(
        logits_functions(run.model())(variables),
        split.images,
        split.labels,
        configured_attacks(run.config, evaluation.attacks, num_classes=run.num_classes),
        folder=run.workdir,
        header={"config": run.config.to_dict(), "training": training},
        batch_size=evaluation.batch_size,
        seed=run.config.seed,
        examples=evaluation.examples,
    )


def evaluate(
    logits_fn: Callable,
    images: Images,
    labels: np.ndarray,
    attacks: list[NamedAttack],
    *,
    folder: pathlib.Path,
    header: dict,
    batch_size: int,
    seed: int,
    examples: int = 0,
    suffix: str = "",
    keep_images: bool = False,
    checked: dict | None = None,
    flags_name: str = RED_FLAGS,
    of_one_model: bool = False,
) -> dict:
    """Adds a row for each attack to `folder`/results<suffix>.json; returns it all.

    `images` are [n, h, w, c], uint8 or floats in [0, 1], `labels` int32[n]; of them the
    first `examples` are attacked, or all. What became of each image goes to
    evaluation<suffix>.npz: by the name of the attack bool[n], true where the image
    stands, and with `keep_images` the attacked images as <name>/images. An attack that
    is found there, of this very model with these settings, is not made again on the
    images it was made on; one cut off goes on where it was. With `checked`, {norm,
    epsilon, step_size}, red flags are looked for at the end and go under `flags_name`,
    RED_FLAGS for the training's ball alone. InputError where a row of more or of other
    images would be lost, and `of_one_model` of another model."""
    about = {
        "model": checksum(logits_fn),
        "images": checksum((_identity(images), labels)),
    }
    file = folder / f"evaluation{suffix}.npz"
    outcomes = Outcomes(file, about, of_one_model=of_one_model)
    outcomes.arrays["label"] = labels
    images, labels = images[: examples or None], labels[: examples or None]
    path = folder / f"results{suffix}.json"
    before = read_json(path) if path.exists() and outcomes.found else {}
    rows = before.get("evaluation", {})
    found = before | header | {"environment": environment(), "evaluation": rows}
    results = {name: found[name] for name in _FIELDS if name in found}
    results |= {name: found[name] for name in found if name.startswith(RED_FLAGS)}

    campaign = Campaign(batch_size=batch_size, seed=seed)
    logits = campaign.logits(logits_fn, images)
    check_logits(logits)
    check_labels(labels, logits.shape[1])
    warn_of_few_classes(logits.shape[1], [s for a in attacks for s in a.stages])
    outcomes.arrays["prediction"] = logits.argmax(axis=-1)
    under_attack = _UnderAttack(
        campaign, logits_fn, images, labels, outcomes, keep_images
    )
    was = {name: row["attack"] for name, row in rows.items()}
    anew = {  # Natural accuracy, without a stage, is that of every ball.
        attack.name
        for attack in attacks
        if not under_attack.known(attack)
        or (attack.stages and was.get(attack.name) != attack.record(seed))
    }
    for name in anew & rows.keys():
        if (examples := rows[name]["examples"]) > len(labels):
            raise InputError(
                f"{name} was made on {examples} images, with other settings or without "
                f"keeping those it makes: ask for as many, not {len(labels)}"
            )
    if not outcomes.found:  # What is of another model goes before its arrays do.
        write_json(path, results)
    for attack in attacks:
        if attack.name in anew and rows.pop(attack.name, None):
            write_json(path, results)
        made = {"examples": len(labels), "attack": attack.record(seed)}
        row = rows.get(attack.name, {"examples": 0, "correct": 0})
        if row["examples"] < len(labels):
            stages = under_attack.make(attack, made, before=row)
            rows[attack.name] = _row(outcomes.arrays[attack.name]) | made | stages
            outcomes.save()
            write_json(path, results)
    rows |= _worst_cases(rows, outcomes.arrays, examples=len(labels))
    if checked:
        results[flags_name] = flags_record(
            campaign,
            logits_fn,
            images[:CHECKED_IMAGES],
            labels[:CHECKED_IMAGES],
            checked,
            before=results.get(flags_name, {}),
        )
    write_json(path, results)
    say(f"{campaign.compilations} programs compiled")
    return results


@dataclasses.dataclass(frozen=True)
class _UnderAttack:
    """A model and a set, and where is kept what becomes of the images."""

    campaign: Campaign
    logits_fn: Callable
    images: Images
    labels: np.ndarray
    outcomes: Outcomes
    keep_images: bool

    def known(self, attack):
        """Whether all that is asked of an attack is there already."""
        names = [attack.name] + [_images(attack.name)] * self.keep_images
        return all(name in self.outcomes.arrays for name in names)

    def make(self, attack, made, *, before):
        """Makes an attack, or the rest of it, and keeps what became of the images.

        `before` is the row of the first images, which the attack was made on already;
        they are left out.
        """
        arrays, known = self.outcomes.arrays, slice(before["examples"])
        attempts = max((stage.attempts for stage in attack.stages.values()), default=0)
        left = arrays["prediction"] == self.labels
        left[known] = False
        images = _unit_pixels(self.images if self.keep_images else self.images[:0])
        if self.keep_images and before["examples"]:
            images[known] = arrays[_images(attack.name)][known]
        state = self.outcomes.under_way(
            made | {"name": attack.name, "before": known.stop, "kept": len(images)},
            standing=left,
            finished=np.zeros((attempts, len(self.labels)), bool),
            counts=np.full(len(attack.stages), -1),
            images=images,
        )
        stood = before.get("stages", {attack.name: before["correct"]})
        for number, (name, stage) in enumerate(attack.stages.items()):
            if state["counts"][number] < 0:  # Else finished before a cut.
                title = name if name == attack.name else f"{attack.name}: {name}"
                self._stage(stage, title, state, stood=stood.get(name, 0))
                state["counts"][number] = state["standing"].sum() + stood.get(name, 0)
                state["finished"][:] = False
        self.outcomes.forget_under_way()
        if before["examples"]:
            state["standing"][known] = arrays[attack.name][known]
        arrays[attack.name] = state["standing"]
        if self.keep_images:
            arrays[_images(attack.name)] = state["images"]
        else:  # Those kept before are another attack's, or fewer.
            arrays.pop(_images(attack.name), None)
        counts = dict(zip(attack.stages, state["counts"].tolist()))
        return {"stages": counts} if len(counts) > 1 else {}

    def _stage(self, stage, title, state, *, stood):
        """One attack of a cascade on what stands, beside `stood` images known before."""
        examples = len(state["standing"])
        total = stage.attempts * int(state["standing"].sum())
        progress = Progress(title, total=total, unit="attempts", write=say)

        def watch(done, standing):
            state["standing"][:] = standing
            self.outcomes.save_sometimes()
            progress.show(done, accuracy=(standing.sum() + stood) / examples)

        state["standing"][:] = self.campaign.attack(
            stage,
            self.logits_fn,
            self.images,
            self.labels,
            state["standing"],
            finished=state["finished"][: stage.attempts],
            adversarial=state["images"] if self.keep_images else None,
            watch=watch,
        )


def _row(standing):
    """The figure of one attack: accuracy with its 95 % interval (Wilson)."""
    correct, examples = int(standing.sum()), len(standing)
    return {
        "accuracy": correct / examples,
        "interval": list(wilson(correct, examples)),
        "correct": correct,
        "examples": examples,
    }


def _worst_cases(rows, arrays, *, examples):
    """For each threat the row of what stands under every attack on these images."""
    threats = {}
    for name, row in rows.items():
        given = row["attack"]
        if name in arrays and row["examples"] >= examples and given["epsilon"]:
            threat = name.partition("@")[2], given["norm"], given["epsilon"]
            threats.setdefault(threat, []).append(name)
    worst = {}
    for (suffix, norm, epsilon), names in threats.items():
        attack = {"norm": norm, "epsilon": epsilon, "attacks": names}
        standing = np.logical_and.reduce([arrays[name][:examples] for name in names])
        if len(names) > 1:
            name = f"{WORST_CASE}@{suffix}" if suffix else WORST_CASE
            worst[name] = _row(standing) | {"attack": attack}
    return worst


def flags_record(campaign, logits_fn, images, labels, checked, *, before) -> dict:
    """The answers for results.json, with `checked`, {norm, epsilon, step_size}.

    Those `before` where they are of the same, and of as many images or more.
    """
    made = checked | {"examples": len(labels)}
    if checked.items() <= before.items() and before["examples"] >= len(labels):
        return before
    say(f"red flags: looking at {len(labels)} images")
    flags = red_flags(campaign, logits_fn, images, labels, **checked)
    return made | {"flags": as_record(flags)}


def as_record(flags: list[Flag]) -> dict:
    """For results.json: by name, whether suspicious, the text and the numbers."""
    return {
        flag.name: {"suspicious": flag.suspicious, "text": flag.text} | flag.numbers
        for flag in flags
    }


def as_lines(record: dict) -> str:
    """A line each of a record: ok or suspicious, the name, and the numbers."""
    return "\n".join(
        f"{'suspicious' if flag['suspicious'] else 'ok':12}{name}: {flag['text']}"
        for name, flag in record.items()
    )


def table(results: dict) -> str:
    """The accuracies of results.json, for reading."""
    width = max(len(name) for name in [*results["evaluation"], "attack"]) + 2
    head = f"{'attack':<{width}}{'accuracy':>9}{'95 % interval':>18}"
    lines = [f"{head}{'correct':>9}{'images':>8}"]
    for name, row in results["evaluation"].items():
        low, high = row["interval"]
        interval = f"{low:.2%} - {high:.2%}"
        lines.append(
            f"{name:<{width}}{row['accuracy']:>9.2%}{interval:>18}"
            f"{row['correct']:>9}{row['examples']:>8}"
        )
    for name in results:
        if name.startswith(RED_FLAGS):
            title = name.replace("_", " ")
            lines += ["", f"{title}:", as_lines(results[name]["flags"])]
    return "\n".join(lines)


def _unit_pixels(images):
    """A copy in [0, 1], float32."""
    scale = 255 if images.dtype == np.uint8 else 1
    return np.asarray(images, np.float32) / np.float32(scale)


def _images(name):
    """Where the images made by an attack are kept."""
    return f"{name}/images"


def _identity(images):
    """What tells them from others: arrays, for which nothing need be decoded."""
    if isinstance(images, EncodedImages):
        return np.uint32(images.fingerprint())
    return images
