"""IBP and CROWN in float64 on dense matrices, written from the papers.

A network is a list of layers: `Affine` sums matrices times earlier values, `ReLU` is applied
to one of them; value 0 is the flattened image and layer i gives value i + 1. Sources: Gowal
et al. 2018, section 3; Zhang et al. 2018, theorem 3.2 and section 3.3.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass
class Affine:
    """The sum of matrices [m, n_i] times values i, plus a bias [m]."""

    matrices: dict
    bias: np.ndarray


@dataclasses.dataclass
class ReLU:
    """max(value, 0)."""

    source: int


def ibp(layers, box, margin):
    """Return lower bounds of `margin` [k, logits] times the last value."""
    intervals = forward(layers, box)
    return concretized(layers, len(layers), margin, intervals, until=relus(layers))


def forward(layers, box, known=None):
    """Return the interval of each value by interval arithmetic, or what is known of it."""
    known, intervals = known or {}, [box]
    for value, layer in enumerate(layers, start=1):
        if value in known:
            intervals.append(known[value])
            continue
        if isinstance(layer, ReLU):
            low, high = intervals[layer.source]
            intervals.append((np.maximum(low, 0), np.maximum(high, 0)))
            continue
        middle, radius = layer.bias, 0
        for source, matrix in layer.matrices.items():
            low, high = intervals[source]
            middle = middle + matrix @ ((low + high) / 2)
            radius = radius + np.abs(matrix) @ ((high - low) / 2)
        intervals.append((middle - radius, middle + radius))
    return intervals


def crown(layers, box, margin, minimum, *, intermediate="crown"):
    """Return lower bounds of `margin` times the last value.

    `minimum` maps rows [m, n] to their minimum over the ball. Entries that interval
    arithmetic from the bounds before them already leaves on one side of a ReLU keep those
    bounds, because no tighter ones change its planes.
    """
    if intermediate == "ibp":
        intervals = dict(enumerate(forward(layers, box)))
        return backward(layers, len(layers), margin, intervals, minimum)
    intervals, known = {}, {}
    for layer in layers:
        if not isinstance(layer, ReLU):
            continue
        target = summed(layers, layer.source)
        found = forward(layers, box, known)
        low, high = found[layer.source]
        undecided = (low <= 0) & (high >= 0)
        rows = np.eye(len(undecided))
        low = backward(layers, target, rows, intervals, minimum)
        high = -backward(layers, target, -rows, intervals, minimum)
        known[target] = tuple(
            np.where(undecided, tight, loose)
            for tight, loose in zip((low, high), found[target])
        )
        intervals[layer.source] = forward(layers, box, known)[layer.source]
    return backward(layers, len(layers), margin, intervals, minimum)


def summed(layers, value):
    """Return the last sum before a value: scaling each entry for itself is none."""
    layer = layers[value - 1]
    if value and isinstance(layer, Affine) and len(layer.matrices) == 1:
        ((source, matrix),) = layer.matrices.items()
        square = matrix.shape[0] == matrix.shape[1]
        if square and np.array_equal(matrix, np.diag(np.diag(matrix))):
            return summed(layers, source)
    return value


def backward(layers, target, rows, intervals, minimum):
    """Return lower bounds of `rows` times a value, by planes down to the image."""
    at, constant = {target: rows}, np.zeros(len(rows))
    for value in range(target, 0, -1):
        if value not in at:
            continue
        here, layer = at.pop(value), layers[value - 1]
        if isinstance(layer, Affine):
            constant = constant + here @ layer.bias
            for source, matrix in layer.matrices.items():
                at[source] = at.get(source, 0) + here @ matrix
            continue
        low, high = intervals[layer.source]
        both = (low < 0) & (high > 0)
        upper = np.where(both, high / np.where(both, high - low, 1), low >= 0)
        shift = np.where(both, -upper * low, 0)
        lower = np.where(both, high > -low, low >= 0)
        up, down = np.maximum(here, 0), np.minimum(here, 0)
        constant = constant + down @ shift
        at[layer.source] = at.get(layer.source, 0) + up * lower + down * upper
    return constant + minimum(at[0])


def concretized(layers, target, rows, intervals, *, until):
    """Return lower bounds through affine layers alone, from the values `until`."""
    at, constant = {target: rows}, np.zeros(len(rows))
    for value in range(target, 0, -1):
        if value in until or value not in at:
            continue
        here, layer = at.pop(value), layers[value - 1]
        constant = constant + here @ layer.bias
        for source, matrix in layer.matrices.items():
            at[source] = at.get(source, 0) + here @ matrix
    for value, here in at.items():
        low, high = intervals[value]
        constant = constant + np.maximum(here, 0) @ low + np.minimum(here, 0) @ high
    return constant


def relus(layers):
    """Return the numbers of the values that ReLU gives."""
    return {i + 1 for i, layer in enumerate(layers) if isinstance(layer, ReLU)}


def pixel_box(image, epsilon):
    """Return the box around the ball, cut with [0, 1]."""
    return np.maximum(image - epsilon, 0), np.minimum(image + epsilon, 1)


def minimum_of(norm, image, epsilon):
    """Return the function from rows to their minimum over ball and box."""
    if norm == "linf":
        low, high = pixel_box(image, epsilon)
        return lambda rows: np.maximum(rows, 0) @ low + np.minimum(rows, 0) @ high

    def minimum(rows):
        # The best point is -t * row cut by the box, with the length epsilon.
        found = []
        for row in rows:
            small, large = 0.0, 1e9
            for _ in range(200):
                middle = (small + large) / 2
                shift = np.clip(-middle * row, -image, 1 - image)
                inside = np.linalg.norm(shift) <= epsilon
                small, large = (middle, large) if inside else (small, middle)
            found.append(row @ (image + np.clip(-small * row, -image, 1 - image)))
        return np.array(found)

    return minimum


def convolution_matrix(kernel, shape, *, stride, padding):
    """Return the matrix of a convolution [kh, kw, c, f] on images [h, w, c], and its shape.

    `padding` is ((top, bottom), (left, right)).
    """
    (kh, kw, c, f), (h, w, _) = kernel.shape, shape
    sides = [
        (size + sum(pad) - k) // stride + 1
        for size, pad, k in zip((h, w), padding, (kh, kw))
    ]
    matrix = np.zeros((*sides, f, h, w, c))
    for y, x, i, j in np.ndindex(*sides, kh, kw):
        row, column = y * stride + i - padding[0][0], x * stride + j - padding[1][0]
        if 0 <= row < h and 0 <= column < w:
            matrix[y, x, :, row, column, :] += kernel[i, j].T
    return matrix.reshape(sides[0] * sides[1] * f, -1), (*sides, f)


def pooling_matrix(shape, window):
    """Return the matrix of average pooling without overlap, and the new shape."""
    h, w, c = shape
    after = h // window, w // window, c
    matrix = np.zeros((*after, h, w, c))
    for row, column, channel in np.ndindex(h, w, c):
        matrix[row // window, column // window, channel, row, column, channel] = (
            1 / window**2
        )
    return matrix.reshape(after[0] * after[1] * c, -1), after
