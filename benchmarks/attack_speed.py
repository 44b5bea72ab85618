"""Time PGD-100 and the whole AutoAttack, ours and PyTorch's.

    python -m benchmarks.attack_speed --workdir=RUN [--data=DIR --examples=256 --parts=2]
        [--attacks pgd-100 autoattack autoattack-quick] [--out=FILE]

The peers are Foolbox's PGD and pyautoattack, the AutoAttack of its authors, both on
PyTorch with the weights of RUN (`pip install '.[references]'`). They take turns with ours
on parts of the images; only correctly classified images are attacked. Our quick version,
its audit included, takes turns with the authors' standard one. The compilation of ours
counts in the first part. Memory is kept from call to call, as `freeadv_jax.evaluate` does
it, for both sides. Finished turns are kept in RUN, so that the same command continues
after an interruption; they are made again for another model, other code or another machine.
"""

import itertools
import logging
import pathlib
import re
import time

import foolbox
import jax
import numpy as np
import torch

from benchmarks.peers.references import judged, reference
from benchmarks.peers.torch_networks import torch_classifier
from benchmarks.record import kept, measured_on, write_record
from freeadv_jax.attacks.campaign import Campaign
from freeadv_jax.attacks.kernels import kernels_for, traced_with
from freeadv_jax.attacks.named import QUICK, attack_by_name
from freeadv_jax.attacks.runner import images_of_stage
from freeadv_jax.command import Parser, count, run_command
from freeadv_jax.data.arrays import load_arrays
from freeadv_jax.devices import onednn
from freeadv_jax.devices.memory import keep_memory
from freeadv_jax.files import checksum, write_json
from freeadv_jax.models.interface import logits_functions
from freeadv_jax.pixels import unit_range
from freeadv_jax.runs.build import model_of
from freeadv_jax.runs.folder import read_run
from freeadv_jax.runs.load import trained_state

ATTACKS = ("pgd-100", "autoattack", QUICK)
PACKAGES = ("torch", "pyautoattack", "foolbox")


class Ours:
    """Our attacks; each program is compiled at its first use."""

    def __init__(self, run, variables, batch_size, images):
        self._logits_fn = logits_functions(model_of(run))(variables)
        self._campaign = Campaign(batch_size=batch_size)
        self._images = images

    def kernels(self, named):
        """Return the kernels that `robust_accuracy` takes for an attack on all images."""
        stages = named.stages.values()
        return kernels_for(onednn.AUTO, stages, self._logits_fn, self._images)

    def attack(self, named, images, labels):
        """Return which images stay robust, bool[n], and the seconds of each stage."""
        logits_fn = traced_with(self.kernels(named), self._logits_fn)
        seconds, begun = {}, time.perf_counter()
        logits = self._campaign.logits(logits_fn, images)
        robust = logits.argmax(axis=-1) == labels
        seconds["natural"] = time.perf_counter() - begun
        for name, stage in named.stages.items():
            begun = time.perf_counter()
            chosen = images_of_stage(
                name, named.audit, len(labels), self._campaign.seed
            )
            left = self._campaign.attack(
                stage, logits_fn, images, labels, robust & chosen
            )
            robust = left | robust & ~chosen
            seconds[name] = time.perf_counter() - begun
        return robust, seconds


class Theirs:
    """The same attacks on the same weights in PyTorch, for L-inf."""

    def __init__(self, run, variables, batch_size, images):
        self._model = torch_classifier(run, variables)
        self._batch_size = batch_size

    def attack(self, named, images, labels):
        """Return which images stay robust, and the seconds of each stage that is logged."""
        fields = {"norm": named.norm, "epsilon": named.epsilon}
        fields["batch_size"] = self._batch_size
        begun = time.perf_counter()
        if named.name != "pgd-100":
            with _StageSeconds() as stages:
                adversarial = reference("autoattack")(
                    self._model, images, labels, seed=0, **fields
                )
            seconds = stages.seconds
            seconds["natural"] = time.perf_counter() - begun - sum(seconds.values())
        else:
            adversarial = self._pgd(named, images, labels)
            seconds = {named.name: time.perf_counter() - begun}
        robust, _ = judged(self._model, images, labels, adversarial, **fields)
        return robust, seconds

    def _pgd(self, named, images, labels):
        (stage,) = named.stages.values()
        attack = foolbox.attacks.LinfProjectedGradientDescentAttack(
            steps=stage.steps, abs_stepsize=stage.step_size
        )
        model = foolbox.models.PyTorchModel(self._model, bounds=(0, 1), device="cpu")
        nchw = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        labels = torch.from_numpy(labels.astype(np.int64))
        with torch.no_grad():
            logits = [self._model(part) for part in nchw.split(self._batch_size)]
        (correct,) = torch.nonzero(
            torch.cat(logits).argmax(-1) == labels, as_tuple=True
        )
        for part in correct.split(self._batch_size):
            nchw[part] = attack.run(
                model, nchw[part], labels[part], epsilon=named.epsilon
            )
        return nchw.numpy().transpose(0, 2, 3, 1).copy()


