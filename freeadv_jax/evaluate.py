"""Evaluate the robustness of a trained model, on its test set or on your own images.

    freeadv-evaluate --workdir=RUN
        [--attacks=natural,pgd-20,pgd-100,cw-100,pgd-20-x10,autoattack]
        [--examples=1000] [--norm=l2 --epsilon=0.5] [--checkpoint=best]
    freeadv-evaluate --workdir=RUN --images=FILE.npz [--out=DIR]
    freeadv-evaluate --workdir=EXPORTED --dataset=cifar10 --data=DIR

`python -m freeadv_jax.evaluate` is the same command. RUN is the folder of a run or of an
exported model, and EXPORTED that of an exported model. FILE.npz holds `images`
[n, h, w, c], uint8 or floats in [0, 1], and `labels` [n]. Each attack adds a row to
results.json, and the outcome of each image to evaluation.npz. The same command again
continues an evaluation that was interrupted.
"""

import argparse
import dataclasses
import pathlib

from freeadv_jax.attacks.robustness import epsilon_text, named_attacks
from freeadv_jax.attacks.threat import NORMS
from freeadv_jax.command import Parser, count, number, run_command
from freeadv_jax.console import say
from freeadv_jax.devices.compilation import keep_compiled
from freeadv_jax.errors import InputError
from freeadv_jax.files import local_path, sole_writer
from freeadv_jax.runs.folder import RECORD
from freeadv_jax.runs.provenance import devices_text
from freeadv_jax.runs.results import (
    RED_FLAGS,
    ResultsFolder,
    evaluate_and_record,
    record_red_flags,
    table,
)
from freeadv_jax.runs.trained_model import open_trained_model, read_images


def main(argv):
    given = _parser().parse_args(argv[1:])
    workdir = local_path(given.workdir)
    model = open_trained_model(
        workdir,
        checkpoint=given.checkpoint,
        dataset=given.dataset,
        data=given.data or None,
    )
    if model.test_set is None and not given.images:
        raise InputError(
            f"{workdir} is an exported model, which names no data: give --images or "
            "--dataset"
        )
    threat, elsewhere = _threat(model, given)
    attacks = _attacks(model, given.attacks, threat, elsewhere)
    folder, images, labels = _images(model, workdir, given)
    chosen = slice(given.examples)
    say(
        f"evaluating {model.title} on {len(labels[chosen])} images within "
        f"{threat['norm']} epsilon {epsilon_text(threat['epsilon'])}, on {devices_text()}"
    )
    folder.mkdir(parents=True, exist_ok=True)
    keep_compiled(workdir)
    how = {
        "into": ResultsFolder(
            folder,
            header=model.header,
            suffix="-best" if given.checkpoint == "best" else "",
            of_one_model=given.out is not None,
        ),
        "batch_size": given.batch_size or model.batch_size,
        "seed": model.seed,
        "convolutions": model.convolutions,
    }
    with sole_writer(folder):
        results = evaluate_and_record(
            model.logits_fn,
            images,
            labels,
            attacks,
            **how,
            examples=given.examples or 0,
            keep_images=given.save_images,
        )
        if given.red_flags:
            results = record_red_flags(
                model.logits_fn,
                images[chosen],
                labels[chosen],
                **how,
                threat=threat,
                name=RED_FLAGS + elsewhere,
            )
    print(table(results))
    print(f"written to {folder}")
    if folder == workdir:
        print(f"compare models: freeadv-report {folder} [OTHER ...]")


def _parser():
    parser = Parser("freeadv_jax.evaluate", __doc__)
    add = parser.add_argument
    add(
        "--workdir",
        required=True,
        metavar="DIR",
        help="the run folder or the exported model",
    )
    add(
        "--attacks",
        default="natural,pgd-20,pgd-100,cw-100,autoattack",
        metavar="NAME,...",
        help="names with commas between: natural, fgsm, pgd-, cw- or "
        "dlr-STEPS[-xRESTARTS], apgd-ce, apgd-dlr, apgd-t, fab-t, square, autoattack, "
        "autoattack-plus",
    )
    add(
        "--examples", type=count, help="evaluate the first so many images; default: all"
    )
    add(
        "--norm",
        choices=NORMS,
        help="norm of the threat; default: that of the training",
    )
    add(
        "--epsilon",
        type=number,
        help="radius of the threat in [0, 1] pixels; default: that of the training",
    )
    add(
        "--step_size",
        type=number,
        help="step of pgd-, cw- and dlr- in [0, 1] pixels; default: that of the run's "
        "configuration, elsewhere a quarter of epsilon",
    )
    add(
        "--checkpoint",
        choices=("last", "best"),
        default="last",
        help="the newest, or the best by robust validation accuracy",
    )
    add(
        "--dataset",
        metavar="NAME",
        help="the data set of an exported model, such as cifar10; default: none, a run "
        "names its own",
    )
    add(
        "--data",
        metavar="DIR",
        help="the folder of the data set; default: that of the training",
    )
    add(
        "--images",
        metavar="FILE.npz",
        help="images to attack; default: the test set of the training",
    )
    add(
        "--out",
        metavar="DIR",
        help="folder for the results on --images; default: RUN/NAME of FILE.npz",
    )
    add(
        "--batch_size",
        type=count,
        help="images attacked at a time, over all devices together; default: that of "
        "the run's configuration, of an exported model 200",
    )
    add(
        "--save_images",
        action="store_true",
        help="keep the attacked images as well; default: no",
    )
    add(
        "--red_flags",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="look for signs that the evaluation is too weak",
    )
    return parser


def _threat(model, given):
    """{norm, epsilon, step_size} of the attacks, and the suffix of their names.

    The suffix is empty for the norm and epsilon of the training.
    """
    trained = model.threat or {"norm": None, "epsilon": None}
    norm = given.norm or trained["norm"] or "linf"
    epsilon = given.epsilon
    if epsilon is None:
        if norm != trained["norm"]:
            raise InputError(
                f"--epsilon is missing: the model was not trained with {norm}"
            )
        epsilon = trained["epsilon"]
    own = {"norm": norm, "epsilon": epsilon} == trained
    step_size = given.step_size
    if step_size is None:
        # A quarter of epsilon: 2 of 255 levels where epsilon is 8.
        step_size = (own and model.step_size) or epsilon / 4
    threat = {"norm": norm, "epsilon": epsilon, "step_size": step_size}
    return threat, "" if own else f"@{norm}-{epsilon:.4g}"


def _attacks(model, names, threat, elsewhere):
    attacks = named_attacks(names, **threat, num_classes=model.num_classes)
    return [
        dataclasses.replace(attack, name=attack.name + elsewhere)
        if attack.stages
        else attack
        for attack in attacks
    ]


def _images(model, workdir, given):
    """The folder of the results, the images and their labels."""
    if given.images:
        path = pathlib.Path(given.images).expanduser()
        folder = local_path(given.out or workdir / path.stem)
        if (folder / RECORD).exists():
            raise InputError(f"--out={folder} is a run: its own results would be lost")
        return folder, *read_images(path, model)
    if given.out:
        raise InputError("--out goes with --images; a run's results lie in the run")
    return workdir, *model.test_set()


def run():
    """Run the command, as the console script does."""
    run_command(main)


if __name__ == "__main__":
    run()
