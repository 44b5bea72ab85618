"""The error of small networks under common corruptions: natural training and Free-4.

    python -m benchmarks.corruptions --data=DIR

trains both on CIFAR-10, scaled down to a CPU as in benchmarks.reproduce, and evaluates them
on corruptions that `imagecorruptions` makes once of the first test images, the same for all.
Trainings are whole runs under --runs, and the corruptions are files there: the same command
continues where it was cut off.
"""

import pathlib
import statistics

import numpy as np

import freeadv_jax as fa
from benchmarks.record import write_record
from benchmarks.reproduce import SCALED_DOWN
from benchmarks.runs import finish
from configs import cifar10_free4, cifar10_natural
from freeadv_jax.command import Parser, run_command
from freeadv_jax.corrupted.images import KINDS, SEVERITIES, MadeImages
from freeadv_jax.data.dataset import load_dataset
from freeadv_jax.data.split import Split
from freeadv_jax.files import whole_file

ROWS = {"natural": cifar10_natural, "Free-4": cifar10_free4}
SEEDS = range(2)
EXAMPLES = 500
# The kinds in the groups of Hendrycks & Dietterich (2019).
GROUPS = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}


def settings(row: str, seed: int, *, data: str):
    """Return the configuration of a row with a seed."""
    config = ROWS[row].get_config()
    config.update_from_flattened_dict(SCALED_DOWN)
    config.data.dir = data
    config.seed = seed
    config.evaluation.attacks = ("natural", "pgd-20")
    return config


def stored(split: Split, folder: pathlib.Path) -> dict:
    """Write the corruptions of images into a folder like CIFAR-10-C; return their source.

    Kinds that are there are not made again.
    """
    source = MadeImages(split.images, split.labels, 0)
    folder.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        path = folder / f"{kind}.npy"
        if path.exists():
            continue
        parts = [source.part(kind, severity, slice(None)) for severity in SEVERITIES]
        with whole_file(path) as partial, partial.open("wb") as file:
            np.save(file, np.concatenate(parts))
        print(f"written to {path}", flush=True)
    np.save(folder / "labels.npy", split.labels)
    return source.about()


def errors(results: list[dict], records: list[dict]) -> dict:
    """Return {what: mean, deviation and values} of the errors over the seeds.

    The results are those of the attacks, and the records those of the corruptions.
    """
    found = {
        "natural": [1 - record["natural"]["accuracy"] for record in records],
        "pgd-20": [1 - r["evaluation"]["pgd-20"]["accuracy"] for r in results],
        "corruptions": [record["mean_error"] for record in records],
    }
    kinds = [record["kinds"] for record in records]
    for group, names in GROUPS.items():
        found[group] = [
            float(np.mean([of_run[name]["mean_error"] for name in names]))
            for of_run in kinds
        ]
    for name in kinds[0]:
        found[name] = [of_run[name]["mean_error"] for of_run in kinds]
    return {
        name: {
            "mean": statistics.mean(values),
            "deviation": statistics.stdev(values),
            "values": values,
        }
        for name, values in found.items()
    }


def main(argv):
    parser = Parser("benchmarks.corruptions", __doc__)
    parser.add_argument(
        "--data", metavar="DIR", required=True, help="the folder of CIFAR-10's archive"
    )
    parser.add_argument(
        "--runs",
        metavar="DIR",
        type=pathlib.Path,
        default="runs/benchmark-corruptions",
        help="the folder for the runs",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        default="benchmarks/results/corruptions.json",
        help="the record to write",
    )
    given = parser.parse_args(argv[1:])
    test = load_dataset(**settings("natural", 0, data=given.data).data).test
    first = test.take(np.arange(EXAMPLES))
    files = given.runs / "corrupted"
    made = stored(first, files)
    rows = {}
    for row in ROWS:
        results, records = [], []
        for seed in SEEDS:
            folder = given.runs / f"{row.lower()}-{seed}"
            results.append(finish(settings(row, seed, data=given.data), folder))
            found = fa.corruptions(
                fa.load(folder), first.images, first.labels, files=files
            )
            records.append(found.record)
            print(f"{folder}: mean error {found.mean_error:.1%}", flush=True)
        rows[row] = errors(results, records)
    write_record(given.out, {"examples": EXAMPLES, "images": made, "rows": rows})


if __name__ == "__main__":
    run_command(main)
