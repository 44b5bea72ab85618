"""The perturbations an adversary may choose: one class for each norm."""

import abc
import dataclasses
import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from freeadv_jax.attacks.hyperplane import fill_to_level
from freeadv_jax.errors import require_choice

# A radius or another number of an attack; it may be traced.
Real = float | np.floating | Float[Array, ""]

# Smaller than the norm of any perturbation or gradient that matters.
_TINY = 1e-12
# The relative error of an L2 norm that is summed in float32.
_ROUNDING = 1e-6
# The sides in pixels of the cells that `Linf.wide_noise` draws in turn.
_CELLS = (1, 2, 4)


@dataclasses.dataclass(frozen=True)
class Threat(abc.ABC):
    """Hold all perturbations `delta` of one image with ||delta|| <= epsilon.

    `epsilon` is in [0, 1] pixels, written `8 / 255`. Arrays have a leading axis of
    images, and each image has its own ball. A subclass is one norm; NORMS lists them.
    """

    epsilon: Real

    # The name in configurations and records.
    norm: ClassVar[str]
    # The largest epsilon that is accepted: beyond 1, an L-inf ball holds every image.
    largest_epsilon: ClassVar[float]

    @abc.abstractmethod
    def project(self, delta: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        """Return the nearest point of the ball for each image."""

    def ascend(
        self,
        delta: Float[Array, "b ..."],
        gradient: Float[Array, "b ..."],
        step_size: Real,
    ) -> Float[Array, "b ..."]:
        """Return `delta` after a step of length `step_size` and a projection."""
        if isinstance(self.epsilon, float | int) and self.epsilon == 0:
            # An unused input gradient is never computed, as in natural training.
            return delta
        return self.project(delta + step_size * self.direction(gradient))

    @abc.abstractmethod
    def inside(
        self, images: Float[Array, "b ..."], points: Float[Array, "b ..."]
    ) -> Float[Array, "b ..."]:
        """Return `points` moved into the ball around `images` and the box [0, 1].

        The result has the type of `images` and exceeds neither by more than one ulp.
        """

    @abc.abstractmethod
    def random_start(
        self, keys: Key[Array, " b"], image_shape: tuple[int, ...]
    ) -> Float[Array, "b ..."]:
        """Return a uniform point of the ball for each image, drawn with its own key."""

    def wide_noise(
        self,
        keys: Key[Array, " b"],
        iteration: Int[Array, " b"],
        image_shape: tuple[int, ...],
    ) -> Float[Array, "b ..."]:
        """Return the random point of this iteration for an attack by noise alone."""
        del iteration
        return self.random_start(keys, image_shape)

    @staticmethod
    @abc.abstractmethod
    def box_radius(image_shape: tuple[int, ...]) -> float:
        """Return the radius of a ball that holds all images, whatever its centre."""

    @staticmethod
    @abc.abstractmethod
    def direction(gradient: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        """Return the step of length 1 that ascends most (Madry et al. 2018, 2.1)."""

    @staticmethod
    @abc.abstractmethod
    def size(delta: Float[Array, "b ..."]) -> Float[Array, " b"]:
        """Return the norm of each perturbation."""

    @staticmethod
    @abc.abstractmethod
    def dual_size(gradient: Float[Array, "b ..."]) -> Float[Array, " b"]:
        """Return the dual norm: the most that a step of length 1 gains on a plane."""

    @classmethod
    def scaled_to_one(cls, delta: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        """Return each perturbation divided by its norm."""
        return delta / cls.size(delta).reshape(-1, *[1] * (delta.ndim - 1))

    @classmethod
    @abc.abstractmethod
    def random_direction(
        cls, keys: Key[Array, " b"], image_shape: tuple[int, ...]
    ) -> Float[Array, "b ..."]:
        """Return a random perturbation of norm 1 for each image, from its own key."""

    @staticmethod
    @abc.abstractmethod
    def project_onto_hyperplane(
        points: Float[Array, "b n"], w: Float[Array, "b n"], need: Float[Array, " b"]
    ) -> Float[Array, "b n"]:
        """Return the smallest d with w . d = need and points + d in [0, 1].

        Where no such d exists, return the most that the box allows towards the plane.
        """


@dataclasses.dataclass(frozen=True)
class Linf(Threat):
    """Hold all perturbations that change no pixel by more than `epsilon`."""

    norm = "linf"
    largest_epsilon = 1.0

    def project(self, delta: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        """Return the nearest point of the ball for each image."""
        return jnp.clip(delta, -self.epsilon, self.epsilon)

    def inside(
        self, images: Float[Array, "b ..."], points: Float[Array, "b ..."]
    ) -> Float[Array, "b ..."]:
        """Return the nearest point that is in both the ball and the box."""
        points = points.astype(images.dtype)
        lowest = jnp.maximum(images - self.epsilon, 0)
        return jnp.clip(points, lowest, jnp.minimum(images + self.epsilon, 1))

    def random_start(
        self, keys: Key[Array, " b"], image_shape: tuple[int, ...]
    ) -> Float[Array, "b ..."]:
        """Return a uniform point of the ball for each image, drawn with its own key."""
        return self.epsilon * _uniform(keys, image_shape)

    def wide_noise(
        self,
        keys: Key[Array, " b"],
        iteration: Int[Array, " b"],
        image_shape: tuple[int, ...],
    ) -> Float[Array, "b ..."]:
        """Return a corner of the ball, constant over cells of 1, 2 or 4 pixels a side.

        Uniform points are weak in this norm. The sizes take turns by iteration.
        """
        corners = jax.vmap(_corner, (0, 0, None))(keys, iteration, image_shape)
        return self.epsilon * corners

    @staticmethod
    def box_radius(image_shape: tuple[int, ...]) -> float:
        """Return 1: no two pixels differ by more."""
        del image_shape
        return 1.0

    @staticmethod
    def direction(gradient: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        """Return the sign of the gradient."""
        return jnp.sign(gradient)

    @staticmethod
    def size(delta: Float[Array, "b ..."]) -> Float[Array, " b"]:
        """Return the largest absolute pixel of each perturbation."""
        return jnp.linalg.norm(_flat(delta), jnp.inf, axis=-1)

    @staticmethod
    def dual_size(gradient: Float[Array, "b ..."]) -> Float[Array, " b"]:
        """Return the L1 norm of each gradient."""
        return jnp.linalg.norm(_flat(gradient), 1, axis=-1)

    @classmethod
    def random_direction(
        cls, keys: Key[Array, " b"], image_shape: tuple[int, ...]
    ) -> Float[Array, "b ..."]:
        """Return uniform pixels, scaled so that the largest is 1 or -1."""
        return cls.scaled_to_one(_uniform(keys, image_shape))

    @staticmethod
    def project_onto_hyperplane(
        points: Float[Array, "b n"], w: Float[Array, "b n"], need: Float[Array, " b"]
    ) -> Float[Array, "b n"]:
        """Return the smallest d: every pixel moves equally far until the box stops it."""
        return fill_to_level(points, w, need, pace=jnp.ones_like)


@dataclasses.dataclass(frozen=True)
class L2(Threat):
    """Hold all perturbations of Euclidean length `epsilon` or less."""

    norm = "l2"
    largest_epsilon = math.inf

    def project(self, delta: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        """Return the nearest point of the ball for each image."""
        return _shortened(delta, self.epsilon)

    def inside(
        self, images: Float[Array, "b ..."], points: Float[Array, "b ..."]
    ) -> Float[Array, "b ..."]:
        """Return the nearest point of the ball, clipped to the box."""
        points = points.astype(images.dtype)
        # The radius is a little smaller because the norm is a rounded sum of pixels.
        delta = _shortened(points - images, self.epsilon * (1 - _ROUNDING))
        return jnp.clip(images + delta, 0, 1)

    def random_start(
        self, keys: Key[Array, " b"], image_shape: tuple[int, ...]
    ) -> Float[Array, "b ..."]:
        """Return a uniform point of the ball for each image, drawn with its own key."""

        def draw(key):
            point = jax.random.ball(key, math.prod(image_shape)).reshape(image_shape)
            return self.epsilon * point

        return jax.vmap(draw)(keys)

    @staticmethod
    def box_radius(image_shape: tuple[int, ...]) -> float:
        """Return the distance between a black and a white image."""
        return math.sqrt(math.prod(image_shape))

    @staticmethod
    def direction(gradient: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        """Return the gradient scaled to length 1, however small or large it is."""
        axes = tuple(range(1, gradient.ndim))
        largest = jnp.max(jnp.abs(gradient), axis=axes, keepdims=True)
        # The squares of a confident model's gradient would underflow. Powers of two do not
        # round; these bounds keep them finite.
        exponent = jnp.clip(jnp.frexp(largest)[1], -120, 120)
        scaled = gradient * jnp.ldexp(jnp.ones_like(largest), -exponent)
        lengths = _lengths(scaled)
        return scaled / jnp.where(lengths > 0, lengths, 1.0)

    @staticmethod
    def size(delta: Float[Array, "b ..."]) -> Float[Array, " b"]:
        """Return the Euclidean length of each perturbation."""
        return jnp.linalg.norm(_flat(delta), 2, axis=-1)

    @staticmethod
    def dual_size(gradient: Float[Array, "b ..."]) -> Float[Array, " b"]:
        """Return the Euclidean length of each gradient: this norm is its own dual."""
        return L2.size(gradient)

    @classmethod
    def random_direction(
        cls, keys: Key[Array, " b"], image_shape: tuple[int, ...]
    ) -> Float[Array, "b ..."]:
        """Return normal pixels scaled to length 1, so that no direction is preferred."""
        draw = functools.partial(jax.random.normal, shape=image_shape)
        return cls.scaled_to_one(jax.vmap(draw)(keys))

    @staticmethod
    def project_onto_hyperplane(
        points: Float[Array, "b n"], w: Float[Array, "b n"], need: Float[Array, " b"]
    ) -> Float[Array, "b n"]:
        """Return the smallest d: pixels move in proportion to |w| until the box stops."""
        return fill_to_level(points, w, need, pace=lambda slant: slant)


NORMS: dict[str, type[Threat]] = {kind.norm: kind for kind in (Linf, L2)}


def make_threat(norm: str, epsilon: Real) -> Threat:
    """Return the ball of radius `epsilon` ([0, 1] pixels) in a norm of NORMS.

    Raises InputError for another norm.
    """
    require_choice("norm", norm, NORMS)
    return NORMS[norm](epsilon)


def _shortened(delta, radius):
    return delta * jnp.minimum(1.0, radius / jnp.maximum(_lengths(delta), _TINY))


def _lengths(delta):
    """Return the L2 norms with axes of length 1, which broadcast over the pixels."""
    # Not L2.size: XLA can round the sum over flattened pixels in another way, and
    # recorded training runs would not repeat to the bit.
    axes = tuple(range(1, delta.ndim))
    return jnp.sqrt(jnp.sum(jnp.square(delta), axis=axes, keepdims=True))


def _flat(images):
    return images.reshape(len(images), -1)


def _uniform(keys, image_shape):
    draw = functools.partial(jax.random.uniform, minval=-1.0, maxval=1.0)
    return jax.vmap(lambda key: draw(key, image_shape))(keys)


def _corner(key, iteration, image_shape):
    """Return a corner of the cube [-1, 1], constant over the cells of this iteration."""
    cell = jnp.asarray(_CELLS)[iteration % len(_CELLS)]
    signs = jax.random.rademacher(key, image_shape, jnp.float32)
    rows, columns = (jnp.arange(side) // cell for side in image_shape[:2])
    return signs[rows][:, columns]
