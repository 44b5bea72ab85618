"""A whole attack on one batch as a single traceable function."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Integer

from freeadv_jax.attacks.attack import (
    Attack,
    Batch,
    as_pytree,
    attack_keys,
    split_numbers,
    step_unfinished,
    stopped,
    where,
)


class Adversarial(NamedTuple):
    """Hold attacked `images`, inside ball and box, and where the attack succeeded.

    An image that is misclassified as it is counts as a success and stays unchanged. An
    image that is robust has the point at which the last attempt ended.
    """

    images: Float[Array, "b h w c"]
    success: Bool[Array, " b"]


def run_attack(
    attack: Attack,
    logits_fn: Callable,
    images: ArrayLike,
    labels: ArrayLike,
    *,
    seed: int = 0,
) -> Adversarial:
    """Attack one batch in one program, compiled once for each shape.

    `images` are f32[b, h, w, c] in [0, 1], `labels` integers [b]; nothing is checked.
    On CPU, XLA compiles the gradients of most convolutions badly inside loops
    (jax-ml/jax#12868); `Campaign` has no loop there.
    """
    kind, numbers = split_numbers(attack)
    images = jnp.asarray(images, jnp.float32)
    labels = jnp.asarray(labels, jnp.int32)
    return _run(kind, numbers, as_pytree(logits_fn), images, labels, np.uint32(seed))


@functools.partial(jax.jit, static_argnums=0)
def _run(kind, numbers, logits_fn, images, labels, seed):
    attack = dataclasses.replace(kind, **numbers)
    before = Adversarial(images, attack.success(logits_fn(images), labels))
    return attack_unbroken(attack, logits_fn, images, labels, before, seed=seed)


def attack_unbroken(
    attack: Attack,
    logits_fn: Callable,
    images: Float[Array, "b h w c"],
    labels: Int[Array, " b"],
    before: Adversarial,
    *,
    seed: int | np.integer | Integer[Array, ""],
) -> Adversarial:
    """Attack the images on which the attacks `before` failed, in all attempts.

    The loops end early where no image is left.
    """
    index = jnp.arange(len(labels), dtype=jnp.int32)

    def batch_at(attempt, iteration):
        attempt = jnp.full(labels.shape, attempt, jnp.int32)
        keys = attack_keys(seed, index, attempt)
        iteration = jnp.full(labels.shape, iteration, jnp.int32)
        return Batch(images, labels, keys, attempt, iteration)

    def one_attempt(carry):
        attempt, before = carry
        state = attack.start(logits_fn, batch_at(attempt, 0))
        state = state._replace(broken=state.broken | before.success)

        def step(carry):
            iteration, state = carry
            batch = batch_at(attempt, iteration)
            state, _ = step_unfinished(attack, logits_fn, batch, state)
            return iteration + 1, state

        def unfinished(carry):
            iteration, state = carry
            return (iteration < attack.steps) & ~jnp.all(stopped(state))

        _, state = jax.lax.while_loop(unfinished, step, (jnp.int32(0), state))
        found = Adversarial(state.adversarial, state.broken)
        return attempt + 1, where(before.success, before, found)

    def attempts_left(carry):
        attempt, found = carry
        return (attempt < attack.attempts) & ~jnp.all(found.success)

    first = (jnp.int32(0), before)
    return jax.lax.while_loop(attempts_left, one_attempt, first)[1]
