"""The perturbations an adversary may choose: one class for each norm."""

import abc
import dataclasses
import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from freeadv_jax.attacks.hyperplane import fill_in_order, fill_to_level
from freeadv_jax.attacks.levels import accurate_sum, lowest_level
from freeadv_jax.errors import InputError, require_choice

# A radius or another number of an attack; it may be traced.
Real = float | np.floating | Float[Array, ""]
# A number for all images, or one for each image.
Reals = Real | Float[Array, "b 1 1 1"]

# Smaller than the norm of any perturbation or gradient that matters.
_TINY = 1e-12
# The relative error of a norm that is summed in float32.
_ROUNDING = 1e-6
# The sides in pixels of the cells that `Linf.wide_noise` draws in turn.
_CELLS = (1, 2, 4)


@dataclasses.dataclass(frozen=True)
class Threat(abc.ABC):
    """Hold all perturbations `delta` that an adversary may choose for one image.

    Arrays have a leading axis of images, and each image has its own set. THREATS lists
    the subclasses by their names.
    """

    epsilon: Reals

    # The name in configurations and records, and the name in texts.
    norm: ClassVar[str]
    title: ClassVar[str]
    # The largest epsilon that is accepted: beyond 1, an L-inf ball holds every image.
    largest_epsilon: ClassVar[float]

    @property
    def usual_step(self) -> Real:
        """Return the step of PGD where none is given, in [0, 1] pixels."""
        # The ratio of Madry et al. on CIFAR-10, 2 of 8 levels.
        return self.epsilon / 4

    def check(self, image_shape: tuple[int, ...] | None = None) -> None:
        """Raise InputError for an epsilon out of range, or too large for the images."""
        del image_shape
        if isinstance(self.epsilon, jax.core.Tracer):
            return
        # The projection onto an infinite ball would divide infinity by infinity.
        if not (0 < self.epsilon <= self.largest_epsilon and np.isfinite(self.epsilon)):
            most = self.largest_epsilon
            limit = f"0 to {most:g}" if np.isfinite(most) else "above 0"
            raise InputError(
                f"epsilon = {self.epsilon}: must be above 0 and finite, in [0, 1] pixels "
                f"({limit} for {self.norm}): eight of 255 levels are 8 / 255"
            )

    @abc.abstractmethod
    def project(self, delta: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        """Return the nearest perturbation of the set for each image."""

    def ascend(
        self,
        delta: Float[Array, "b ..."],
        gradient: Float[Array, "b ..."],
        step_size: Real,
        *,
        images: Float[Array, "b ..."] | None = None,
    ) -> Float[Array, "b ..."]:
        """Return `delta` after a step of length `step_size` and a projection.

        L1 and patches also look at `images`, to stay in the pixel box.
        """
        if isinstance(self.epsilon, float | int) and self.epsilon == 0:
            # An unused input gradient is never computed, as in natural training.
            return delta
        if images is not None:
            return self._ascend_in_box(images, delta, gradient, step_size)
        return self.project(delta + step_size * self.direction(gradient))

    def _ascend_in_box(self, images, delta, gradient, step_size):
        del images
        return self.project(delta + step_size * self.direction(gradient))

    def advance(
        self,
        points: Float[Array, "b ..."],
        gradient: Float[Array, "b ..."],
        step_size: Reals,
    ) -> Float[Array, "b ..."]:
        """Return `points` after the step of this length that ascends most.

        L1 stops each pixel at the box; in the other norms `inside` does so afterwards.
        """
        return points + step_size * self.direction(gradient)

    def climb(
        self,
        images: Float[Array, "b ..."],
        points: Float[Array, "b ..."],
        gradient: Float[Array, "b ..."],
        step_size: Reals,
    ) -> Float[Array, "b ..."]:
        """Return `points` after a step of this length, inside the set and the box."""
        return self.inside(images, self.advance(points, gradient, step_size))

    @abc.abstractmethod
    def inside(
        self, images: Float[Array, "b ..."], points: Float[Array, "b ..."]
    ) -> Float[Array, "b ..."]:
        """Return `points` moved into the set around `images` and the box [0, 1].

        The result has the type of `images` and exceeds neither by more than one ulp.
        """

    @abc.abstractmethod
    def random_start(
        self, keys: Key[Array, " b"], image_shape: tuple[int, ...]
    ) -> Float[Array, "b ..."]:
        """Return a random perturbation of the set for each image, from its own key."""

    def starts_random(self, attempt: Int[Array, " b"]) -> Bool[Array, " b"]:
        """Return which attempts of PGD begin at a random point if random starts are on."""
        return jnp.ones_like(attempt, bool)

    @abc.abstractmethod
    def direction(self, gradient: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        """Return the step of length 1 that ascends most (Madry et al. 2018, 2.1)."""

    @staticmethod
    @abc.abstractmethod
    def size(delta: Float[Array, "b ..."]) -> Float[Array, " b"]:
        """Return the least epsilon whose set holds each perturbation."""


@dataclasses.dataclass(frozen=True)
class Ball(Threat):
    """Hold all perturbations with ||delta|| <= epsilon.

    `epsilon` is in [0, 1] pixels, written `8 / 255`. A subclass is one norm; NORMS lists
    them.
    """

    def far_start(
        self, keys: Key[Array, " b"], images: Float[Array, "b ..."]
    ) -> Float[Array, "b ..."]:
        """Return a random point at distance epsilon from each image, cut to the box."""
        noise = self.random_start(keys, images.shape[1:])
        return self.inside(images, images + self.epsilon * self.scaled_to_one(noise))

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
class Linf(Ball):
    """Hold all perturbations that change no pixel by more than `epsilon`."""

    norm, title = "linf", "L-inf"
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
class L2(Ball):
    """Hold all perturbations of Euclidean length `epsilon` or less."""

    norm, title = "l2", "L2"
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


@dataclasses.dataclass(frozen=True)
class L1(Ball):
    """Hold all perturbations whose absolute pixels sum to `epsilon` or less.

    Croce & Hein (ICML 2021, "Mind the box"): the ball is so much wider along single pixels
    than the box that projections and steps must look at both. `epsilon` = 12 is usual on
    CIFAR-10, where 12 pixel values may change from 0 to 1.
    """

    norm, title = "l1", "L1"
    largest_epsilon = math.inf

    def project(self, delta: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        """Return the nearest point of the ball for each image."""
        flat = _flat(delta)
        room = jnp.full_like(flat, jnp.inf)
        return _cut_to_sum(flat, room, self._radius(flat)).reshape(delta.shape)

    def inside(
        self, images: Float[Array, "b ..."], points: Float[Array, "b ..."]
    ) -> Float[Array, "b ..."]:
        """Return the nearest point that is in both the ball and the box.

        This is Proposition 3.1 of Croce & Hein.
        """
        points = points.astype(images.dtype)
        clean, delta = _flat(images), _flat(points - images)
        room = jnp.where(delta > 0, 1 - clean, clean)
        # The radius is a little smaller because the norm is a rounded sum of pixels.
        delta = _cut_to_sum(delta, room, self._radius(clean) * (1 - _ROUNDING))
        # Equal pixels are all rounded the same way, and the errors add up. They are
        # therefore rounded towards the image, except where they reach the end of the box.
        moved = jnp.nextafter(clean + delta, clean)
        end = jnp.where(delta > 0, 1, 0).astype(clean.dtype)
        stopped = (jnp.abs(delta) >= room) & (delta != 0)
        moved = jnp.where(stopped, end, moved)
        return jnp.clip(moved, 0, 1).reshape(images.shape)

    def advance(
        self,
        points: Float[Array, "b ..."],
        gradient: Float[Array, "b ..."],
        step_size: Reals,
    ) -> Float[Array, "b ..."]:
        """Return `points` after the step of this length that ascends most in the box.

        The pixels move to the end of the box, steepest first, until the length is used
        up (Croce & Hein 2021, Proposition 3.2).
        """
        flat, slope = _flat(points), _flat(gradient)
        room = jnp.maximum(jnp.where(slope > 0, 1 - flat, flat), 0)
        length = jnp.asarray(step_size, flat.dtype).reshape(-1, 1)
        cost = jnp.ones_like(room)
        moved = fill_in_order(jnp.abs(slope), room, cost, length)
        return points + (jnp.sign(slope) * moved).reshape(points.shape)

    def _ascend_in_box(self, images, delta, gradient, step_size):
        points = jnp.clip(images + delta, 0, 1)
        return self.inside(images, self.advance(points, gradient, step_size)) - images

    def random_start(
        self, keys: Key[Array, " b"], image_shape: tuple[int, ...]
    ) -> Float[Array, "b ..."]:
        """Return a uniform point of the ball for each image, drawn with its own key."""

        def draw(key):
            pixels, rest = jax.random.split(key)
            point = jax.random.laplace(pixels, image_shape)
            # The sum of as many exponentials and one more spreads the radius evenly.
            whole = jnp.sum(jnp.abs(point)) + jax.random.exponential(rest)
            return point / whole

        return self.epsilon * jax.vmap(draw)(keys)

    def far_start(
        self, keys: Key[Array, " b"], images: Float[Array, "b ..."]
    ) -> Float[Array, "b ..."]:
        """Return the nearest point to normal noise, which is sparse, as in L1-APGD."""
        draw = functools.partial(jax.random.normal, shape=images.shape[1:])
        return self.inside(images, images + jax.vmap(draw)(keys))

    def wide_noise(
        self,
        keys: Key[Array, " b"],
        iteration: Int[Array, " b"],
        image_shape: tuple[int, ...],
    ) -> Float[Array, "b ..."]:
        """Return 1 or -1 at so few pixels that about twice epsilon changes.

        Half of these steps leave the box. Uniform points change all pixels by next to
        nothing.
        """
        del iteration

        def draw(key):
            chosen, signs = jax.random.split(key)
            share = jnp.minimum(2 * self.epsilon / math.prod(image_shape), 1)
            mask = jax.random.bernoulli(chosen, share, image_shape)
            noise = jax.random.rademacher(signs, image_shape, jnp.float32)
            return jnp.where(mask, noise, 0)

        return jax.vmap(draw)(keys)

    @staticmethod
    def box_radius(image_shape: tuple[int, ...]) -> float:
        """Return the distance between a black and a white image."""
        return float(math.prod(image_shape))

    @staticmethod
    def direction(gradient: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        """Return a step of 1 at the steepest pixel, shared by pixels that are equal."""
        slope = _flat(gradient)
        size = jnp.abs(slope)
        largest = jnp.max(size, axis=-1, keepdims=True)
        steepest = jnp.where(size == largest, jnp.sign(slope), 0)
        count = jnp.sum(jnp.abs(steepest), axis=-1, keepdims=True)
        return (steepest / jnp.maximum(count, 1)).reshape(gradient.shape)

    @staticmethod
    def size(delta: Float[Array, "b ..."]) -> Float[Array, " b"]:
        """Return the sum of the absolute pixels of each perturbation."""
        return accurate_sum(jnp.abs(_flat(delta)))[:, 0]

    @staticmethod
    def dual_size(gradient: Float[Array, "b ..."]) -> Float[Array, " b"]:
        """Return the largest absolute pixel of each gradient."""
        return Linf.size(gradient)

    @classmethod
    def random_direction(
        cls, keys: Key[Array, " b"], image_shape: tuple[int, ...]
    ) -> Float[Array, "b ..."]:
        """Return normal pixels whose absolute values are scaled to sum to 1."""
        draw = functools.partial(jax.random.normal, shape=image_shape)
        return cls.scaled_to_one(jax.vmap(draw)(keys))

    @staticmethod
    def project_onto_hyperplane(
        points: Float[Array, "b n"], w: Float[Array, "b n"], need: Float[Array, " b"]
    ) -> Float[Array, "b n"]:
        """Return the smallest d: the steepest pixels move until the box stops them."""
        scale = jnp.max(jnp.abs(w), axis=-1, keepdims=True)
        scale = jnp.where(scale > 0, scale, 1.0)
        slant, need = jnp.abs(w) / scale, need[:, None] / scale
        direction = jnp.sign(w) * jnp.sign(need)
        room = jnp.where(direction > 0, 1 - points, points)
        return direction * fill_in_order(slant, room, slant, jnp.abs(need))

    def _radius(self, flat):
        """Return epsilon with axes that broadcast over flat images."""
        return jnp.asarray(self.epsilon, flat.dtype).reshape(-1, 1)


@dataclasses.dataclass(frozen=True)
class _Places(Threat):
    """Hold all perturbations of few places, which may take any pixel value.

    A place is a row and a column with all its channels. `epsilon` says how many: a whole
    number from 1 on, or a share of the image below 1.
    """

    largest_epsilon = math.inf

    @property
    def usual_step(self) -> Real:
        """Return a tenth of the range of pixels."""
        return 0.1

    @abc.abstractmethod
    def count(self, image_shape: tuple[int, ...]) -> Int[Array, ""]:
        """Return epsilon as a whole number for images [h, w, c]."""

    def _check_whole(self, unit):
        epsilon = self.epsilon
        whole = np.isfinite(epsilon) and epsilon == np.round(epsilon)
        if not epsilon > 0 or (epsilon >= 1 and not whole):
            raise InputError(
                f"epsilon = {epsilon}: for {self.norm} it must be {unit}, 1 or more, or the "
                "share of the image, above 0 and below 1"
            )

    @abc.abstractmethod
    def mask(self, weights: Float[Array, "b h w"]) -> Bool[Array, "b h w 1"]:
        """Return the places that the set allows at once and that weigh most."""

    def project(self, delta: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Return the nearest perturbation of the set for each image."""
        return jnp.where(self.mask(_weights(jnp.square(delta))), delta, 0)

    def inside(
        self, images: Float[Array, "b h w c"], points: Float[Array, "b h w c"]
    ) -> Float[Array, "b h w c"]:
        """Return the nearest point that is in both the set and the box."""
        points = jnp.clip(points.astype(images.dtype), 0, 1)
        chosen = self.mask(_weights(jnp.square(points - images)))
        return jnp.where(chosen, points, images)

    def direction(self, gradient: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Return the sign of the gradient at the places where its L1 norm is largest."""
        chosen = self.mask(_weights(jnp.abs(gradient)))
        return jnp.where(chosen, jnp.sign(gradient), 0)

    def climb(
        self,
        images: Float[Array, "b h w c"],
        points: Float[Array, "b h w c"],
        gradient: Float[Array, "b h w c"],
        step_size: Reals,
    ) -> Float[Array, "b h w c"]:
        """Return `points` after a step at the places that are changed already.

        Where the set allows more, the step goes to the places at which the gradient gains
        most before the box stops it.
        """
        room = jnp.where(gradient > 0, 1 - points, points)
        gain = _weights(jnp.abs(gradient) * room)
        most = jnp.max(gain, axis=(1, 2), keepdims=True)
        # All gains together weigh less than a single changed place.
        gain /= jnp.where(most > 0, most, 1) * 2 * math.prod(gain.shape[1:])
        changed = _weights(jnp.square(points - images)) > 0
        chosen = self.mask(changed.astype(gain.dtype) + gain)
        moved = jnp.clip(points + step_size * jnp.sign(gradient), 0, 1)
        return jnp.where(chosen, moved, images)

    def _ascend_in_box(self, images, delta, gradient, step_size):
        points = jnp.clip(images + delta, 0, 1)
        # A perturbation that another image left is cut to this image's box first.
        return self.climb(images, points, gradient, step_size) - images

    def starts_random(self, attempt: Int[Array, " b"]) -> Bool[Array, " b"]:
        """Return False for the first attempt: the gradient at the image has the choice."""
        return attempt > 0


@dataclasses.dataclass(frozen=True)
class Patch(_Places):
    """Hold all perturbations of one square, anywhere, of any pixel values.

    `epsilon` is the side of the square in pixels, or below 1 its share of the image's
    area (Brown et al. 2017; here each image has a patch of its own).
    """

    norm, title = "patch", "patch"

    def check(self, image_shape: tuple[int, ...] | None = None) -> None:
        """Raise InputError for an invalid side, or a patch larger than the image."""
        if isinstance(self.epsilon, jax.core.Tracer):
            return
        self._check_whole("the side of the patch in pixels")
        if image_shape is None:
            return
        height, width = image_shape[:2]
        side = int(self.count(image_shape))
        if not 1 <= side <= min(height, width):
            found = (
                f"a patch of {side} by {side} pixels" if side else "a patch of no pixel"
            )
            raise InputError(
                f"epsilon = {self.epsilon}: {found} does not go with images of {height} by "
                f"{width}: allowed are sides of 1 to {min(height, width)}"
            )

    def count(self, image_shape: tuple[int, ...]) -> Int[Array, ""]:
        """Return the side of the square for images [h, w, c]."""
        area = math.prod(image_shape[:2])
        epsilon = jnp.asarray(self.epsilon, jnp.float32)
        # A share of exactly k * k pixels must not be rounded to k - 1.
        from_share = jnp.floor(jnp.sqrt(epsilon * area) + 1e-3)
        return jnp.where(epsilon < 1, from_share, epsilon).astype(jnp.int32)

    def mask(self, weights: Float[Array, "b h w"]) -> Bool[Array, "b h w 1"]:
        """Return the square that weighs most."""
        height, width = weights.shape[1:]
        side = self.count((height, width))
        # Sums without a difference: a square is never heavier by rounding alone.
        rows, columns = (_windows(n, side, weights.dtype) for n in (height, width))
        heavy = jnp.einsum(
            "ri,bij,cj->brc",
            rows,
            weights,
            columns,
            precision=jax.lax.Precision.HIGHEST,
        )
        fits = (jnp.arange(height) <= height - side)[:, None]
        fits &= jnp.arange(width) <= width - side
        heavy = jnp.where(fits, heavy, -1).reshape(len(weights), -1)
        top, left = jnp.divmod(jnp.argmax(heavy, axis=1), width)
        return _square(top, left, side, height, width)

    def random_start(
        self, keys: Key[Array, " b"], image_shape: tuple[int, ...]
    ) -> Float[Array, "b h w c"]:
        """Return uniform noise of -1 to 1 in a random square of each image."""
        height, width = image_shape[:2]
        side = self.count(image_shape)

        def place(key):
            key = jax.random.fold_in(key, 1)
            return jax.random.randint(
                key, (2,), 0, jnp.array([height, width]) - side + 1
            )

        corners = jax.vmap(place)(keys)
        chosen = _square(corners[:, 0], corners[:, 1], side, height, width)
        return jnp.where(chosen, _uniform(keys, image_shape), 0)

    @staticmethod
    def size(delta: Float[Array, "b h w c"]) -> Float[Array, " b"]:
        """Return the side of the smallest square around the changed places."""
        changed = jnp.any(delta != 0, axis=-1)
        spans = []
        for axis in (1, 2):
            line = jnp.any(changed, axis=3 - axis)
            last = line.shape[1] - jnp.argmax(line[:, ::-1], axis=1)
            span = last - jnp.argmax(line, axis=1)
            spans.append(jnp.where(jnp.any(line, axis=1), span, 0))
        return jnp.maximum(*spans).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class L0(_Places):
    """Hold all perturbations of few pixels, of any values.

    `epsilon` is the number of pixels, or below 1 their share of the image. A pixel is a
    place with all its channels.
    """

    norm, title = "l0", "L0"

    def check(self, image_shape: tuple[int, ...] | None = None) -> None:
        """Raise InputError for an invalid budget, or for one of 0 pixels."""
        if isinstance(self.epsilon, jax.core.Tracer):
            return
        self._check_whole("a number of pixels")
        if image_shape is None:
            return
        pixels, most = int(self.count(image_shape)), math.prod(image_shape[:2])
        if not 1 <= pixels <= most:
            raise InputError(
                f"epsilon = {self.epsilon}: a budget of {pixels} pixels does not go with "
                f"images of {most}: allowed are 1 to {most} pixels"
            )

    def count(self, image_shape: tuple[int, ...]) -> Int[Array, ""]:
        """Return the number of pixels for images [h, w, c]."""
        epsilon = jnp.asarray(self.epsilon, jnp.float32)
        # A share of exactly k pixels must not be rounded to k - 1.
        from_share = jnp.floor(epsilon * math.prod(image_shape[:2]) + 1e-3)
        return jnp.where(epsilon < 1, from_share, epsilon).astype(jnp.int32)

    def mask(self, weights: Float[Array, "b h w"]) -> Bool[Array, "b h w 1"]:
        """Return the pixels that weigh most; fewer where several weigh the same."""
        flat = _flat(weights - jnp.min(weights, axis=(1, 2), keepdims=True))
        pixels = self.count(weights.shape[1:])

        def few(level):
            chosen = jnp.sum(flat > level, axis=1, keepdims=True, dtype=jnp.int32)
            return chosen <= pixels

        chosen = (flat > lowest_level(few, flat[:, :1])) | (pixels >= flat.shape[1])
        return chosen.reshape(weights.shape)[..., None]

    def random_start(
        self, keys: Key[Array, " b"], image_shape: tuple[int, ...]
    ) -> Float[Array, "b h w c"]:
        """Return uniform noise of -1 to 1 at random pixels of each image."""

        def order(key):
            return jax.random.uniform(jax.random.fold_in(key, 1), image_shape[:2])

        chosen = self.mask(jax.vmap(order)(keys))
        return jnp.where(chosen, _uniform(keys, image_shape), 0)

    @staticmethod
    def size(delta: Float[Array, "b h w c"]) -> Float[Array, " b"]:
        """Return the number of changed pixels of each perturbation."""
        changed = jnp.any(delta != 0, axis=-1)
        return jnp.sum(changed, axis=(1, 2), dtype=jnp.int32).astype(jnp.float32)


NORMS: dict[str, type[Ball]] = {kind.norm: kind for kind in (Linf, L2, L1)}
THREATS: dict[str, type[Threat]] = NORMS | {kind.norm: kind for kind in (L0, Patch)}


def make_threat(norm: str, epsilon: Reals) -> Threat:
    """Return the perturbations of size `epsilon` of a norm of THREATS.

    Raises InputError for another norm.
    """
    require_choice("norm", norm, THREATS)
    return THREATS[norm](epsilon)


def as_real(number: Real | int) -> Real:
    """Return a whole number, such as a side in pixels, as a float."""
    return float(number) if isinstance(number, int) else number


def _weights(values):
    """Return what each place weighs, the sum over its channels."""
    return jnp.sum(values, axis=-1)


def _windows(length, side, dtype):
    """Return rows of 0 and 1: row i is 1 from i to i + side - 1."""
    first, place = jnp.arange(length)[:, None], jnp.arange(length)
    return ((place >= first) & (place < first + side)).astype(dtype)


def _square(top, left, side, height, width):
    """Return where a square with these corners is, bool[b, h, w, 1]."""
    rows, columns = jnp.arange(height), jnp.arange(width)
    down = (rows >= top[:, None]) & (rows < top[:, None] + side)
    across = (columns >= left[:, None]) & (columns < left[:, None] + side)
    return (down[:, :, None] & across[:, None, :])[..., None]


def _cut_to_sum(delta, room, radius):
    """Return the nearest point to `delta` [b, n] with |d_i| <= room_i and sum <= radius.

    Every pixel is shortened by the same level, which is 0 where `delta` fits, and then
    stopped by its room.
    """
    size = jnp.abs(delta)

    def fits(level):
        return accurate_sum(jnp.clip(size - level, 0, room)) <= radius

    level = lowest_level(fits, size[:, :1])
    return jnp.sign(delta) * jnp.clip(size - level, 0, room)


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
