"""Compare training methods at equal cost: robust accuracy against FLOP and minutes.

    python -m benchmarks.frontier --data=DIR [--set=cifar10|cifar100] [--updates N ...]
        [--flop F ...] [--rows NAME ...] [--seeds=5] [--autoattack]

Every row trains the same network on the same images with the same schedule, and spends
the same counted FLOP: those of --updates updates of natural training, or --flop. A method
with dearer updates makes fewer of them, and its schedule ends with the last one.

A row's attack and learning rate are chosen on held-out training images, with one seed and
as many candidates for every row. Other seeds are then evaluated on test images by APGD-T
and, with --autoattack, those of the largest budget by AutoAttack. The same command
continues after an interruption, and the record holds the budgets that are finished.
"""

import dataclasses
import functools
import pathlib
import statistics
from collections.abc import Callable

from benchmarks.ablation import HELD_OUT
from benchmarks.record import write_record
from benchmarks.reproduce import SCALED_DOWN
from benchmarks.runs import finish
from benchmarks.scaling import forward_flop
from benchmarks.training import update_flop
from configs import cifar10_modern
from freeadv_jax.analysis.plotting import (
    INK,
    SERIES,
    check_figure_path,
    colour_and_marker,
    new_figure,
    save,
)
from freeadv_jax.attacks.robustness import WORST_CASE
from freeadv_jax.command import Parser, count, number, run_command, several
from freeadv_jax.config import base_config, replays
from freeadv_jax.console import say
from freeadv_jax.devices import onednn
from freeadv_jax.errors import InputError, TrainingStoppedError
from freeadv_jax.progress import Progress
from freeadv_jax.recipes import CIFAR_10_STANDARDISATION
from freeadv_jax.runs.folder import Run
from freeadv_jax.training.methods import METHODS

RATE = "optimizer.learning_rate"
# Every choice of a row is tried with the first rate, and the others with the best choice.
RATES = (0.1, 0.05, 0.2)
CHOICE_SEED = 0
CHOICE_ATTACKS = ("natural", "pgd-20", "cw-20")
ATTACKS = ("natural", "apgd-t")
AUTOATTACK = "autoattack"


@dataclasses.dataclass(frozen=True)
class Row:
    """A training method: its fields, and the choices that held-out images decide."""

    fields: dict
    choices: tuple[dict, dict]
    # The configuration that the fields change.
    recipe: Callable = base_config

    @property
    def method(self) -> str:
        """The name of the training method."""
        return self.fields.get("method", self.recipe().method)


def _steps(*levels):
    return tuple({"attack.step_size": level / 255} for level in levels)


# The first of the choices is that of the method's authors.
ROWS = {
    "natural": Row({"method": "natural"}, ({}, {"optimizer.weight_decay": 1e-3})),
    **{
        f"free-{m}": Row({"method": "free", "attack.replays": m}, _steps(8, 10))
        for m in (2, 4, 8)
    },
    "7-pgd": Row({"method": "pgd", "attack.steps": 7}, _steps(2, 3)),
    "2-pgd": Row({"method": "pgd", "attack.steps": 2}, _steps(4, 5)),
    "fgsm-rs": Row({"method": "fgsm-rs"}, _steps(10, 8)),
    "n-fgsm": Row({"method": "n-fgsm"}, ({}, {"attack.n_fgsm_noise": 1.0})),
    "fgsm-pgi": Row({"method": "fgsm-pgi"}, _steps(8, 10)),
    "grad-align": Row(
        {"method": "grad-align"}, ({}, {"attack.grad_align_lambda": 0.5})
    ),
    "trades": Row(
        {"method": "trades"},
        tuple(
            {"attack.steps": steps, **step}
            for steps, step in zip((10, 2), _steps(2, 4), strict=True)
        ),
    ),
    "modern": Row({}, ({}, *_steps(10)), recipe=cifar10_modern.get_config),
}
CLASSES = {"cifar10": 10, "cifar100": 100}
STANDARDISATION = {
    "cifar10": CIFAR_10_STANDARDISATION,
    # Mean and deviation of the training set's pixels.
    "cifar100": {
        "normalization": "mean_std",
        "mean": (0.5071, 0.4865, 0.4409),
        "std": (0.2673, 0.2564, 0.2762),
    },
}
# The updates of natural training whose FLOP are the budgets.
UPDATES = (2000, 6000)


