"""The set an adversary chooses from: an L-inf or L2 ball around each image."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from freeadv_jax.errors import InputError

NORMS = ("linf", "l2")
# A radius or another number of an attack, which may be traced.
Real = float | np.floating | Float[Array, ""]

# Below any norm a perturbation or gradient can have and still be worth scaling.
_TINY = 1e-12
# By how much, relatively, an L2 norm can exceed itself when summed up in float32.
_ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True)
class Threat:
    """All perturbations `delta` of one image with ||delta|| <= epsilon.

    `epsilon` is in [0, 1] pixels, written `8 / 255`; `norm` is 'linf' or 'l2'.
    Every method treats the first axis as the batch: one ball for each image.
    """

    norm: str
    epsilon: Real

    def __post_init__(self):
        if self.norm not in NORMS:
            raise InputError(f"norm {self.norm!r} is unknown; allowed: {NORMS}")

    def project(self, delta: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        """The nearest point of the ball, for each image."""
        if self.norm == "linf":
            return jnp.clip(delta, -self.epsilon, self.epsilon)
        return delta * jnp.minimum(1.0, self.epsilon / jnp.maximum(norms(delta), _TINY))

    def ascend(
        self,
        delta: Float[Array, "b ..."],
        gradient: Float[Array, "b ..."],
        step_size: Real,
    ) -> Float[Array, "b ..."]:
        """One step of length `step_size` up the gradient, back into the ball."""
        if isinstance(self.epsilon, float | int) and self.epsilon == 0:
            # Without a use the input gradient is never computed: natural training.
            return delta
        return self.project(delta + step_size * self.direction(gradient))

    def inside(
        self, images: Float[Array, "b ..."], points: Float[Array, "b ..."]
    ) -> Float[Array, "b ..."]:
        """`points` brought into the ball around `images` and the pixel box [0, 1].

        For L-inf the nearest such point; for L2 the nearest of the ball, then clipped.
        Exact to one ulp of float32.
        """
        if self.norm == "linf":
            lowest = jnp.maximum(images - self.epsilon, 0)
            return jnp.clip(points, lowest, jnp.minimum(images + self.epsilon, 1))
        delta = points - images
        # A little less than the ball: the sum below is rounded, pixel by pixel.
        radius = self.epsilon * (1 - _ROUNDING)
        delta = delta * jnp.minimum(1.0, radius / jnp.maximum(norms(delta), _TINY))
        return jnp.clip(images + delta, 0, 1)

    def direction(self, gradient: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        """Steepest ascent for a step of length 1 in the norm of the ball.

        The sign of the gradient for L-inf, the gradient scaled to unit length for L2
        (Madry et al., ICLR 2018, 2.1).
        """
        if self.norm == "linf":
            return jnp.sign(gradient)
        return gradient / jnp.maximum(norms(gradient), _TINY)

    def random_start(
        self, keys: Key[Array, " b"], image_shape: tuple[int, ...]
    ) -> Float[Array, "b ..."]:
        """A uniform point of the ball for each image, from that image's own key."""

        def draw(key):
            if self.norm == "linf":
                point = jax.random.uniform(key, image_shape, minval=-1.0, maxval=1.0)
            else:
                size = math.prod(image_shape)
                point = jax.random.ball(key, size).reshape(image_shape)
            return self.epsilon * point

        return jax.vmap(draw)(keys)


def norms(delta: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """The L2 norm of each image, with axes of length 1 left to broadcast."""
    axes = tuple(range(1, delta.ndim))
    return jnp.sqrt(jnp.sum(jnp.square(delta), axis=axes, keepdims=True))
