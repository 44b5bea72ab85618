"""What every attack is: a start and a step for a batch, and the loop around them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key

from freeadv_jax.attacks.threat import Real

# A field of an attack that is a number may be traced: one compilation serves all.
Count = int | Int[Array, ""]
Flag = bool | Bool[Array, ""]


class Batch(NamedTuple):
    """Images under attack, each at its own attempt and iteration."""

    images: Float[Array, "b h w c"]
    labels: Int[Array, " b"]
    # One an image and attempt; fold the iteration in for a step's own randomness.
    keys: Key[Array, " b"]
    # Restarts and targets are numbered together, from 0.
    attempt: Int[Array, " b"]
    # Steps already made.
    iteration: Int[Array, " b"]


@runtime_checkable
class Attack(Protocol):
    """A frozen dataclass whose state has a leading axis of images everywhere.

    Of the state the loop reads `adversarial` f32[b, h, w, c], inside ball and box, and
    `broken` bool[b]: that this image succeeds. A broken image is stepped no further.
    Images never influence one another, so they may come and go between steps.
    """

    norm: str
    epsilon: Real
    steps: int

    @property
    def attempts(self) -> int:
        """Restarts times targets."""

    def success(self, logits, labels) -> Bool[Array, " b"]:
        """Whether such logits are what the adversary wants."""

    def start(self, logits_fn: Callable, batch: Batch) -> Any:
        """The state before the first step."""

    def step(self, logits_fn: Callable, batch: Batch, state: Any) -> Any:
        """The state after one more."""


class Adversarial(NamedTuple):
    """`images` inside ball and box; `success` where they are what was wanted.

    An image misclassified as it is succeeds unchanged. One that withstood carries what
    the attack had come to.
    """

    images: Float[Array, "b h w c"]
    success: Bool[Array, " b"]


def misclassified(
    logits: Float[Array, "b k"], labels: Int[Array, " b"]
) -> Bool[Array, " b"]:
    """The aim of every attack without a target of the caller's.

    Logits of NaN are right for no label, not for class 0, as their argmax would be.
    """
    wrong = jnp.argmax(logits, axis=-1) != labels
    return wrong | jnp.isnan(logits).any(axis=-1)


def target_class(
    logits: Float[Array, "b k"], labels: Int[Array, " b"], rank: Int[Array, " b"]
) -> Int[Array, " b"]:
    """The class other than the label that is likeliest but for `rank` others."""
    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    falling = jnp.argsort(jnp.where(is_label, -jnp.inf, logits), axis=-1)[:, ::-1]
    return jnp.take_along_axis(falling, rank[:, None], axis=-1)[:, 0]


def attack_keys(seed, index: Int[Array, " b"], attempt: Int[Array, " b"]):
    """Keys that depend on nothing but the seed, an image's index and the attempt."""

    def key(index, attempt):
        return jax.random.fold_in(
            jax.random.fold_in(jax.random.key(seed), index), attempt
        )

    return jax.vmap(key)(index, attempt)


def value_and_gradient(objective: Callable, point: Float[Array, "b h w c"]):
    """(losses f32[b], logits f32[b, k], gradient) of `objective(point) -> (losses, logits)`.

    One forward and one backward pass; each image's gradient is that of its own loss.
    Where it is NaN it leads nowhere: it is 0, or the image would leave ball and box.
    """

    def total(point):
        losses, logits = objective(point)
        return losses.sum(), (losses, logits)

    gradient, (losses, logits) = jax.grad(total, has_aux=True)(point)
    return losses, logits, jnp.where(jnp.isnan(gradient), 0, gradient)


def where(condition: Bool[Array, " b"], yes, no):
    """Image by image, over pytrees with a leading axis of images."""

    def choose(yes, no):
        axes = (-1,) + (1,) * (yes.ndim - 1)
        return jnp.where(condition.reshape(axes), yes, no)

    return jax.tree.map(choose, yes, no)


