"""Models carried out of a run, as safetensors and JSON, and in, also from PyTorch.

    python -m freeadv_jax.export --workdir=RUN --out=DIR [--checkpoint=best]
    python -m freeadv_jax.export --torch=FILE --model=resnet-50 --num_classes=1000
        --image_shape=224,224,3 --mean=0.485,0.456,0.406 --std=0.229,0.224,0.225
        --out=DIR [--ignore=NAME,...]

FILE is a PyTorch state_dict, .safetensors or what torch.save writes. Tensors that the
model does not know are refused, apart from those named by --ignore, where * stands for
any characters. `freeadv_jax.load(DIR)` is the model.
"""

import math
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
from absl import flags
from flax import traverse_util

import freeadv_jax
from freeadv_jax.command import run_command
from freeadv_jax.config import replays
from freeadv_jax.errors import InputError
from freeadv_jax.models import build_model
from freeadv_jax.record import partial_path, read_json, write_json
from freeadv_jax.run import local_path, read_run
from freeadv_jax.tensors import fitted, read_tensors, write_tensors
from freeadv_jax.torch_weights import variables_from_torch
from freeadv_jax.trained import EXPORTED, Classifier, as_classifier

TENSORS = "model.safetensors"
TORCH_MODELS = ("preact-resnet-18", "resnet-50", "resnet-101", "resnet-152")

_OF_RUN = ("workdir", "checkpoint")
_OF_TORCH = ("torch", "model", "num_classes", "image_shape", "mean", "std", "ignore")
_OPTIONAL = ("checkpoint", "ignore")


def export_run(workdir, out, *, checkpoint: str = "last") -> None:
    """Writes the 'last' or 'best' model of a run into the new folder `out`."""
    out = _new_folder(out)
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
        "freeadv_jax": freeadv_jax.__version__,
        "source": "freeadv_jax",
    }
    _write(out, description, traverse_util.flatten_dict(state.variables, sep="/"))


def import_torch(
    path, *, model: str, num_classes: int, image_shape, mean, std, out, ignore=()
) -> None:
    """Writes the model of a PyTorch state_dict into the new folder `out`.

    `image_shape` is (h, w, c); images in [0, 1] less `mean`, over `std` go into the
    network. Tensors that match a pattern of `ignore` are left out; InputError lists
    those that are unknown, missing or of another shape.
    """
    if model not in TORCH_MODELS:
        raise InputError(
            f"model {model!r} has no PyTorch form; allowed: {', '.join(TORCH_MODELS)}"
        )
    out = _new_folder(out)
    description = {
        "model": model,
        "num_classes": num_classes,
        "image_shape": list(image_shape),
        "normalization": "mean_std",
        "mean": list(mean),
        "std": list(std),
        "dtype": "float32",
        "threat": None,
        "updates": None,
        "freeadv_jax": freeadv_jax.__version__,
        "source": "pytorch",
    }
    module, shapes = _model_and_shapes(description)
    path = pathlib.Path(path).expanduser()
    tensors = variables_from_torch(path, module.network, shapes, ignore=tuple(ignore))
    _write(out, description, tensors)


def load_exported(folder) -> Classifier:
    """The model of a folder that was written here; InputError where there is none."""
    folder = pathlib.Path(folder).expanduser()
    path = folder / EXPORTED
    if not path.is_file():
        raise InputError(f"{folder} holds no exported model: there is no {path}")
    description = read_json(path)
    try:
        model, shapes = _model_and_shapes(description)
    except KeyError as fault:
        raise InputError(f"{path} is damaged: it lacks {fault}") from fault
    except (OverflowError, TypeError, ValueError) as fault:
        reason = str(fault).strip().split("\n")[0]
        raise InputError(f"{path} is damaged: {reason}") from fault
    path = folder / TENSORS
    tensors = fitted(path, read_tensors(path), shapes)
    return as_classifier(
        model,
        traverse_util.unflatten_dict(tensors, sep="/"),
        num_classes=description["num_classes"],
        image_shape=tuple(description["image_shape"]),
    )


def _model_and_shapes(description):
    """The model described, and {path: shape} of its variables."""
    classes, mean, std = (description[name] for name in ("num_classes", "mean", "std"))
    if not isinstance(classes, int) or classes < 1:
        raise InputError(f"num_classes = {classes!r}: must be a number of classes")
    if not all(math.isfinite(x) for x in (*mean, *std)) or min(std, default=0) <= 0:
        raise InputError(f"mean = {mean}, std = {std}: finite, and std above 0")
    image_shape = tuple(description["image_shape"])
    model = build_model(
        description["model"],
        num_classes=classes,
        image_shape=image_shape,
        normalization=description["normalization"],
        mean=tuple(mean),
        std=tuple(std),
        dtype=description["dtype"],
        batch_norm_axis=None,
    )
    variables = jax.eval_shape(
        lambda images: model.init(jax.random.key(0), images, train=False),
        jax.ShapeDtypeStruct((1, *image_shape), jnp.float32),
    )
    flat = traverse_util.flatten_dict(variables, sep="/")
    return model, {path: leaf.shape for path, leaf in flat.items()}


def _new_folder(out):
    out = local_path(out).resolve()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out} exists already and is not an empty folder")
    return out


def _write(out, description, tensors):
    """All of it or nothing."""
    partial = partial_path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        write_tensors(partial / TENSORS, tensors)
        write_json(partial / EXPORTED, description)
        os.rename(partial, out)  # Fails where something came to lie there meanwhile.
    except OSError as fault:
        raise InputError(f"{out} cannot be written: {fault.strerror}") from fault
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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
