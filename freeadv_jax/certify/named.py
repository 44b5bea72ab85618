"""The certificates of a robustness table, by name, made a chunk of images at a time."""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jaxtyping import Bool, Int

from freeadv_jax.certify.ball import BALLS
from freeadv_jax.certify.certificates import MarginBounds, Method, is_certain
from freeadv_jax.certify.graph import trace
from freeadv_jax.errors import InputError
from freeadv_jax.models.user_model import arrays_as_leaves
from freeadv_jax.pixels import unit_range

# The methods, each with the images that it bounds at a time.
_METHODS = {
    "ibp": (Method("interval"), 128),
    "crown-ibp": (Method("crown", intermediate="ibp"), 64),
    "crown": (Method("crown", intermediate="crown"), 16),
    "alpha-crown": (
        Method("alpha-crown", intermediate="crown", steps=20, step_size=0.1),
        16,
    ),
}
CERTIFICATES = tuple(_METHODS)


@dataclasses.dataclass(frozen=True)
class NamedCertificate:
    """Hold one row of the table: a bound of the margins, and the ball it is about."""

    name: str
    norm: str
    epsilon: float
    method: Method
    batch_size: int

    def record(self) -> dict:
        """Return the settings for results.json."""
        method = self.method
        settings = {"norm": self.norm, "epsilon": self.epsilon, "bound": method.name}
        if method.name != "interval":
            settings["intermediate"] = method.intermediate
        if method.steps:
            settings |= {"steps": method.steps, "step_size": method.step_size}
        return settings

    def certified(
        self,
        logits_fn: Callable,
        images,
        labels: Int[np.ndarray, " n"],
        chosen: Int[np.ndarray, " m"],
    ) -> Iterator[tuple[Int[np.ndarray, " c"], Bool[np.ndarray, " c"]]]:
        """Yield the indices of a few of the `chosen` images and which are certified.

        `images` are [n, h, w, c], uint8 or floats in [0, 1]; those of a chunk alone are
        read. Nothing is checked; see `check_certifiable`.
        """
        size = min(self.batch_size, max(1, len(chosen)))
        logits_fn = arrays_as_leaves(logits_fn)
        bound = MarginBounds(self.method, logits_fn, self.norm, self.epsilon, size)
        for start in range(0, len(chosen), bound.batch_size):
            chunk = chosen[start : start + bound.batch_size]
            part = unit_range(np.asarray(images[chunk]))
            yield chunk, is_certain(bound(part, labels[chunk].astype(np.int32)))


def certificate_by_name(name: str, *, norm: str, epsilon: float) -> NamedCertificate:
    """Return the certificate called `name`, one of CERTIFICATES, as the functions' defaults.

    ibp           `interval`
    crown-ibp     `crown` with intermediate bounds by interval propagation
    crown         `crown`
    alpha-crown   `alpha_crown`

    Raise InputError for a norm whose ball has no certificate.
    """
    if norm not in BALLS:
        raise InputError(f"{name} is for the norms {' and '.join(BALLS)}, not {norm}")
    method, batch_size = _METHODS[name]
    return NamedCertificate(name, norm, epsilon, method, batch_size)


def check_certifiable(logits_fn: Callable, image_shape: tuple[int, ...]) -> None:
    """Raise InputError for a model that has a primitive without a rule, or 16 bits.

    `image_shape` is that of one image, [h, w, c].
    """
    logits_fn = arrays_as_leaves(logits_fn)
    if jax.tree_util.all_leaves([logits_fn]):
        logits_fn = jax.tree_util.Partial(logits_fn)
    weights, structure = jax.tree.flatten(logits_fn)

    def traced(weights, image):
        trace(structure.unflatten(weights), image)
        return image

    image = jax.ShapeDtypeStruct(image_shape, np.float32)
    jax.eval_shape(traced, weights, image)