class _StageSeconds(logging.Handler):
    """Read the seconds of AutoAttack's stages from the log of its authors' code."""

    _line = re.compile(r"robust accuracy after (\S+): .*total time ([\d.]+) s")
    _logger = logging.getLogger("auto-attack")

    def __enter__(self):
        self.seconds = {}
        self._level = self._logger.level
        self._logger.setLevel(logging.DEBUG)
        self._logger.addHandler(self)
        return self

    def __exit__(self, *fault):
        self._logger.removeHandler(self)
        self._logger.setLevel(self._level)

    def emit(self, record):
        if found := self._line.search(record.getMessage()):
            stage, total = found.groups()
            so_far = sum(self.seconds.values())
            self.seconds[stage.lower()] = float(total) - so_far


def measure(name, contenders, config, images, labels, *, parts, file, how):
    """Return the seconds of one attack by turn; turns kept in the file are not repeated."""
    named = attack_by_name(
        name,
        norm="linf",
        epsilon=config.attack.epsilon,
        step_size=config.evaluation.step_size,
        num_classes=10,
    )
    found = kept(file, how)
    turns = found.setdefault("turns", {who: [] for who in contenders})
    rows = np.array_split(np.arange(len(labels)), parts)
    for (number, part), who in itertools.product(enumerate(rows), contenders):
        if number < len(turns[who]):
            continue
        robust, seconds = contenders[who].attack(named, images[part], labels[part])
        turn = {"examples": len(part), "standing": int(robust.sum())}
        turns[who].append(turn | {"seconds": seconds})
        write_json(file, found)
        print(
            f"{name} part {number + 1}/{parts} {who:10}"
            f"{sum(seconds.values()):8.1f} s, {turn['standing']} of {len(part)} robust",
            flush=True,
        )
    seconds = {
        who: sum(sum(turn["seconds"].values()) for turn in taken)
        for who, taken in turns.items()
    }
    return {
        "convolutions": contenders["ours"].kernels(named),
        "standing": {
            who: sum(turn["standing"] for turn in taken) for who, taken in turns.items()
        },
        "seconds": seconds,
        "turns": turns,
        "reference / ours": seconds["reference"] / seconds["ours"],
    }


def main(argv):
    parser = Parser("benchmarks.attack_speed", __doc__)
    add = parser.add_argument
    add(
        "--workdir",
        metavar="RUN",
        type=pathlib.Path,
        required=True,
        help="the run to attack",
    )
    add(
        "--data",
        metavar="DIR",
        help="the folder of the data set; default: that of the training",
    )
    add(
        "--attacks",
        nargs="+",
        choices=ATTACKS,
        metavar="NAME",
        default=ATTACKS,
        help="attacks to time",
    )
    add("--examples", type=count, default=256, help="test images to attack")
    add("--batch_size", type=count, default=64, help="images attacked at a time")
    add("--parts", type=count, default=2, help="turns of each contender")
    add(
        "--out",
        metavar="FILE",
        default="benchmarks/results/attack_speed.json",
        help="the record to write",
    )
    options = parser.parse_args(argv[1:])
    keep_memory()
    run = read_run(options.workdir)
    folder = options.data or run.config.data.dir
    dataset = load_arrays(run.config.data.name, folder, validation_examples=0).test
    images = unit_range(dataset.images[: options.examples])
    labels = dataset.labels[: options.examples]
    variables = trained_state(run, "last").variables
    contenders = {
        who: kind(run, variables, options.batch_size, images)
        for who, kind in {"ours": Ours, "reference": Theirs}.items()
    }
    results = {
        "network": run.config.model.name,
        "examples": options.examples,
        "batch_size": options.batch_size,
        "torch_threads": torch.get_num_threads(),
        "devices": [device.device_kind for device in jax.devices()],
    }
    size = f"{options.examples}-{options.parts}"
    how = {"settings": dict(results), "attacks": run.config.to_dict()["evaluation"]}
    how |= {"model": checksum(variables), "environment": measured_on(PACKAGES)}
    for name in options.attacks:
        results[name] = measure(
            name,
            contenders,
            run.config,
            images,
            labels,
            parts=options.parts,
            file=options.workdir / f"attack_speed-{name}-{size}.json",
            how=how,
        )
        print(f"{name}: reference / ours {results[name]['reference / ours']:.2f}")
    write_record(options.out, results, packages=PACKAGES)


if __name__ == "__main__":
    run_command(main)
