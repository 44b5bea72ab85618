"""Measure the cost of replaying a minibatch: accuracy against m.

    python -m benchmarks.replays --data=DIR [--runs=DIR]          digits, CIFAR-10, a CPU
    python -m benchmarks.replays --data=DIR --full [--runs=DIR]   CIFAR-10 and -100, a GPU

Three trainings with the same number of updates are compared: natural training that
replays each minibatch m times, the same with batches m times as large (which see as many
images as m = 1), and Free-m. DIR holds the archives of all data sets. Runs are kept under
--runs, so that the same command continues after an interruption.
"""

import pathlib
import statistics

from benchmarks.record import write_record
from benchmarks.reproduce import SCALED_DOWN
from benchmarks.runs import finish
from configs import cifar10_free8, cifar100_free8, digits_free8
from freeadv_jax.analysis.plotting import colour_and_marker, new_figure, save
from freeadv_jax.command import Parser, count, run_command
from freeadv_jax.data.dataset import load_dataset

REPLAYS = (1, 2, 4, 8, 16)
# Free-m within this tiny epsilon is natural training with replays: delta changes no pixel
# by more.
NOTHING = 1e-9
CURVES = {
    "natural, replayed": ("natural",),
    "natural, larger batches": ("natural",),
    "Free-m": ("natural", "pgd-20"),
}
# Small batches: even sixteen times as large they fit the time and the images of digits.
_SMALL = SCALED_DOWN | {
    "updates": 800,
    "batch_size": 16,
    "checkpoint.every_updates": 800,
}
SETS = {
    "digits": (digits_free8, {"batch_size": 32}),
    "cifar10": (cifar10_free8, _SMALL),
}
FULL_SETS = {"cifar10": (cifar10_free8, {}), "cifar100": (cifar100_free8, {})}


def configured(module, fields, curve, replays, seed):
    """Return the configuration of one run."""
    config = module.get_config()
    config.update_from_flattened_dict(fields)
    config.seed = seed
    config.method = "free"
    config.attack.replays = replays
    config.evaluation.attacks = CURVES[curve]
    # Validation decides nothing here.
    config.data.validation_examples = 0
    if curve != "Free-m":
        config.attack.epsilon = config.attack.step_size = NOTHING
    if curve == "natural, larger batches":
        config.batch_size *= replays
    return config


def measure(sets, runs, data, seeds):
    """Return {set: {curve: {m: {attack: {mean, deviation, values}}}}} in [0, 1]."""
    # A missing data set fails before an hour of training on the first.
    for name, (module, _) in sets.items():
        if name != "digits":
            load_dataset(**module.get_config().data.to_dict() | {"dir": data})
    results = {}
    for name, (module, fields) in sets.items():
        for curve, attacks in CURVES.items():
            for replays in REPLAYS:
                found = {attack: [] for attack in attacks}
                for seed in range(seeds):
                    config = configured(module, fields, curve, replays, seed)
                    config.data.dir = "" if name == "digits" else data
                    folder = f"{name}-{curve.replace(', ', '-').replace(' ', '-')}"
                    rows = finish(config, runs / f"{folder}-m{replays}-{seed}")
                    for attack, values in found.items():
                        values.append(rows["evaluation"][attack]["accuracy"])
                row = results.setdefault(name, {}).setdefault(curve, {})
                row[str(replays)] = {
                    attack: {
                        "mean": statistics.mean(values),
                        "deviation": statistics.stdev(values) if seeds > 1 else None,
                        "values": values,
                    }
                    for attack, values in found.items()
                }
    return results


def draw(results):
    """Return a figure with a panel for each data set: accuracy against m."""
    figure = new_figure(4.6 * len(results), 3.6)
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for axes, (name, curves) in zip(panels, results.items(), strict=True):
        line = 0
        for curve, attacks in CURVES.items():
            for attack in attacks:
                points = [curves[curve][str(m)][attack] for m in REPLAYS]
                which = f", {attack}" if len(attacks) > 1 else ""
                axes.errorbar(
                    REPLAYS,
                    [100 * point["mean"] for point in points],
                    [100 * (point["deviation"] or 0) for point in points],
                    label=curve + which,
                    capsize=3,
                    **colour_and_marker(line),
                )
                line += 1
        axes.set_xscale("log", base=2)
        axes.set_xticks(REPLAYS, map(str, REPLAYS))
        axes.set(
            title=name, xlabel="replays m", ylabel="percent correct", ylim=(0, 100)
        )
    lines = panels[0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=4, fontsize=8)
    return figure


def main(argv):
    parser = Parser("benchmarks.replays", __doc__)
    parser.add_argument(
        "--data", metavar="DIR", required=True, help="the folder of the archives"
    )
    parser.add_argument("--full", action="store_true", help="WRN-32-10, 80,000 updates")
    parser.add_argument("--seeds", type=count, default=3, help="seeds of each point")
    parser.add_argument(
        "--runs",
        metavar="DIR",
        type=pathlib.Path,
        help="folder for the runs; default: in runs",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=pathlib.Path,
        help="the record to write; default: in benchmarks/results",
    )
    parser.add_argument(
        "--figure",
        metavar="FILE",
        type=pathlib.Path,
        help="the figure to write; default: in docs",
    )
    options = parser.parse_args(argv[1:])
    name = "replays_full" if options.full else "replays"
    runs = options.runs or pathlib.Path("runs") / f"benchmark-{name}"
    out = options.out or pathlib.Path("benchmarks/results") / f"{name}.json"
    figure = options.figure or pathlib.Path("docs") / f"{name}.png"
    sets = FULL_SETS if options.full else SETS
    results = measure(sets, runs, options.data, options.seeds)
    save(draw(results), figure)
    write_record(out, results)


if __name__ == "__main__":
    run_command(main)
