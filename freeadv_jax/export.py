"""Write a trained model as safetensors and JSON, from a run or from PyTorch.

    freeadv-export --workdir=RUN --out=DIR [--checkpoint=best]
    freeadv-export --torch=FILE --model=resnet-50 --num_classes=1000
        --image_shape=224,224,3 --mean=0.485,0.456,0.406 --std=0.229,0.224,0.225
        --out=DIR [--ignore=NAME,...]

`python -m freeadv_jax.export` is the same command. FILE is a PyTorch state_dict, as
.safetensors or as torch.save writes it. A tensor that the model does not know is an error
unless --ignore names it. `freeadv_jax.load(DIR)` returns the model.
"""

import argparse

from freeadv_jax.command import Parser, count, numbers, run_command
from freeadv_jax.errors import InputError
from freeadv_jax.runs.load import load
from freeadv_jax.weights.exported import TORCH_MODELS, import_torch, new_folder

_OF_RUN = ("workdir", "checkpoint")
_OF_TORCH = ("torch", "model", "num_classes", "image_shape", "mean", "std", "ignore")
_OPTIONAL = ("checkpoint", "ignore")


def export_run(workdir, out, *, checkpoint: str = "last") -> None:
    """Write the 'last' or 'best' model of a run into the new folder `out`."""
    out = new_folder(out)
    load(workdir, checkpoint=checkpoint).save(out)


def main(argv):
    given = _parse(argv[1:])
    if "workdir" in given:
        export_run(**given)
    else:
        ignore = tuple(filter(None, given.pop("ignore", "").split(",")))
        import_torch(given.pop("torch"), **given, ignore=ignore)
    print(f"written to {given['out']}")


def _parse(arguments):
    """Return {option: value} of the command line, complete for one of the two uses."""
    given = vars(_parser().parse_args(arguments))
    given = {name: value for name, value in given.items() if value is not None}
    if ("workdir" in given) == ("torch" in given):
        raise InputError("give either --workdir, a run, or --torch, a file of weights")
    fitting = (*(_OF_RUN if "workdir" in given else _OF_TORCH), "out")
    for name in fitting:
        if name not in (*given, *_OPTIONAL):
            raise InputError(f"--{name} is missing")
    for name in given:
        if name not in fitting:
            raise InputError(f"--{name} does not go with --{fitting[0]}")
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
        help="the PyTorch weights; default: --workdir is given",
    )
    of_torch = "required with --torch; default: none"
    add(
        "--model",
        metavar="NAME",
        help=f"one of {', '.join(TORCH_MODELS)}; {of_torch}",
    )
    add("--num_classes", type=count, metavar="N", help=f"classes; {of_torch}")
    add(
        "--image_shape",
        type=_image_shape,
        metavar="H,W,C",
        help=f"height, width and channels of an image; {of_torch}",
    )
    add(
        "--mean",
        type=numbers,
        metavar="A,B",
        help=f"mean of the pixels in [0, 1], one number or one a channel; {of_torch}",
    )
    add(
        "--std",
        type=numbers,
        metavar="A,B",
        help=f"deviation of the pixels, likewise; {of_torch}",
    )
    add(
        "--ignore",
        metavar="NAME,...",
        help="tensors to leave out; * stands for any characters; default: none",
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