def existing(rows):
    """Return those rows whose method exists, and print a line for each other row.

    Raise InputError where no row is left.
    """
    for row in rows:
        if ROWS[row].method not in METHODS:
            say(f"{row}: there is no training method {ROWS[row].method!r}; left out")
    found = [row for row in rows if ROWS[row].method in METHODS]
    if not found:
        raise InputError(f"--rows {' '.join(rows)}: no row is left")
    return found


def configured(row, fields, seed, options, flop):
    """Return the configuration of a row with the chosen `fields` for a budget of FLOP."""
    config = ROWS[row].recipe()
    standardisation = STANDARDISATION[options.set]
    config.update_from_flattened_dict(
        SCALED_DOWN
        | {f"model.{name}": value for name, value in standardisation.items()}
        | ROWS[row].fields
        | fields
        | {
            "batch_size": options.batch_size,
            "seed": seed,
            "data.name": options.set,
            "data.dir": options.data,
            "data.validation_examples": HELD_OUT,
            "model.name": options.network,
            "checkpoint.every_updates": 500,
            # The activations of 32 images fit a core's cache.
            "evaluation.batch_size": 32,
            # By itself a long training takes other kernels than a short one.
            "model.convolutions": onednn.XLA if onednn.unavailable() else onednn.ONEDNN,
        }
    )
    config.updates = affordable(config, flop)
    return config


@functools.cache
def _forward_flop(network, images):
    config = base_config()
    config.model.name = network
    return forward_flop(Run(pathlib.Path(), config, CLASSES[images], (32, 32, 3)))


def minibatch_flop(config):
    """Return the FLOP of all updates from one minibatch; see `update_flop`."""
    forward = _forward_flop(config.model.name, config.data.name)
    return update_flop(config, forward) * config.batch_size * replays(config)


