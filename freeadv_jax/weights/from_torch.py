"""Models from files of PyTorch weights: which network it is, and its normalisation."""

import fnmatch
from collections.abc import Iterable, Sequence

import numpy as np

from freeadv_jax.errors import InputError, shortened
from freeadv_jax.files import AnyPath, as_path
from freeadv_jax.version import __version__
from freeadv_jax.weights.exported import described_model
from freeadv_jax.weights.layouts import LAYOUTS, layouts_of, nearest, usual_side
from freeadv_jax.weights.tensors import Arrays, misfits, require_fit
from freeadv_jax.weights.torch import read_state
from freeadv_jax.weights.zoo import fetched, find_entry, is_zoo_name

Numbers = float | Sequence[float]

_SUFFIXES = (".pt", ".pth", ".ckpt", ".tar", ".bin", ".npy", ".safetensors")
# Where a normalisation layer or the network itself keeps its mean, there is its deviation.
_DEVIATIONS = {"mean": "std", "mu": "sigma", "new_mean": "new_std", "means": "sds"}
# A mean of more numbers is no mean of the channels.
_MOST_CHANNELS = 4


def is_weights_file(path: AnyPath) -> bool:
    """Return whether `path` is a file of weights, or is called as one and is missing.

    The name of an entry of the zoo, 'robustbench:NAME', stands for its file.
    """
    missing = path.suffix in _SUFFIXES and not path.exists()
    return is_zoo_name(path) or path.is_file() or missing


def read_model(
    path,
    *,
    model: str | None = None,
    num_classes: int | None = None,
    image_shape: tuple[int, ...] | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    key: str | None = None,
    ignore: Iterable[str] = (),
) -> tuple[dict, dict[str, np.ndarray]]:
    """Return the description and {path: array} of the model in a file of PyTorch weights.

    `path` may be the name of an entry of the zoo, 'robustbench:NAME'. `model` is one of our
    networks, `image_shape` is (h, w, c), and the network takes (images - mean) / std of
    images in [0, 1]. All are those of the entry, or read off the tensors, where they are
    not given; where the tensors do not show height and width, they are 32 for networks of
    CIFAR and 224 for those of ImageNet. `key` and the file are those of `read_state`.
    Tensors whose names match a pattern of `ignore` are left out.

    Raise InputError where no network fits, with the nearest one and the tensors that
    differ; where several fit, which compute different logits; and where the mean and std
    are unknown.
    """
    path = as_path(path)
    entry = find_entry(str(path)) if is_zoo_name(path) else None
    if entry:
        model, key = model or entry.model, key or entry.key
        num_classes = num_classes or entry.num_classes
    if image_shape is not None and len(image_shape) != 3:
        raise InputError(
            f"image_shape is {image_shape}: must be (height, width, channels)"
        )
    given = {"mean": _numbers(mean), "std": _numbers(std)}
    if model is not None:
        # A mistake in what is given is answered before a large file is read.
        layouts_of(model)
        side = usual_side(model)
        described_model(
            _description(
                model,
                num_classes or 10,
                image_shape or (side, side, 3),
                given["mean"] or (0.0,),
                given["std"] or (1.0,),
            )
        )
    file = fetched(entry) if entry else None
    path = file.path if file else path
    tensors, match, normalizations = _read(
        path, model, num_classes, image_shape, key, ignore
    )
    if entry and not normalizations:
        named = {"mean": _numbers(entry.mean), "std": _numbers(entry.std)}
        given = {field: given[field] or named[field] for field in given}
    if len(match.models) > 1:
        raise InputError(
            f"{path} fits {' and '.join(match.models)}, whose tensors are alike and whose "
            "logits differ: name the model"
        )
    description = _description(
        match.models[0],
        match.num_classes,
        match.image_shape,
        *_normalization(path, normalizations, given),
    )
    described_model(description)
    if file:
        description |= {"threat": file.entry.attack, "origin": file.origin()}
        file.remember()
    return description, match.variables(tensors)


def read_variables(
    path: AnyPath, *, key: str | None = None
) -> tuple[dict[str, np.ndarray], list[tuple]]:
    """Return {path: array} of the network in a file, and its normalisations.

    The file holds PyTorch weights; its normalisations are [(mean, std)], often none.
    `path` may be the name of an entry of the zoo. Raise InputError as `read_model` does.
    """
    if not is_zoo_name(path):
        tensors, match, normalizations = _read(path, None, None, None, key, ())
        return match.variables(tensors), normalizations
    entry = find_entry(str(path))
    file = fetched(entry)
    tensors, match, normalizations = _read(
        file.path, entry.model, entry.num_classes, None, key or entry.key, ()
    )
    file.remember()
    named = (_numbers(entry.mean), _numbers(entry.std))
    return match.variables(tensors), normalizations or [named]


