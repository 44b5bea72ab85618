"""How robust a trained model is: more attacks on a run, or on images of one's own.

    python -m freeadv_jax.evaluate --workdir=RUN
        [--attacks=natural,pgd-20,pgd-100,cw-100,pgd-20-x10,autoattack]
        [--examples=1000] [--norm=l2 --epsilon=0.5] [--checkpoint=best]
    python -m freeadv_jax.evaluate --workdir=RUN --images=FILE.npz [--out=DIR]

RUN is the folder of a run or of an exported model. FILE.npz holds `images` [n, h, w, c],
uint8 or floats in [0, 1], and `labels` [n]. Rows are added to results.json, and what
became of each image to evaluation.npz. The same command again goes on where it was cut
off.
"""

import argparse
import dataclasses
import pathlib
import zipfile
import zlib
from collections.abc import Callable

import numpy as np

from freeadv_jax.attacks.checks import check_images, check_labels
from freeadv_jax.attacks.named import attack_by_name
from freeadv_jax.attacks.threat import NORMS
from freeadv_jax.command import Parser, count, number, run_command
from freeadv_jax.config import replays
from freeadv_jax.data.dataset import load_dataset
from freeadv_jax.devices.compilation import keep_compiled
from freeadv_jax.errors import InputError
from freeadv_jax.files import local_path, read_json, sole_writer
from freeadv_jax.runs.folder import RECORD, read_run
from freeadv_jax.runs.load import load
from freeadv_jax.runs.results import (
    RED_FLAGS,
    ResultsFolder,
    evaluate_and_record,
    logits_functions,
    record_red_flags,
    table,
)
from freeadv_jax.weights.exported import EXPORTED


@dataclasses.dataclass(frozen=True)
class Subject:
    """A trained model, with the threat it was trained for and its test set."""

    logits_fn: Callable
    num_classes: int
    image_shape: tuple[int, int, int]
    threat: dict | None
    step_size: float | None
    # () -> (images, labels); an exported model has none.
    test_set: Callable | None
    header: dict
    batch_size: int = 200
    seed: int = 0


def main(argv):
    given = _parser().parse_args(argv[1:])
    workdir = local_path(given.workdir)
    exported = (workdir / EXPORTED).exists()
    subject = (_exported if exported else _run)(workdir, given)
    attacks, threat, elsewhere = _attacks(subject, given)
    if given.images:
        path = pathlib.Path(given.images).expanduser()
        folder = local_path(given.out or workdir / path.stem)
        if (folder / RECORD).exists():
            raise InputError(f"--out={folder} is a run: its own results would be lost")
        images, labels = _read_images(path, subject)
    else:
        if given.out:
            raise InputError("--out goes with --images; a run's results lie in the run")
        images, labels = subject.test_set()
        folder = workdir
    folder.mkdir(parents=True, exist_ok=True)
    keep_compiled(workdir)
    into = ResultsFolder(
        folder,
        header=subject.header,
        suffix="-best" if given.checkpoint == "best" else "",
        of_one_model=given.out is not None,
    )
    examples = given.examples or 0
    how = {
        "into": into,
        "batch_size": given.batch_size or subject.batch_size,
        "seed": subject.seed,
    }
    with sole_writer(folder):
        results = evaluate_and_record(
            subject.logits_fn,
            images,
            labels,
            attacks,
            **how,
            examples=examples,
            keep_images=given.save_images,
        )
        if given.red_flags:
            results = record_red_flags(
                subject.logits_fn,
                images[: examples or None],
                labels[: examples or None],
                **how,
                threat=threat,
                name=RED_FLAGS + elsewhere,
            )
    print(table(results))
    print(f"written to {folder}")


def _parser():
    parser = Parser("freeadv_jax.evaluate", __doc__)
    add = parser.add_argument
    add("--workdir", required=True, help="the run folder or the exported model")
    add(
        "--attacks",
        default="natural,pgd-20,pgd-100,cw-100,autoattack",
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


def _run(workdir, given):
    run = read_run(workdir)
    config = run.config
    state = run.trained_state(given.checkpoint)

    def test_set():
        data = config.data.to_dict()
        dataset = load_dataset(**data | {"dir": given.data or data["dir"]})
        run.require_classes(dataset.class_names)
        return dataset.test.images, dataset.test.labels

    updates = int(state.step) * replays(config)
    done = workdir / "results.json"
    training = read_json(done).get("training") if done.exists() else None
    # Of another checkpoint, or of the run before it went on, its seconds are not known.
    if not training or training["updates"] != updates:
        training = {"updates": updates}
    return Subject(
        logits_fn=logits_functions(run.model())(state.variables),
        num_classes=run.num_classes,
        image_shape=run.image_shape,
        threat={"norm": config.attack.norm, "epsilon": config.attack.epsilon},
        step_size=config.evaluation.step_size,
        test_set=test_set,
        header={"config": config.to_dict(), "training": training},
        batch_size=config.evaluation.batch_size,
        seed=config.seed,
    )


def _exported(workdir, given):
    if not given.images:
        raise InputError(f"{workdir} is an exported model: give it --images to attack")
    classifier = load(workdir, checkpoint=given.checkpoint)
    description = read_json(workdir / EXPORTED)
    return Subject(
        logits_fn=classifier.logits_fn,
        num_classes=classifier.num_classes,
        image_shape=classifier.image_shape,
        threat=description.get("threat"),
        step_size=None,
        test_set=None,
        header={"model": description},
    )


def _attacks(subject, given):
    """Those of the command line, their ball and step size, and what to call the ball.

    Away from the threat of the training the names of the attacks say so as well.
    """
    trained = subject.threat or {"norm": None, "epsilon": None}
    norm = given.norm or trained["norm"] or "linf"
    epsilon = given.epsilon
    if epsilon is None:
        if norm != trained["norm"]:
            raise InputError(
                "--epsilon is missing: the model was trained for no such ball"
            )
        epsilon = trained["epsilon"]
    own = {"norm": norm, "epsilon": epsilon} == trained
    # A quarter of the ball: 2 of 255 levels where epsilon is 8.
    step_size = given.step_size
    if step_size is None:
        step_size = (own and subject.step_size) or epsilon / 4
    threat = {"norm": norm, "epsilon": epsilon, "step_size": step_size}
    elsewhere = "" if own else f"@{norm}-{epsilon:.4g}"
    attacks = []
    for name in given.attacks.split(","):
        attack = attack_by_name(name.strip(), **threat, num_classes=subject.num_classes)
        if attack.stages:
            attack = dataclasses.replace(attack, name=attack.name + elsewhere)
        attacks.append(attack)
    return attacks, threat, elsewhere


def _read_images(path, subject):
    """The user's images and labels, fit for the model and for `evaluate`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels = file["images"], file["labels"]
    except FileNotFoundError as fault:
        raise InputError(f"{path} does not exist") from fault
    # A TypeError where it is no archive but an array.
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        RuntimeError,
        TypeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as fault:
        reason = " ".join(str(fault).split())
        raise InputError(
            f"{path} must be an .npz file with images and labels: {reason}"
        ) from fault
    if images.shape[1:] != subject.image_shape:
        raise InputError(
            f"{path}: images of shape {images.shape}, the model takes "
            f"[n, {', '.join(map(str, subject.image_shape))}]"
        )
    if np.issubdtype(images.dtype, np.floating):
        images = images.astype(np.float32)
    check_images(images, labels, raw=True)
    check_labels(labels, subject.num_classes)
    return images, labels.astype(np.int32)


def run():
    """Run the command, as the console script does."""
    run_command(main)


if __name__ == "__main__":
    run()
