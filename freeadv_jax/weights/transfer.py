"""Variables by their paths, and given weights as the starting point of a model."""

from typing import Any

import jax
import numpy as np

from freeadv_jax.weights.tensors import fitted


def flat_variables(variables) -> dict[str, Any]:
    """Return {path: array} of a tree of variables, the parts joined by '/'."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(variables)
    }


def like_variables(variables, arrays: dict[str, Any]):
    """Return the tree of `variables` with the arrays {path: array} as its leaves."""
    leaves = [arrays[path] for path in flat_variables(variables)]
    return jax.tree.unflatten(jax.tree.structure(variables), leaves)


def transferred(variables, given, *, num_classes: int, source: str = "init"):
    """Return (variables with the arrays of `given`, paths of the last layer made new).

    `variables` are a model's fresh ones and give structure, shapes and types. `given`
    is a tree of the same paths, or {path: array}. Where `given` has another number of
    classes, the one layer whose last axis counts the `num_classes` classes keeps its
    fresh arrays; otherwise the second item is empty.

    Raise InputError, naming `source`, that lists the arrays which differ otherwise.
    """
    expected = flat_variables(variables)
    given = {path: _array(leaf) for path, leaf in flat_variables(given).items()}
    fresh = _last_layer(expected, given, num_classes)
    kept = {path: array for path, array in expected.items() if path in fresh}
    taken = fitted(source, given | kept, expected)
    return like_variables(variables, taken), fresh


def _array(leaf):
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _last_layer(expected, given, num_classes) -> tuple[str, ...]:
    """The paths of another shape, if they are one layer that differs in classes alone."""
    paths = [
        path
        for path in expected
        if path in given and given[path].shape != expected[path].shape
    ]
    shapes = [(given[path].shape, expected[path].shape) for path in paths]
    one_layer = (
        all(len(old) == len(new) > 0 and old[:-1] == new[:-1] for old, new in shapes)
        and {new[-1] for _, new in shapes} == {num_classes}
        and len({old[-1] for old, _ in shapes}) == 1
        and len({path.rpartition("/")[0] for path in paths}) == 1
    )
    return tuple(paths) if one_layer else ()
