"""Models carried out of a run, as safetensors and JSON, and in, also from PyTorch.

    python -m freeadv_jax.export --workdir=RUN --out=DIR [--checkpoint=best]
    python -m freeadv_jax.export --torch=FILE --model=resnet-50 --num_classes=1000
        --image_shape=224,224,3 --mean=0.485,0.456,0.406 --std=0.229,0.224,0.225
        --out=DIR [--ignore=NAME,...]

FILE is a PyTorch state_dict, .safetensors or what torch.save writes. Tensors that the
model does not know are refused, apart from those named by --ignore, where * stands for
any characters. `freeadv_jax.load(DIR)` is the model.
"""

from absl import flags
from flax import traverse_util

from freeadv_jax.command import run_command
from freeadv_jax.config import replays
from freeadv_jax.errors import InputError
from freeadv_jax.runs.folder import read_run
from freeadv_jax.version import __version__
from freeadv_jax.weights.exported import import_torch, new_folder, write_exported

_OF_RUN = ("workdir", "checkpoint")
_OF_TORCH = ("torch", "model", "num_classes", "image_shape", "mean", "std", "ignore")
_OPTIONAL = ("checkpoint", "ignore")


def export_run(workdir, out, *, checkpoint: str = "last") -> None:
    """Writes the 'last' or 'best' model of a run into the new folder `out`."""
    out = new_folder(out)
    run = read_run(workdir)
    state = run.trained_state(checkpoint)
    model, attack = run.config.model, run.config.attack
    description = {
        "model": model.name,
        "num_classes": run.num_classes,
        "image_shape": list(run.image_shape),
        "normalization": model.normalization,
        "mean": list(model.mean),
        "std": list(model.std),
        "dtype": model.dtype,
        "threat": {"norm": attack.norm, "epsilon": attack.epsilon},
        "updates": int(state.step) * replays(run.config),
        "freeadv_jax": __version__,
        "source": "freeadv_jax",
    }
    write_exported(
        out, description, traverse_util.flatten_dict(state.variables, sep="/")
    )


def main(argv):
    if {"--help", "-h"} & set(argv):
        print(__doc__)
        return
    given = _parse(argv)
    if "workdir" in given:
        export_run(**given)
    else:
        numbers = {
            "num_classes": _numbers(given, "num_classes", int, 1)[0],
            "image_shape": _numbers(given, "image_shape", int, 3),
            "mean": _numbers(given, "mean", float),
            "std": _numbers(given, "std", float),
            "ignore": tuple(filter(None, given.get("ignore", "").split(","))),
        }
        import_torch(given.pop("torch"), **given | numbers)
    print(f"written to {given['out']}")


def _parse(argv):
    """{flag: text} of what the command line gives, complete for one of the two uses."""
    values = flags.FlagValues()
    for name in (*_OF_RUN, *_OF_TORCH, "out"):
        flags.DEFINE_string(name, None, "", flag_values=values)
    try:
        rest = values(argv)[1:]
    except flags.UnrecognizedFlagError as fault:
        allowed = ", ".join(f"--{name}" for name in (*_OF_RUN, *_OF_TORCH, "out"))
        raise InputError(f"{fault}; allowed: {allowed}") from fault
    except flags.Error as fault:
        raise InputError(" ".join(str(fault).split())) from fault
    if rest:
        raise InputError(f"argument {rest[0]!r} is unknown; flags begin with --")
    given = {name: text for name, text in values.flag_values_dict().items() if text}
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


def _numbers(given, flag, kind, count=None):
    """The numbers, separated by commas, of a flag."""
    try:
        numbers = tuple(map(kind, given[flag].split(",")))
    except ValueError:
        numbers = ()
    if not numbers or len(numbers) != (count or len(numbers)):
        raise InputError(
            f"--{flag}={given[flag]}: must be {count or 'comma-separated'} "
            f"{'whole ' if kind is int else ''}number{'' if count == 1 else 's'}"
        )
    return numbers


if __name__ == "__main__":
    run_command(main)
