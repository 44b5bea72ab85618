"""Evaluate the robustness of a trained model, on its test set or on your own images.

    freeadv-evaluate --workdir=RUN
        [--attacks=natural,pgd-20,pgd-100,cw-100,pgd-20-x10,autoattack]
        [--examples=1000] [--norm=l2 --epsilon=0.5] [--checkpoint=best]
    freeadv-evaluate --workdir=RUN --attacks=natural,autoattack,ibp,crown
    freeadv-evaluate --workdir=RUN --attacks=natural --corruptions[=CIFAR-10-C]
    freeadv-evaluate --workdir=RUN --eot=20   for a randomised model
    freeadv-evaluate --workdir=RUN --images=FILE.npz [--out=DIR]
    freeadv-evaluate --workdir=EXPORTED --dataset=cifar10 --data=DIR
    freeadv-evaluate --workdir=RUN --multihost   on each of several machines

`python -m freeadv_jax.evaluate` is the same command. RUN is the folder of a run or of an
exported model, and EXPORTED that of an exported model. FILE.npz holds `images`
[n, h, w, c], uint8 or floats in [0, 1], and `labels` [n]. Each attack adds a row to
results.json, and the outcome of each image to evaluation.npz. A certificate (ibp,
crown-ibp, crown, alpha-crown) adds the images that no attack can break. --corruptions
adds the error under noise, blur, weather and compression. The same command again continues an
evaluation that was interrupted. With --multihost the process is one of
several that evaluate together, with the figures of one; outside a cluster
--coordinator=HOST:PORT, --num_processes=N and --process_id=I say how.
"""

import argparse
import dataclasses

