"""Write a trained model as safetensors and JSON, from a run or from PyTorch.

    freeadv-export --workdir=RUN --out=DIR [--checkpoint=best] [--license=apache-2.0]
    freeadv-export --torch=FILE --out=DIR [--mean=A,B,C --std=A,B,C] [--model=NAME]
    freeadv-export --torch=robustbench:NAME --out=DIR
    freeadv-export --workdir=RUN --out=DIR --push=OWNER/NAME [--dry_run]

`python -m freeadv_jax.export` is the same command. FILE is a PyTorch state_dict, as
.safetensors, .npy or as torch.save writes it. The network is found by the names and
shapes of its tensors. A tensor that the network does not know is an error unless
--ignore names it. `freeadv_jax.load(DIR)` returns the model. Beside the weights lie
README.md, a model card with the figures of RUN's results.json, and robustbench.json in
the form of RobustBench's model_info. --push also uploads DIR to the Hugging Face hub.
"""

import argparse

from freeadv_jax.command import Parser, count, numbers, run_command
from freeadv_jax.errors import InputError
from freeadv_jax.files import as_path
from freeadv_jax.runs.card import (
    UNKNOWN,
    Facts,
    card_files,
    parameter_count,
    recorded_results,
)
from freeadv_jax.runs.folder import read_run
from freeadv_jax.runs.hub import check_repository, hub, plan, push
from freeadv_jax.runs.load import load
from freeadv_jax.weights.classifier import saved_form
from freeadv_jax.weights.exported import EXPORTED, new_folder, write_exported
from freeadv_jax.weights.from_torch import read_model
from freeadv_jax.weights.layouts import TORCH_MODELS

_OF_RUN = ("workdir", "checkpoint")
_OF_BOTH = ("out", "license", "push", "dry_run")
_OF_TORCH = (
    "torch",
    "model",
    "num_classes",
    "image_shape",
    "mean",
    "std",
    "key",
    "ignore",
)


def export_run(
    workdir, out, *, checkpoint: str = "last", license: str = UNKNOWN
) -> None:
    """Write the 'last' or 'best' model of a run into the new folder `out`, with its card.

    `workdir` may also be an exported folder, whose evaluation gives the figures.
    """
    out, workdir = new_folder(out), as_path(workdir)
    classifier = load(workdir, checkpoint=checkpoint)
    description, arrays = saved_form(classifier)
    exported = (workdir / EXPORTED).exists()
    results = recorded_results(workdir, classifier.logits_fn, checkpoint=checkpoint)
    facts = Facts(
        description,
        parameter_count(arrays),
        license=license,
        results=results,
        config=None if exported else read_run(workdir).config,
    )
    write_exported(out, description, arrays, texts=card_files(facts))


def export_torch(path, out, *, license: str = UNKNOWN, **options) -> dict:
    """Write the model of a file of PyTorch weights into the new folder `out`.

    Return its description. The `options` are those of `read_model`.
    """
    out = new_folder(out)
    description, arrays = read_model(path, **options)
    facts = Facts(description, parameter_count(arrays), license=license)
    write_exported(out, description, arrays, texts=card_files(facts))
    return description


def main(argv):
    given = _parse(argv[1:])
    repository, dry_run = given.pop("push", None), given.pop("dry_run", False)
    if repository is not None:
        check_repository(repository)
        client = None if dry_run else hub()
    if "workdir" in given:
        export_run(**given)
    else:
        ignore = tuple(filter(None, given.pop("ignore", "").split(",")))
        path = given.pop("torch")
        found = export_torch(path, **given, ignore=ignore)
        print(f"{path}: {_summary(found)}")
    print(f"written to {given['out']}")
    if repository is not None:
        folder = as_path(given["out"])
        if dry_run:
            print(plan(folder, repository))
        else:
            print(f"pushed to {push(folder, repository, client)}")


def _summary(description):
    """Return which network a description is of, and the images that it takes."""
    sides = " x ".join(map(str, description["image_shape"]))
    mean, std = (",".join(map(str, description[each])) for each in ("mean", "std"))
    return (
        f"{description['model']}, {description['num_classes']} classes, images {sides}, "
        f"mean {mean}, std {std}"
    )


def _parse(arguments):
    """Return {option: value} of the command line, complete for one of the two uses."""
    given = vars(_parser().parse_args(arguments))
    given = {name: value for name, value in given.items() if value is not None}
    if ("workdir" in given) == ("torch" in given):
        raise InputError("give either --workdir, a run, or --torch, a file of weights")
    fitting = (*(_OF_RUN if "workdir" in given else _OF_TORCH), *_OF_BOTH)
    for name in given:
        if name not in fitting:
            raise InputError(f"--{name} does not go with --{fitting[0]}")
    if "dry_run" in given and "push" not in given:
        raise InputError("--dry_run goes with --push")
    return given


def _parser():
    parser = Parser("freeadv_jax.export", __doc__)
    add = parser.add_argument
    add("--out", metavar="DIR", required=True, help="the new folder to write")
    add("--workdir", metavar="RUN", help="the run folder; default: --torch is given")
    add(
        "--checkpoint",
        choices=("last", "best"),
        help="the newest, or the best by robust validation accuracy; default: last",
    )
    add(
        "--torch",
        metavar="FILE",
        help="the PyTorch weights, or robustbench:NAME; default: --workdir is given",
    )
    of_file = "default: that of FILE"
    add(
        "--model",
        metavar="NAME",
        help=f"one of {', '.join(TORCH_MODELS)}; {of_file}",
    )
    add("--num_classes", type=count, metavar="N", help=f"classes; {of_file}")
    add(
        "--image_shape",
        type=_image_shape,
        metavar="H,W,C",
        help="height, width and channels of an image; default: 32,32 for networks of "
        "CIFAR, 224,224 for those of ImageNet, and the channels of FILE",
    )
    add(
        "--mean",
        type=numbers,
        metavar="A,B",
        help=f"mean of the pixels in [0, 1], one number or one a channel; {of_file}",
    )
    add(
        "--std",
        type=numbers,
        metavar="A,B",
        help=f"deviation of the pixels, likewise; {of_file}",
    )
    add(
        "--key",
        metavar="NAME",
        help="the name of the state_dict in a file that holds several; default: the only "
        "one",
    )
    add(
        "--ignore",
        metavar="NAME,...",
        help="tensors to leave out; * stands for any characters; default: none",
    )
    add(
        "--license",
        metavar="NAME",
        help="the licence of the weights for the model card, such as apache-2.0 or mit; "
        f"default: {UNKNOWN}",
    )
    add(
        "--push",
        metavar="OWNER/NAME",
        help="also upload DIR to this repository of the Hugging Face hub; default: no",
    )
    add(
        "--dry_run",
        action="store_const",
        const=True,
        help="show what --push would send, and send nothing; default: no",
    )
    return parser


def _image_shape(text):
    sides = text.split(",")
    if len(sides) != 3 or not all(side.strip().isdecimal() for side in sides):
        raise argparse.ArgumentTypeError(
            f"{text!r}: must be three whole numbers, such as 224,224,3"
        )
    return tuple(map(int, sides))


def run():
    """Run the command, as the console script does."""
    run_command(main)


if __name__ == "__main__":
    run()