def step_unfinished(attack: Attack, logits_fn: Callable, batch: Batch, state):
    """One step of the images that neither are broken nor have made all their steps."""
    stepped = attack.step(logits_fn, batch, state)
    active = ~state.broken & (batch.iteration < attack.steps)
    return where(active, stepped, state)


def split_numbers(attack: Attack) -> tuple[Attack, dict[str, np.generic | Array]]:
    """What to compile an attack for, and its numbers, to be traced.

    `dataclasses.replace(kind, **numbers)` is the attack again.
    """
    fields = {f.name: getattr(attack, f.name) for f in dataclasses.fields(attack)}
    numbers = {
        name: _traceable(value)
        for name, value in fields.items()
        if isinstance(value, (bool, int, float, np.number, np.bool_, jax.Array))
    }
    nothing = {name: np.zeros((), n.dtype).item() for name, n in numbers.items()}
    return dataclasses.replace(attack, **nothing), numbers


def _traceable(number):
    """Of one type each for truth values, counts and radii, whoever made them."""
    if isinstance(number, jax.Array):
        return number
    if isinstance(number, (bool, np.bool_)):
        return np.bool_(number)
    whole = isinstance(number, (int, np.integer))
    return np.int32(number) if whole else np.float32(number)


def as_pytree(logits_fn: Callable):
    """`logits_fn` with its arrays as leaves.

    A jax.tree_util.Partial and any other callable pytree hands its arrays over as
    arguments; what a plain function closes over is compiled in.
    """
    if jax.tree_util.all_leaves([logits_fn]):
        return jax.tree_util.Partial(logits_fn)
    return logits_fn


def run_attack(
    attack: Attack,
    logits_fn: Callable,
    images: ArrayLike,
    labels: ArrayLike,
    *,
    seed: int = 0,
) -> Adversarial:
    """The whole attack on one batch, compiled once for each shape; traceable.

    `images` are f32[b, h, w, c] in [0, 1], `labels` whole numbers [b]. All attempts
    are made on what still stands, and the loop ends early where nothing does. On CPU,
    XLA compiles the gradients of foreign convolutions badly inside loops: attack sets
    through `Campaign` there.
    """
    kind, numbers = split_numbers(attack)
    images = jnp.asarray(images, jnp.float32)
    labels = jnp.asarray(labels, jnp.int32)
    return _run(kind, numbers, as_pytree(logits_fn), images, labels, np.uint32(seed))


@functools.partial(jax.jit, static_argnums=0)
def _run(kind, numbers, logits_fn, images, labels, seed):
    attack = dataclasses.replace(kind, **numbers)
    index = jnp.arange(len(labels))

    def batch_at(attempt, iteration):
        attempt = jnp.full(labels.shape, attempt)
        keys = attack_keys(seed, index, attempt)
        iteration = jnp.full(labels.shape, iteration)
        return Batch(images, labels, keys, attempt, iteration)

    def one_attempt(carry):
        attempt, before = carry
        state = attack.start(logits_fn, batch_at(attempt, 0))
        state = state._replace(broken=state.broken | before.success)

        def step(carry):
            iteration, state = carry
            batch = batch_at(attempt, iteration)
            return iteration + 1, step_unfinished(attack, logits_fn, batch, state)

        def unfinished(carry):
            iteration, state = carry
            return (iteration < attack.steps) & ~jnp.all(state.broken)

        _, state = jax.lax.while_loop(unfinished, step, (0, state))
        found = Adversarial(state.adversarial, state.broken)
        return attempt + 1, where(before.success, before, found)

    def goes_on(carry):
        attempt, found = carry
        return (attempt < attack.attempts) & ~jnp.all(found.success)

    as_they_are = Adversarial(images, attack.success(logits_fn(images), labels))
    return jax.lax.while_loop(goes_on, one_attempt, (0, as_they_are))[1]