def _read(path, model, num_classes, image_shape, key, ignore):
    """Return the tensors, the `Match` that they fit, and [(mean, std) stored in them]."""
    patterns = (ignore,) if isinstance(ignore, str) else tuple(ignore)
    tensors = _without(patterns, path, read_state(path, key=key))
    if any(name.startswith("params/") for name in tensors):
        raise InputError(
            f"{path} is of an exported folder, not of PyTorch; allowed: the folder"
        )
    match = nearest(
        tensors,
        model=model,
        num_classes=num_classes,
        image_shape=image_shape and tuple(image_shape),
    )
    if match is None:
        raise InputError(
            f"{path} fits no known network; it holds "
            f"{shortened([*tensors], most=4) or 'no tensors'}; "
            f"known are the names of {', '.join(dict.fromkeys(x.title for x in LAYOUTS))}"
        )
    fault = f"{path} does not fit the model"
    if model is None:
        fault = (
            f"{path} fits no known network; the nearest is {match.models[0]} in the names "
            f"of {match.layout.title}"
        )
    rest = {name: x for name, x in tensors.items() if name not in match.expected}
    rest = _without_copies(rest, match, tensors)
    rest, normalizations = _without_normalizations(rest)
    known = {name: x for name, x in tensors.items() if name in match.expected}
    require_fit(fault, misfits(rest | known, match.expected))
    return tensors, match, normalizations


def _description(model, num_classes, image_shape, mean, std):
    return {
        "model": model,
        "num_classes": num_classes,
        "image_shape": list(image_shape),
        "normalization": "mean_std",
        "mean": list(mean),
        "std": list(std),
        "dtype": "float32",
        "threat": None,
        "updates": None,
        "freeadv_jax": __version__,
        "source": "pytorch",
    }


def _without(ignore, path, tensors):
    """Return `tensors` without those that `ignore` and PyTorch's counters name."""
    for pattern in ignore:
        if not fnmatch.filter(tensors, pattern):
            raise InputError(f"{path} holds no tensor {pattern!r} to ignore")
    return {
        name: array
        for name, array in tensors.items()
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in ignore)
        and name.split(".")[-1] != "num_batches_tracked"
    }


def _without_copies(rest, match, tensors):
    """Return `rest` without tensors that the network does not use.

    They are those that its code stores for nothing, and copies: an attack of MadryLab's
    library holds the network a second time.
    """
    unused = match.layout.unused and match.prefix + match.layout.unused
    stems = {name.removeprefix(match.prefix): name for name in match.expected}

    def is_copy(name):
        parts = name.split(".")
        ends = (".".join(parts[start:]) for start in range(1, len(parts)))
        original = next((stems[end] for end in ends if end in stems), None)
        return original in tensors and np.array_equal(tensors[original], rest[name])

    return {
        name: array
        for name, array in rest.items()
        if not (unused and name.startswith(unused)) and not is_copy(name)
    }


def _without_normalizations(rest: Arrays):
    """Return `rest` without means and deviations, and these as [(mean, std)] in tuples."""
    taken, pairs = set(), []
    for name in rest:
        parent, dot, leaf = name.rpartition(".")
        partner = f"{parent}{dot}{_DEVIATIONS.get(leaf)}"
        sizes = [np.size(rest.get(each, ())) for each in (name, partner)]
        if leaf in _DEVIATIONS and 0 < min(sizes) and max(sizes) <= _MOST_CHANNELS:
            taken |= {name, partner}
            pairs.append((_plain(rest[name]), _plain(rest[partner])))
    return {name: x for name, x in rest.items() if name not in taken}, pairs


def _plain(array):
    """The numbers of an array, float32(0.4914) as 0.4914."""
    return tuple(float(str(np.float32(x))) for x in np.ravel(array))


def _normalization(path, stored, given):
    """Return the mean and the std, stored or given; InputError unless they are known."""
    named = {
        "mean": list(dict.fromkeys(mean for mean, _ in stored)),
        "std": list(dict.fromkeys(std for _, std in stored)),
    }
    found = []
    for field, values in named.items():
        values += [given[field]] if given[field] and given[field] not in values else []
        if not values:
            raise InputError(
                f"{path} holds no mean and std of the pixels: give them, 0 and 1 for a "
                "network that takes pixels in [0, 1] as they are"
            )
        if len(values) > 1:
            raise InputError(
                f"{path}: the {field} is {' or '.join(map(str, values))}; ignore the "
                "tensors that hold another one"
            )
        found.append(values[0])
    mean, std = found
    if not all(abs(x) <= 1 for x in mean) or not all(0 < x <= 1 for x in std):
        raise InputError(
            f"{path}: mean = {list(mean)}, std = {list(std)}: must be of pixels in [0, 1], "
            "and std above 0"
        )
    return mean, std


def _numbers(values):
    """A number or several as a tuple; None as it is."""
    return None if values is None else tuple(map(float, np.ravel(values)))