def affordable(config, flop):
    """Return the updates that `flop` pay for, in whole minibatches.

    Raise InputError where they pay for none.
    """
    minibatches = int(flop // minibatch_flop(config))
    if minibatches < 1:
        title = METHODS[config.method].title(config.attack)
        raise InputError(
            f"{flop:.3g} FLOP pay for no minibatch of {title}: must be at least "
            f"{minibatch_flop(config):.3g}"
        )
    return minibatches * replays(config)


def budgets(options):
    """Return the budgets in FLOP, the smallest first."""
    if options.flop:
        return sorted(set(options.flop))
    passes = METHODS["natural"].forward_passes({})
    image = passes * _forward_flop(options.network, options.set)
    counts = sorted(set(options.updates or UPDATES))
    return [updates * options.batch_size * image for updates in counts]


def folder(row, fields, seed, options, flop, part):
    """Return the run folder of a training."""
    values = [
        f"{name.split('.')[-1]}={_short(fields[name])}" for name in sorted(fields)
    ]
    name = "-".join([row, *values, f"seed={seed}"])
    scale = f"{options.set}-{options.network}-{options.batch_size}"
    return options.runs / scale / f"{flop:.4g}" / part / name


def _short(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Trainings:
    """Finish trainings one after another, and say how much of the work is done."""

    def __init__(self, options, flops, rows):
        self._options = options
        of_row = len(RATES) + 1 + options.seeds
        total = of_row * len(rows) * len(flops)
        self._left = of_row * len(rows) * sum(flops)
        self._done, self._spent = 0, 0
        self._progress = Progress("frontier", total=total, unit="runs", write=say)
        self._progress.show(0)

    def finish(self, row, fields, seed, flop, part, attacks):
        """Return the configuration and the results of a training."""
        options = self._options
        config = configured(row, fields, seed, options, flop)
        config.evaluation.attacks = attacks
        # All of the held-out images take part in a choice.
        config.evaluation.examples = options.examples if part == "test" else 0
        workdir = folder(row, fields, seed, options, flop, part)
        try:
            return config, finish(config, workdir, part=part, validates=False)
        finally:
            self._done += 1
            self._spent += flop
            self._left -= flop
            self._progress.show(self._done, work=(self._spent, self._left))


def chosen(row, flop, trainings):
    """Return a row's best fields on held-out images, and everything that was tried."""
    rates = tuple({RATE: rate} for rate in RATES)
    best, tried = {}, []
    for changes in (ROWS[row].choices, rates):
        for change in changes:
            fields = rates[0] | best | change
            if fields in [each["fields"] for each in tried]:
                continue
            # Nothing is robust after natural training.
            robust = METHODS[ROWS[row].method].adversarial
            decisive = WORST_CASE if robust else "natural"
            try:
                _, results = trainings.finish(
                    row, fields, CHOICE_SEED, flop, "validation", CHOICE_ATTACKS
                )
                found = {"accuracy": results["evaluation"][decisive]["accuracy"]}
            except TrainingStoppedError as fault:
                # The loss of this candidate is not finite: another one is chosen.
                found = {"accuracy": 0.0, "stopped": str(fault)}
                say(str(fault))
            tried.append({"fields": fields, **found})
        best = max(tried, key=lambda each: each["accuracy"])["fields"]
    return best, tried


def measure(flop, rows, seeds, attacks, trainings):
    """Return {row: its choice, cost and accuracies over the seeds} for one budget."""
    choices = {row: chosen(row, flop, trainings) for row in rows}
    outcomes = {row: [] for row in rows}
    # Rows take turns, so that other work on the machine slows all of them alike.
    for seed in range(CHOICE_SEED + 1, CHOICE_SEED + 1 + seeds):
        for row, (fields, _) in choices.items():
            trained = trainings.finish(row, fields, seed, flop, "test", attacks)
            outcomes[row].append(trained)
    measured = {}
    for row, trained in outcomes.items():
        config = trained[0][0]
        title = METHODS[config.method].title(config.attack)
        minibatches = config.updates // replays(config)
        measured[row] = {
            "title": f"{title}, cifar10_modern" if row == "modern" else title,
            "fields": choices[row][0],
            "tried": choices[row][1],
            "updates": config.updates,
            "flop": minibatches * minibatch_flop(config),
            "seconds": [found["training"]["seconds"] for _, found in trained],
            "compile_seconds": [
                found["training"]["compile_seconds"] for _, found in trained
            ],
            "accuracy": {
                attack: _summary(
                    [found["evaluation"][attack]["accuracy"] for _, found in trained]
                )
                for attack in attacks
            },
        }
    return measured


def _summary(values):
    return {
        "mean": statistics.mean(values),
        "deviation": statistics.stdev(values),
        "values": values,
    }


def front(points):
    """Return the points (cost, accuracy) that no cheaper or equally dear one surpasses."""
    kept = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or accuracy > kept[-1][1]:
            kept.append((cost, accuracy))
    return kept


# The cost of a row by the label of its axis. All rows of a budget have the same FLOP: the
# part of a minibatch that is left over makes none of them cheaper.
COSTS = {
    "TFLOP of the training": lambda flop, row: flop / 1e12,
    "minutes of the training": lambda flop, row: statistics.mean(row["seconds"]) / 60,
}


def draw(measured):
    """Return a figure: robust accuracy against each cost, and the front of all rows.

    `measured` has {flop, rows} for each budget.
    """
    figure = new_figure(9.2, 4.4)
    from matplotlib.ticker import LogLocator, NullLocator  # Once matplotlib is there.

    panels = figure.subplots(1, len(COSTS), sharey=True)
    for axes, (label, cost) in zip(panels, COSTS.items(), strict=True):
        points = []
        for place, name in enumerate(measured[0]["rows"]):
            rows = [each["rows"][name] for each in measured]
            robust = [row["accuracy"]["apgd-t"] for row in rows]
            means = [100 * each["mean"] for each in robust]
            costs = [cost(each["flop"], each["rows"][name]) for each in measured]
            points += zip(costs, means, strict=True)
            # The colours and markers of a second round are empty inside.
            inside = {"markerfacecolor": "white"} if place >= len(SERIES) else {}
            axes.errorbar(
                costs,
                means,
                [100 * each["deviation"] for each in robust],
                label=rows[-1]["title"],
                capsize=2,
                **colour_and_marker(place),
                **inside,
            )
        best = front(points)
        axes.step(*zip(*best), where="post", color=INK, linestyle=":", label="front")
        axes.set(xlabel=label, xscale="log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:g}")
    panels[0].set(ylabel="percent robust to APGD-T", ylim=(0, None))
    lines = panels[0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=5, fontsize=8)
    return figure


def show(flop, rows):
    """Print the table of one budget, the most robust row first."""
    say(f"\n{flop:.3g} FLOP, {len(next(iter(rows.values()))['seconds'])} seeds")
    for row in sorted(
        rows.values(), key=lambda row: -row["accuracy"]["apgd-t"]["mean"]
    ):
        accuracies = "".join(
            f"  {attack} {100 * each['mean']:5.1f} ± {100 * each['deviation']:.1f}"
            for attack, each in row["accuracy"].items()
        )
        minutes = statistics.mean(row["seconds"]) / 60
        say(
            f"{row['title']:24}{row['updates']:7} updates{minutes:7.1f} min{accuracies}"
        )


def main(argv):
    options = _parser().parse_args(argv[1:])
    given = options.rows or ROWS
    if unknown := set(given) - ROWS.keys():
        raise InputError(f"--rows {min(unknown)}: must be one of {', '.join(ROWS)}")
    suffix = "" if options.set == "cifar10" else f"_{options.set}"
    out = options.out or f"benchmarks/results/frontier{suffix}.json"
    picture = options.figure or pathlib.Path("docs") / f"frontier{suffix}.png"
    check_figure_path(picture)
    rows, flops = existing(given), budgets(options)
    for row in rows:  # A budget that is too small fails before any training.
        for choice in ROWS[row].choices:
            configured(row, choice, CHOICE_SEED, options, flops[0])
    trainings = Trainings(options, flops, rows)
    results = {
        "set": options.set,
        "network": options.network,
        "batch_size": options.batch_size,
        "held_out": HELD_OUT,
        "examples": options.examples,
        "budgets": [],
    }
    for flop in flops:
        final = options.autoattack and flop == flops[-1]
        attacks = (*ATTACKS, AUTOATTACK) if final else ATTACKS
        found = measure(flop, rows, options.seeds, attacks, trainings)
        show(flop, found)
        results["budgets"].append({"flop": flop, "rows": found})
        write_record(out, results)
        save(draw(results["budgets"]), picture)


def _parser():
    parser = Parser("benchmarks.frontier", __doc__)
    add = parser.add_argument
    add("--set", choices=CLASSES, default="cifar10", help="the images to train on")
    add("--data", metavar="DIR", required=True, help="the folder of the images")
    cost = parser.add_mutually_exclusive_group()
    cost.add_argument(
        "--updates",
        nargs="+",
        type=count,
        help="budgets, in updates of natural training; default: "
        f"{' '.join(map(str, UPDATES))}",
    )
    cost.add_argument(
        "--flop",
        nargs="+",
        type=number,
        help="budgets in FLOP; default: those of --updates",
    )
    add(
        "--network",
        metavar="NAME",
        default=SCALED_DOWN["model.name"],
        help="value of model.name",
    )
    add(
        "--batch_size",
        type=count,
        default=SCALED_DOWN["batch_size"],
        help="images in a minibatch",
    )
    add(
        "--rows",
        nargs="+",
        metavar="NAME",
        help=f"rows, among {', '.join(ROWS)}; default: all",
    )
    add("--seeds", type=several, default=5, help="seeds of each row on test images")
    add(
        "--autoattack",
        action="store_true",
        help="AutoAttack as well, for the largest budget; default: no",
    )
    add("--examples", type=count, default=1000, help="test images to evaluate on")
    add(
        "--runs",
        metavar="DIR",
        type=pathlib.Path,
        default="runs/frontier",
        help="folder for the runs",
    )
    add(
        "--out",
        metavar="FILE",
        help="the record to write; default: in benchmarks/results",
    )
    add(
        "--figure",
        metavar="FILE",
        type=pathlib.Path,
        help="the figure to write; default: in docs",
    )
    return parser


if __name__ == "__main__":
    run_command(main)
