"""Given weights as the starting point of a model."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from freeadv_jax.errors import InputError, shortened


def flat_variables(variables) -> dict[str, Any]:
    """Return {path: array} of a tree of variables, the parts joined by '/'."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(variables)
    }


def transferred(variables, given, *, num_classes: int, source: str = "init"):
    """Return (variables with the arrays of `given`, paths of the last layer made new).

    `variables` are a model's fresh ones and give structure, shapes and types. `given`
    is a tree of the same paths, or {path: array}. Where `given` has another number of
    classes, the one layer whose last axis counts the `num_classes` classes keeps its
    fresh arrays; otherwise the second item is empty.

    Raise InputError, naming `source`, that lists the arrays which differ otherwise.
    """
    expected, given = flat_variables(variables), flat_variables(given)
    common = [path for path in expected if path in given]
    reshaped = [
        path for path in common if np.shape(given[path]) != expected[path].shape
    ]
    fresh = (
        tuple(reshaped) if _last_layer(expected, given, reshaped, num_classes) else ()
    )
    misfits = {
        "unknown": [
            f"{path} {list(np.shape(array))}"
            for path, array in given.items()
            if path not in expected
        ],
        "missing": [
            f"{path} {list(array.shape)}"
            for path, array in expected.items()
            if path not in given
        ],
        "of another shape": [
            f"{path} {list(np.shape(given[path]))} instead of "
            f"{list(expected[path].shape)}"
            for path in reshaped
            if path not in fresh
        ],
    }
    lists = [f"{kind}: {shortened(names)}" for kind, names in misfits.items() if names]
    if lists:
        raise InputError(f"{source} does not fit the model; {'; '.join(lists)}")
    leaves = [
        array if path in fresh else jnp.asarray(given[path], array.dtype)
        for path, array in expected.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(variables), leaves), fresh


def _last_layer(expected, given, paths, num_classes):
    """Whether the arrays at `paths` are one layer, different in its classes alone."""
    shapes = [(np.shape(given[path]), expected[path].shape) for path in paths]
    return (
        all(len(old) == len(new) > 0 and old[:-1] == new[:-1] for old, new in shapes)
        and {new[-1] for _, new in shapes} == {num_classes}
        and len({old[-1] for old, _ in shapes}) == 1
        and len({path.rpartition("/")[0] for path in paths}) == 1
    )
