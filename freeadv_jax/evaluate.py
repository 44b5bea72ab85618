"""Accuracy, natural and under attack: exact, for any batch size and device count."""

import dataclasses
import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from freeadv_jax import parallel
from freeadv_jax.attacks.losses import cross_entropy, margin
from freeadv_jax.attacks.pgd import pgd
from freeadv_jax.attacks.threat import Threat
from freeadv_jax.errors import InputError
from freeadv_jax.metrics import Progress
from freeadv_jax.parallel import REPLICATED, SPLIT
from freeadv_jax.record import environment, read_json, write_json
from freeadv_jax.run import Run
from freeadv_jax.training.update import unit_range

LOSSES = {"cross-entropy": cross_entropy, "margin": margin}

_NAMED = re.compile(r"(pgd|cw)-([1-9]\d{0,5})(?:-x([1-9]\d{0,5}))?")


@dataclasses.dataclass(frozen=True)
class Attack:
    """One row of a robustness table; epsilon and step size in [0, 1] pixels."""

    name: str
    norm: str
    epsilon: float
    steps: int = 0
    step_size: float = 0.0
    restarts: int = 1
    loss: str = "cross-entropy"
    random_start: bool = False

    def record(self, seed: int) -> dict:
        """How the figure was made, for results.json."""
        fields = dataclasses.asdict(self)
        del fields["name"], fields["random_start"]
        return fields | {"seed": seed}


def attack_by_name(name: str, *, threat: Threat, step_size: float) -> Attack:
    """natural, fgsm, pgd-<steps>, cw-<steps>, and either with -x<restarts>.

    PGD ascends the cross-entropy and CW the margin, from a random start; FGSM takes
    one step of epsilon from the image itself. InputError for any other name.
    """
    norm, epsilon = threat.norm, threat.epsilon
    if name == "natural":
        return Attack(name, norm, epsilon=0.0)
    if name == "fgsm":
        return Attack(name, norm, epsilon, steps=1, step_size=epsilon)
    named = _NAMED.fullmatch(name)
    if not named:
        raise InputError(
            f"attack {name!r} is unknown; allowed: natural, fgsm, pgd-<steps>, "
            "cw-<steps>, pgd-<steps>-x<restarts>, cw-<steps>-x<restarts>"
        )
    kind, steps, restarts = named.groups()
    return Attack(
        name,
        norm,
        epsilon,
        steps=int(steps),
        step_size=step_size,
        restarts=int(restarts or 1),
        loss="margin" if kind == "cw" else "cross-entropy",
        random_start=True,
    )


def configured_attacks(config: ConfigDict, names: tuple[str, ...]) -> list[Attack]:
    """The attacks `names` with the threat and step size of a run's configuration."""
    threat = Threat(config.attack.norm, config.attack.epsilon)
    step_size = config.evaluation.step_size
    return [attack_by_name(name, threat=threat, step_size=step_size) for name in names]


