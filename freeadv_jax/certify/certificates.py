"""Certificates: lower bounds of every margin of a model on the ball around each image."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from freeadv_jax.certify.ball import BALLS
from freeadv_jax.certify.bounds import Bounds
from freeadv_jax.certify.curves import enclosing_lines
from freeadv_jax.certify.graph import trace
from freeadv_jax.devices import parallel
from freeadv_jax.devices.parallel import REPLICATED, SPLIT
from freeadv_jax.errors import InputError, require_choice
from freeadv_jax.models.user_model import arrays_as_leaves, check_model
from freeadv_jax.pixels import Numbers, as_array, check_images, check_labels, unit_range

INTERMEDIATE = ("crown", "ibp")


class Certificates(NamedTuple):
    """Hold what is certain about n images and every perturbation of the ball.

    margins    f32[n, k]: lower bounds of the logit of the label minus that of each class.
               The entry of the label itself is infinity; -infinity says that nothing is
               known.
    certified  bool[n]: all margins are above 0, so the class is the label everywhere in the
               ball.
    """

    margins: np.ndarray
    certified: np.ndarray


@dataclasses.dataclass(frozen=True)
class Method:
    """Define a bound: 'interval', 'crown' or 'alpha-crown', with its settings."""

    name: str
    intermediate: str = "ibp"
    rows: int = 64
    steps: int = 0
    step_size: float = 0.0

    @property
    def is_backward(self) -> bool:
        """Whether arrays within the model are bounded backward."""
        return self.name != "interval" and self.intermediate == "crown"


def interval(
    logits_fn: Callable,
    images: Numbers,
    labels: Numbers,
    *,
    norm: str = "linf",
    epsilon: float,
    batch_size: int = 128,
) -> Certificates:
    """Bound the margins by interval bound propagation (Gowal et al. 2018).

    This costs about two forward passes, and is loose unless the model was trained for it.
    The last affine part of the model is combined with the margins.

    Args:
        logits_fn: as for `crown`.
        images: as for `crown`.
        labels: n classes, of any integer type or as a list.
        norm: 'linf' or 'l2'. A ball of L2 is replaced by the box around it, except for a
            model that is affine.
        epsilon: the radius of the ball in [0, 1] pixels, such as `8 / 255`.
        batch_size: the images bounded at a time.

    Returns:
        `Certificates`.

    Raises:
        InputError: as `crown` does.
    """
    how = {"norm": norm, "epsilon": epsilon, "batch_size": batch_size}
    return _certificates(Method("interval"), logits_fn, images, labels, **how)


def crown(
    logits_fn: Callable,
    images: Numbers,
    labels: Numbers,
    *,
    norm: str = "linf",
    epsilon: float,
    intermediate: str = "crown",
    rows: int = 64,
    batch_size: int = 16,
) -> Certificates:
    """Bound the margins by linear functions of the image (CROWN, Zhang et al. 2018).

    Every array before a nonlinear function is bounded too, and decides which lines enclose
    the function. Entries that interval arithmetic from the bounds before them already leaves
    on one side of a ReLU keep these, and no rows are traced for them. Memory beside the
    weights is about four arrays of 8 * rows * n bytes for each image at a time, with n the
    units of the largest layer. On a CPU one image is bounded at a time on each device,
    elsewhere `batch_size` on all devices together. Time grows with the square of the number
    of layers.

    The bounds hold for the model as float32 computes it: each is lowered by an allowance
    for rounding, gamma(n) = n u / (1 - n u) times the sum of the absolute values that are
    added, with n the number of terms and u = 2**-24, for the model and again for the bound.

    Args:
        logits_fn: maps images f32[b, h, w, c] in [0, 1] to logits [b, k], each image by
            itself, with its normalisation inside. It may be any function that JAX can
            trace, as for `freeadv_jax.robust_accuracy`. It is read for one image.
        images: [n, h, w, c], uint8 or floats in [0, 1].
        labels: n classes, of any integer type or as a list.
        norm: 'linf' or 'l2'. The ball is cut with the pixel box [0, 1].
        epsilon: the radius of the ball in [0, 1] pixels, such as `8 / 255`.
        intermediate: how arrays within the model are bounded: 'crown', or 'ibp', which is
            faster and looser (CROWN-IBP, Zhang et al. 2020).
        rows: the entries of an array within the model that are bounded at a time. It
            bounds the memory and does not change the result.
        batch_size: the images handed over at a time.

    Returns:
        `Certificates`.

    Raises:
        InputError: for unusable images, labels, settings or logits; for a model that has a
            primitive without a rule, named in the message, or computes in 16 bits.
    """
    method = Method("crown", intermediate=intermediate, rows=rows)
    how = {"norm": norm, "epsilon": epsilon, "batch_size": batch_size}
    return _certificates(method, logits_fn, images, labels, **how)


def alpha_crown(
    logits_fn: Callable,
    images: Numbers,
    labels: Numbers,
    *,
    norm: str = "linf",
    epsilon: float,
    steps: int = 20,
    step_size: float = 0.1,
    intermediate: str = "crown",
    rows: int = 64,
    batch_size: int = 16,
) -> Certificates:
    """Bound the margins by CROWN with optimised slopes (alpha-CROWN, Xu et al. 2021).

    The slope of each line below a ReLU or another piecewise linear function is free. For
    each margin these slopes are optimised with Adam, and the best bound counts, so no
    margin is below that of `crown`. Bounds within the model stay those of `crown`.

    Args:
        logits_fn: as for `crown`.
        images: as for `crown`.
        labels: n classes, of any integer type or as a list.
        norm: 'linf' or 'l2'.
        epsilon: the radius of the ball in [0, 1] pixels, such as `8 / 255`.
        steps: the number of Adam's steps.
        step_size: the size of a step; a slope is a number between 0 and 1.
        intermediate: as for `crown`.
        rows: as for `crown`.
        batch_size: the images bounded at a time.

    Returns:
        `Certificates`.

    Raises:
        InputError: as `crown` does.
    """
    if steps < 1:
        raise InputError(f"steps = {steps}: must be 1 or more")
    if not step_size > 0:
        raise InputError(f"step_size = {step_size}: must be above 0")
    method = Method("alpha-crown", intermediate, rows, steps, float(step_size))
    how = {"norm": norm, "epsilon": epsilon, "batch_size": batch_size}
    return _certificates(method, logits_fn, images, labels, **how)


def _certificates(method, logits_fn, images, labels, *, norm, epsilon, batch_size):
    require_choice("norm", norm, BALLS)
    require_choice("intermediate", method.intermediate, INTERMEDIATE)
    for name, count in {"rows": method.rows, "batch_size": batch_size}.items():
        if count < 1:
            raise InputError(f"{name} = {count}: must be 1 or more")
    if not 0 <= epsilon < np.inf:
        raise InputError(
            f"epsilon = {epsilon}: must be 0 or more, in [0, 1] pixels: eight of 255 levels "
            "are 8 / 255"
        )
    images, labels = (np.asarray(as_array(values)) for values in (images, labels))
    check_images(images, labels, raw=True)
    check_labels(labels, check_model(logits_fn, images[:1]))
    bound = MarginBounds(
        method, arrays_as_leaves(logits_fn), norm, epsilon, min(batch_size, len(images))
    )
    images, labels = unit_range(images), labels.astype(np.int32)
    starts = range(0, len(images), bound.batch_size)
    parts = [slice(start, start + bound.batch_size) for start in starts]
    bounds = np.concatenate([bound(images[part], labels[part]) for part in parts])
    return Certificates(bounds, is_certain(bounds))


def is_certain(margins: Float[np.ndarray, "n k"]) -> Bool[np.ndarray, " n"]:
    """Return whether all margins of an image are above 0."""
    return (margins > 0).all(axis=-1)


class MarginBounds:
    """Bound the margins of one model, a batch at a time, on all devices.

    `logits_fn` is checked, and a callable pytree hands over its arrays, so that another
    one of the same structure compiles nothing. `batch_size` is rounded up to a multiple of
    the devices.
    """

    def __init__(
        self,
        method: Method,
        logits_fn: Callable,
        norm: str,
        epsilon: float,
        batch_size: int,
    ):
        if jax.tree_util.all_leaves([logits_fn]):
            logits_fn = jax.tree_util.Partial(logits_fn)
        weights, structure = jax.tree.flatten(logits_fn)
        self.batch_size = parallel.multiple_of_devices(batch_size)
        self._weights = parallel.place(weights, REPLICATED)
        self._epsilon = epsilon
        # A function without weights of its own is traced in every call, because the arrays
        # that it captures may have changed since.
        program = _program if weights else _program.__wrapped__
        self._program = program(method, norm, structure)

    def __call__(
        self, images: Float[np.ndarray, "b h w c"], labels: Int[np.ndarray, " b"]
    ) -> Float[np.ndarray, "b k"]:
        """Return lower bounds of the margins, in the float type of `images`.

        Nothing is checked; see `Certificates.margins`. There are at most `batch_size`
        images.
        """
        # A batch is filled up, because another size would compile again.
        filled = np.minimum(np.arange(self.batch_size), len(images) - 1)
        batch = parallel.place((images[filled], labels[filled]), SPLIT)
        radius = parallel.place(np.asarray(self._epsilon, images.dtype), REPLICATED)
        # A matrix product may have fewer bits than its type on GPU and TPU.
        with jax.default_matmul_precision("highest"):
            found = self._program(self._weights, *batch, radius)
        return parallel.fetch(found)[: len(images)]


@functools.lru_cache(maxsize=32)
def _program(method, norm, structure):
    """Return the program for all models of one structure."""

    def margins(weights, images, labels, epsilon):
        logits_fn = structure.unflatten(weights)

        def of_one(image, label):
            return _margins_of_one(method, norm, logits_fn, image, label, epsilon)

        # On a CPU the rows of one image fill the cores, and each image stops where its own
        # rows end.
        if jax.default_backend() == "cpu" and method.is_backward:
            return lax.map(lambda each: of_one(*each), (images, labels))
        return jax.vmap(of_one)(images, labels)

    inputs = REPLICATED, SPLIT, SPLIT, REPLICATED
    return parallel.pmap(margins, inputs=inputs, outputs=SPLIT)


def _margins_of_one(method, norm, logits_fn, image, label, epsilon):
    graph = trace(logits_fn, image)
    bounds = Bounds(
        graph,
        BALLS[norm](image, epsilon),
        backward=method.is_backward,
        rows=method.rows,
    )
    # logits[label] - logits[k], as a matrix times the logits.
    identity = jnp.eye(graph.output.entries, dtype=graph.output.dtype)
    rows = identity[label] - identity
    if method.name == "alpha-crown":
        found = _optimised(bounds, rows, method)
    else:
        found = bounds.lower(rows, forward=method.name == "interval")
    known = jnp.isfinite(found) & bounds.are_finite()
    found = jnp.where(known, found, -jnp.inf)
    return jnp.where(identity[label] > 0, jnp.inf, found)


def _optimised(
    bounds: Bounds, rows: Float[Array, "k k"], method: Method
) -> Float[Array, " k"]:
    """Return the best bounds over the slopes that Adam visits, CROWN's slopes first."""
    nodes = bounds.piecewise()
    known = [[bounds.interval(each) for each in node.inputs] for node in nodes]
    lines = [
        enclosing_lines(node.curve, *intervals)[1]
        for node, intervals in zip(nodes, known)
    ]
    shares = [
        jnp.broadcast_to(node.starting_share(*intervals), (len(rows), *node.shape))
        for node, intervals in zip(nodes, known)
    ]

    def lower(shares):
        changed = {
            node: node.relaxation_with(share, line, intervals)
            for node, share, line, intervals in zip(nodes, shares, lines, known)
        }
        found = bounds.lower(rows, forward=False, changed=changed)
        return jnp.sum(found), found

    best = bounds.lower(rows, forward=False)
    if not nodes:
        return best
    adam = optax.adam(method.step_size)

    def ascend(carry, _):
        shares, state, best = carry
        gradient, found = jax.grad(lower, has_aux=True)(shares)
        descent = jax.tree.map(jnp.negative, gradient)
        # Adam multiplies its integer count by floats.
        with jax.numpy_dtype_promotion("standard"):
            change, state = adam.update(descent, state)
        shares = [jnp.clip(s, 0, 1) for s in optax.apply_updates(shares, change)]
        return (shares, state, jnp.fmax(best, found)), None

    start = shares, adam.init(shares), best
    (shares, _, best), _ = lax.scan(ascend, start, length=method.steps)
    return jnp.fmax(best, lower(shares)[1])