from freeadv_jax.attacks.checks import check_threat
from freeadv_jax.attacks.robustness import epsilon_text, named_attacks
from freeadv_jax.attacks.threat import NORMS, THREATS, make_threat
from freeadv_jax.command import Parser, count, number, processes_of, run_command
from freeadv_jax.console import quoted, say
from freeadv_jax.devices.compilation import keep_compiled
from freeadv_jax.devices.memory import keep_memory
from freeadv_jax.devices.processes import (
    agreement,
    end_at_sigterm,
    require_same,
    start,
)
from freeadv_jax.errors import InputError
from freeadv_jax.files import as_path, machine_folder, sole_writer
from freeadv_jax.runs.corruption import corrupted_images, record_corruptions
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
    start(**processes_of(given))
    if given.multihost:
        end_at_sigterm()
    same = {name: v for name, v in vars(given).items() if name != "process_id"}
    require_same(repr(sorted(same.items())), "their options")
    with agreement():
        workdir = as_path(given.workdir)
        model = open_trained_model(
            workdir,
            checkpoint=given.checkpoint,
            dataset=given.dataset,
            data=given.data or None,
            randomized=given.eot is not None,
        )
        if model.test_set is None and not given.images:
            raise InputError(
                f"{workdir} is an exported model, which names no data: give --images or "
                "--dataset"
            )
        threat, elsewhere = _threat(model, given)
        attacks = _attacks(model, given.attacks, threat, elsewhere, given.audit)
        folder, images, labels = _images(model, workdir, given)
        ball = {"norm": threat["norm"], "epsilon": threat["epsilon"]}
        check_threat(**ball, norms=THREATS, image_shape=images.shape[1:])
        corrupted = None
        if given.corruptions is not None:
            corrupted = corrupted_images(images, labels, files=given.corruptions)
    require_same(f"{len(labels)}", "the number of images they can read")
    draws = f", with gradients over {given.eot} draws" if given.eot else ""
    chosen = slice(given.examples)
    say(
        f"evaluating {model.title} on {len(labels[chosen])} images within "
        f"{threat['norm']} epsilon {epsilon_text(threat['epsilon'])}{draws}, on {devices_text()}"
    )
    folder.mkdir(parents=True, exist_ok=True)
    keep_compiled(machine_folder(workdir))
    how = {
        "into": ResultsFolder(
            folder,
            header=model.header,
            suffix="-best" if given.checkpoint == "best" else "",
            of_one_model=given.out is not None,
        ),
        "batch_size": given.batch_size or model.batch_size,
        "convolutions": model.convolutions,
    }
    with sole_writer(folder):
        results = evaluate_and_record(
            model.logits_fn,
            images,
            labels,
            attacks,
            **how,
            seed=model.seed,
            examples=given.examples or 0,
            keep_images=given.save_images,
        )
        if corrupted:
            results = record_corruptions(
                model.logits_fn,
                images,
                labels,
                corrupted,
                **how,
                examples=len(labels[chosen]),
            )
        if given.red_flags and threat["norm"] in NORMS:
            results = record_red_flags(
                model.logits_fn,
                images[chosen],
                labels[chosen],
                **how,
                seed=model.seed,
                threat=threat,
                name=RED_FLAGS + elsewhere,
            )
    print(table(results))
    print(f"written to {folder}")
    if folder == workdir:
        print(
            f"compare models: freeadv-report {quoted(folder)} [OTHER ...] --out=report.html"
        )


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
        "dlr-STEPS[-xRESTARTS], apgd-ce, apgd-dlr, apgd-t, fab-t, fmn, square, "
        "autoattack, autoattack-plus, autoattack-quick; and certificates: ibp, crown-ibp, "
        "crown, alpha-crown",
    )
    add(
        "--examples", type=count, help="evaluate the first so many images; default: all"
    )
    add(
        "--norm",
        choices=THREATS,
        help="norm of the threat, l0 for few pixels, patch for one square; default: that of "
        "the training",
    )
    add(
        "--epsilon",
        type=number,
        help="radius of the threat in [0, 1] pixels; of l0 the number of pixels, of patch "
        "the side of the square, below 1 their share of the image; default: that of the "
        "training",
    )
    add(
        "--step_size",
        type=number,
        help="step of pgd-, cw- and dlr- in [0, 1] pixels; default: that of the run's "
        "configuration, elsewhere a quarter of epsilon, of l0 and patch 0.1",
    )
    add(
        "--eot",
        type=count,
        help="draws of a randomised model that attacks average at every step, 20 are "
        "usual; default: the model draws nothing in evaluation mode",
    )
    add(
        "--audit",
        type=_share,
        metavar="SHARE",
        help="share of the survivors of autoattack-quick that go through what it left out, "
        "or all; default: 0.04",
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
        "--corruptions",
        nargs="?",
        const="",
        metavar="DIR",
        help="also measure the error under fifteen common corruptions, of the .npy files "
        "in DIR, such as CIFAR-10-C, or without DIR made by imagecorruptions; default: no",
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
        help="look for signs that the evaluation is too weak; l0 and patch have none",
    )
    parser.add_processes("evaluate")
    return parser


def _share(text):
    """A share of the images: a number, or all."""
    return 1.0 if text == "all" else number(text)


def _threat(model, given):
    """{norm, epsilon, step_size} of the attacks, and the suffix of their names.

    A randomised model has {samples} beside them.

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
        usual = make_threat(norm, epsilon).usual_step
        step_size = (own and model.step_size) or usual
    threat = {"norm": norm, "epsilon": epsilon, "step_size": step_size}
    if given.eot is not None:
        threat["samples"] = given.eot
    return threat, "" if own else f"@{norm}-{epsilon:.4g}"


def _attacks(model, names, threat, elsewhere, audit):
    attacks = named_attacks(names, **threat, num_classes=model.num_classes, audit=audit)
    return [
        dataclasses.replace(attack, name=attack.name + elsewhere)
        if attack.epsilon
        else attack
        for attack in attacks
    ]


def _images(model, workdir, given):
    """The folder of the results, the images and their labels."""
    if given.images:
        path = as_path(given.images)
        folder = as_path(given.out or workdir / path.stem)
        if (folder / RECORD).exists():
            raise InputError(f"--out={folder} is a run: its own results would be lost")
        return folder, *read_images(path, model)
    if given.out:
        raise InputError("--out goes with --images; a run's results lie in the run")
    return workdir, *model.test_set()


def run():
    """Run the command, as the console script does."""
    keep_memory()
    run_command(main)


if __name__ == "__main__":
    run()