def make_evaluator(model, *, threat: Threat, batch_size: int) -> Callable:
    """outcomes(variables, split, attack, seed=0, watch=None) -> bool[n].

    True for each image of `split` that stands: classified right as it is and after
    every restart of the attack (so the figure is the worst case over them). Each
    image has random keys of its own, from the seed and its index. The last batch is
    padded, and what belongs to no image is cut off. BatchNorm is in eval mode and
    its averages are not touched. `watch(done, standing)` is called after each batch.

    `batch_size` is rounded up to a multiple of the devices. There is one compilation
    for each loss: the numbers of steps and restarts are traced.
    """
    devices = jax.device_count()
    batch_size = -(-batch_size // devices) * devices
    stands = {
        name: parallel.spmd(
            functools.partial(_stands, model=model, threat=threat, loss=loss),
            inputs=(REPLICATED, SPLIT, REPLICATED),
            outputs=SPLIT,
        )
        for name, loss in LOSSES.items()
    }

    def outcomes(variables, split, attack: Attack, *, seed: int = 0, watch=None):
        variables = parallel.place(variables, REPLICATED)
        settings = {
            "seed": np.uint32(seed),
            "steps": np.int32(attack.steps),
            "step_size": np.float32(attack.step_size),
            # Without an attack there is nothing to restart.
            "restarts": np.int32(attack.restarts if attack.steps else 0),
            "start_scale": np.float32(attack.random_start),
        }
        images = len(split.labels)
        standing = np.zeros(images, bool)
        for first in range(0, images, batch_size):
            part = slice(first, min(first + batch_size, images))
            batch = {
                "image": _padded(split.images[part], batch_size),
                "label": _padded(split.labels[part], batch_size),
                "index": first + np.arange(batch_size, dtype=np.int32),
            }
            batch = parallel.place(batch, SPLIT)
            found = parallel.fetch(stands[attack.loss](variables, batch, settings))
            standing[part] = found[: part.stop - first]
            if watch:
                watch(part.stop, int(standing.sum()))
        return standing

    return outcomes


def _stands(variables, batch, settings, *, model, threat, loss):
    """Which images of a batch the model classifies right, attacked and as they are."""
    images, labels = unit_range(batch["image"]), batch["label"]

    def logits_fn(images):
        return model.apply(variables, images, train=False)

    def right(images):
        return jnp.argmax(logits_fn(images), axis=-1) == labels

    def restart(number, standing):
        key = jax.random.fold_in(jax.random.key(settings["seed"]), number)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])
        start = settings["start_scale"] * threat.random_start(keys, images.shape[1:])
        adversarial = pgd(
            lambda images: loss(logits_fn(images), labels),
            images,
            start,
            threat=threat,
            steps=settings["steps"],
            step_size=settings["step_size"],
        )
        return standing & right(adversarial)

    return jax.lax.fori_loop(0, settings["restarts"], restart, right(images))


def configured_evaluator(run: Run) -> Callable:
    """The evaluator of a run's model and threat."""
    return make_evaluator(
        run.model(),
        threat=Threat(run.config.attack.norm, run.config.attack.epsilon),
        batch_size=run.config.evaluation.batch_size,
    )


def evaluate_run(run: Run, variables, split, *, training: dict) -> dict:
    """The content of results.json, written anew after each attack of the run.

    An attack that stands there already, of this very model, is not made again.
    """
    config, evaluation = run.config, run.config.evaluation
    examples = evaluation.examples or len(split.labels)
    split = split.take(np.arange(min(examples, len(split.labels))))
    outcomes = configured_evaluator(run)
    path = run.workdir / "results.json"
    done = read_json(path) if path.exists() else {}
    if done.get("training", {}).get("updates") != training["updates"]:
        done = {}
    results = {
        "config": config.to_dict(),
        "environment": environment(),
        "training": training,
        "evaluation": {},
    }
    for attack in configured_attacks(config, evaluation.attacks):
        name = attack.name
        made = {"examples": len(split.labels), "attack": attack.record(config.seed)}
        row = done.get("evaluation", {}).get(name, {})
        if {field: row.get(field) for field in made} != made:
            progress = Progress(name, total=len(split.labels), unit="images")

            def watch(images, standing, progress=progress):
                progress.show(images, accuracy=standing / images)

            standing = outcomes(variables, split, attack, seed=config.seed, watch=watch)
            correct = int(standing.sum())
            row = {"accuracy": correct / len(standing), "correct": correct} | made
        results["evaluation"][name] = row
        write_json(path, results)
    return results


def table(results: dict) -> str:
    """The accuracies of results.json, for reading."""
    lines = [f"{'attack':<14}{'accuracy':>10}{'correct':>10}{'images':>8}"]
    for name, row in results["evaluation"].items():
        lines.append(
            f"{name:<14}{row['accuracy']:>10.2%}{row['correct']:>10}{row['examples']:>8}"
        )
    return "\n".join(lines)


def _padded(array, size):
    """`array` with zeros after it, up to `size` along the first axis."""
    return np.pad(array, [(0, size - len(array))] + [(0, 0)] * (array.ndim - 1))
