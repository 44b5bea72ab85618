"""The interface of an attack, and the helpers that all attacks share."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from freeadv_jax.attacks.threat import Real
from freeadv_jax.errors import InputError, one_line

# The numbers of an attack may be traced, so that one compilation serves all values.
Count = int | Int[Array, ""]
Flag = bool | Bool[Array, ""]
# The cost of a forward pass alone, in passes forward and backward.
FORWARD = 1 / 3
# It takes the place of infinity in a gradient.
_LARGEST = 1e30


class Batch(NamedTuple):
    """Hold the images under attack; each has its own attempt and iteration."""

    images: Float[Array, "b h w c"]
    labels: Int[Array, " b"]
    # One key for each image and attempt. A step folds in its iteration.
    keys: Key[Array, " b"]
    # From 0; the restarts and targets of an attack are numbered together.
    attempt: Int[Array, " b"]
    # The number of steps made before.
    iteration: Int[Array, " b"]


@runtime_checkable
class Attack(Protocol):
    """Define an attack by its start and its step.

    An attack is a frozen dataclass. All arrays of its state have a leading axis of
    images. The engine reads two fields of the state: `adversarial` f32[b, h, w, c],
    which lies inside the ball and the box, and `broken` bool[b], which marks the images
    on which the attack has succeeded. A third field is optional: `given_up` bool[b] marks
    attempts that the attack ends early. Broken images and attempts given up are stepped no
    further. Images must not influence one another, because they enter and leave the batch
    between steps.
    """

    norm: str
    epsilon: Real
    steps: int

    @property
    def attempts(self) -> int:
        """Return the number of restarts times targets."""

    def success(self, logits, labels) -> Bool[Array, " b"]:
        """Return whether logits [b, k] are what the adversary wants."""

    def passes(self, num_classes: int) -> tuple[float, float]:
        """Return how many passes forward and backward the start and a step take.

        A forward pass alone counts as FORWARD. The fresh draws that confirm a success on a
        randomised model are not counted.
        """

    def start(self, logits_fn: Callable, batch: Batch) -> Any:
        """Return the state before the first step."""

    def step(self, logits_fn: Callable, batch: Batch, state: Any) -> Any:
        """Return the state after one more step."""


def misclassified(
    logits: Float[Array, "b k"], labels: Int[Array, " b"]
) -> Bool[Array, " b"]:
    """Return where the largest logit is not the label's.

    NaN logits are misclassified for every label; their argmax would be class 0.
    """
    wrong = jnp.argmax(logits, axis=-1) != labels
    return wrong | jnp.isnan(logits).any(axis=-1)


def target_class(
    logits: Float[Array, "b k"], labels: Int[Array, " b"], rank: Int[Array, " b"]
) -> Int[Array, " b"]:
    """Return the class of this rank among the other classes; rank 0 is the likeliest.

    Ranks count around, so that -1 is the least likely class. Classes masked by -inf are
    left out: no image gets there.
    """
    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    others = jnp.where(is_label, -jnp.inf, logits)
    falling = jnp.argsort(others, axis=-1)[:, ::-1]
    left = jnp.maximum(jnp.sum(others > -jnp.inf, axis=-1, dtype=rank.dtype), 1)
    chosen = jnp.take_along_axis(falling, (rank % left)[:, None], axis=-1)[:, 0]
    return chosen.astype(labels.dtype)


def attack_keys(seed, index: Int[Array, " b"], attempt: Int[Array, " b"]):
    """Return a key for each image, from the seed, the image's index and the attempt.

    Results therefore do not depend on the batch size or the number of devices.
    """

    def key(index, attempt):
        return jax.random.fold_in(
            jax.random.fold_in(jax.random.key(seed), index), attempt
        )

    return jax.vmap(key)(index, attempt)


def value_and_gradient(objective: Callable, point: Float[Array, "b h w c"]):
    """Return (losses f32[b], logits f32[b, k], gradient f32[b, h, w, c]) at a point.

    `objective(point)` returns (losses, logits). The cost is one forward and one backward
    pass. NaN in the gradient becomes 0 and infinity a large number; the image would
    otherwise leave ball and box.
    """

    def total(point):
        losses, logits = objective(point)
        return losses.sum(), (losses, logits)

    with differentiating():
        gradient, (losses, logits) = jax.grad(total, has_aux=True)(point)
    return losses, logits, finite(gradient)


def finite(gradient: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return a gradient with 0 for NaN, and its largest numbers for infinity."""
    return jnp.nan_to_num(gradient, nan=0.0, posinf=_LARGEST, neginf=-_LARGEST)


@contextlib.contextmanager
def differentiating():
    """Raise InputError in place of what JAX raises for a model without a gradient."""
    try:
        yield
    except InputError:
        raise
    # JAX has no exception of its own for this: callbacks and loops of open length raise
    # ValueError, primitives without a rule NotImplementedError.
    except (ValueError, NotImplementedError) as fault:
        raise InputError(
            f"JAX cannot differentiate the model ({one_line(fault)}): attack it with "
            "Square, which needs no gradient, or give it one with freeadv_jax.attacks.bpda"
        ) from fault


def where(condition: Bool[Array, " b"], yes, no):
    """Choose between two pytrees, image by image."""

    def choose(yes, no):
        axes = (-1,) + (1,) * (yes.ndim - 1)
        return jnp.where(condition.reshape(axes), yes, no)

    return jax.tree.map(choose, yes, no)


def step_unfinished(attack: Attack, logits_fn: Callable, batch: Batch, state):
    """Step the images whose attempts go on; return the state, and bool[b]: these images."""
    goes_on = ~stopped(state) & (batch.iteration < attack.steps)
    return where(goes_on, attack.step(logits_fn, batch, state), state), goes_on


def stopped(state) -> Bool[Array, " b"]:
    """Return which attempts need no further step: broken, or given up."""
    return state.broken | getattr(state, "given_up", False)


def split_numbers(attack: Attack) -> tuple[Attack, dict[str, np.generic | Array]]:
    """Split an attack into its static part and its numbers, which are traced.

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
    """Return bool, int32 or float32, whichever library the number comes from."""
    if isinstance(number, jax.Array):
        whole = jnp.issubdtype(number.dtype, jnp.integer)
        kind = np.int32 if whole else np.float32
        return number if number.dtype == bool else number.astype(kind)
    if isinstance(number, (bool, np.bool_)):
        return np.bool_(number)
    whole = isinstance(number, (int, np.integer))
    return np.int32(number) if whole else np.float32(number)


def as_pytree(logits_fn: Callable):
    """Return `logits_fn` as a pytree whose leaves are the arrays that it hands over.

    A jax.tree_util.Partial or another callable pytree hands over its arrays. A plain
    function has no leaves.
    """
    if jax.tree_util.all_leaves([logits_fn]):
        return jax.tree_util.Partial(logits_fn)
    return logits_fn
