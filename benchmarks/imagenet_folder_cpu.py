"""Train ResNet-50 on a small folder of photographs, naturally and by Free-4.

    python -m benchmarks.imagenet_folder_cpu --data=DIR [--runs=DIR] [--out=FILE]

DIR holds train/<class>/* and val/<class>/*. The recipe is that of ImageNet on crops of
64 pixels with a CPU's budget. The learning rate is scaled with the batch, warmed up
(without a warm-up the loss rose from 2.4 to 7.4 in seven updates) and falls smoothly;
nothing else was tried. The benchmark shows that the path from JPEGs to a table works, not
the limits of the method.
"""

import pathlib

from benchmarks.record import write_record
from benchmarks.runs import finish
from configs import imagenet_free4, imagenet_natural
from freeadv_jax.command import Parser, run_command

ROWS = {"natural": imagenet_natural, "free4": imagenet_free4}
SCALED_DOWN = {
    "updates": 240,
    "batch_size": 32,
    "data.image_size": 64,
    "optimizer.learning_rate": 0.1 * 32 / 256,
    "optimizer.schedule": "cosine",
    "optimizer.turns": (),
    "optimizer.warmup": 0.2,
    "checkpoint.every_updates": 24,
    "logging.every_updates": 24,
    "evaluation.attacks": ("natural", "pgd-10"),
    "evaluation.batch_size": 64,
}


def main(argv):
    parser = Parser("benchmarks.imagenet_folder_cpu", __doc__)
    parser.add_argument(
        "--data", metavar="DIR", required=True, help="the folder of photographs"
    )
    parser.add_argument(
        "--runs",
        metavar="DIR",
        type=pathlib.Path,
        default="runs/benchmark-imagenet-folder-cpu",
        help="folder for the runs",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        default="benchmarks/results/imagenet_folder_cpu.json",
        help="the record to write",
    )
    options = parser.parse_args(argv[1:])
    results = {}
    for name, module in ROWS.items():
        config = module.get_config()
        config.update_from_flattened_dict(SCALED_DOWN)
        config.data.name = f"folder:{options.data}"
        results[name] = finish(config, options.runs / name)
        results[name]["config"]["data"]["name"] = "folder:DIR"
    for name, result in results.items():
        print(f"\n{name}: {result['training']['seconds'] / 60:.1f} minutes")
        for attack, row in result["evaluation"].items():
            print(f"  {attack:10}{row['accuracy']:8.2%} of {row['examples']}")
    write_record(options.out, results)


if __name__ == "__main__":
    run_command(main)
