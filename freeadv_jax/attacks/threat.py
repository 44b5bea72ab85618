"""The set an adversary chooses from: an L-inf or L2 ball around each image."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from freeadv_jax.errors import InputError

NORMS = ("linf", "l2")

# Below any norm a perturbation or gradient can have and still be worth scaling.
_TINY = 1e-12


@dataclasses.dataclass(frozen=True)
class Threat:
    """All perturbations `delta` of one image with ||delta|| <= epsilon.

    `epsilon` is in [0, 1] pixels, written `8 / 255`; `norm` is 'linf' or 'l2'.
    Every method treats the first axis as the batch: one ball for each image.
    """

    norm: str
    epsilon: float

    def __post_init__(self):
        if self.norm not in NORMS:
            raise InputError(f"norm {self.norm!r} is unknown; allowed: {NORMS}")

    def project(self, delta: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        """The nearest point of the ball, for each image."""
        if self.norm == "linf":
            return jnp.clip(delta, -self.epsilon, self.epsilon)
        return delta * jnp.minimum(
            1.0, self.epsilon / jnp.maximum(_norms(delta), _TINY)
        )

    def ascend(
        self,
        delta: Float[Array, "b ..."],
        gradient: Float[Array, "b ..."],
        step_size: float | Float[Array, ""],
    ) -> Float[Array, "b ..."]:
        """One step of length `step_size` up the gradient, back into the ball.

        Steepest ascent in the norm of the ball: the sign of the gradient for L-inf,
        the gradient scaled to unit length for L2 (Madry et al., ICLR 2018, 2.1).
        """
        if self.epsilon == 0:
            # Without a use the input gradient is never computed: natural training.
            return delta
        if self.norm == "linf":
            direction = jnp.sign(gradient)
        else:
            direction = gradient / jnp.maximum(_norms(gradient), _TINY)
        return self.project(delta + step_size * direction)

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


def _norms(delta: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """The L2 norm of each image, with axes of length 1 left to broadcast."""
    axes = tuple(range(1, delta.ndim))
    return jnp.sqrt(jnp.sum(jnp.square(delta), axis=axes, keepdims=True))
