"""Attacks on whole sets: broken images leave the batch, and others take their place."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from freeadv_jax.attacks.attack import (
    Attack,
    Batch,
    as_pytree,
    attack_keys,
    split_numbers,
    step_unfinished,
    value_and_gradient,
    where,
)
from freeadv_jax.attacks.losses import UNTARGETED
from freeadv_jax.attacks.programs import find_program
from freeadv_jax.devices import parallel
from freeadv_jax.devices.parallel import REPLICATED, SPLIT
from freeadv_jax.pixels import unit_range

# The steps between two looks at which images are broken. On CPU, a loop would slow down
# the convolutions of other libraries (jax-ml/jax#12868), and a call costs little.
_STEPS_A_CALL = 10
# New images start only when at least this part of the batch is free, because a start
# costs a pass of the whole batch.
_REFILLED_PART = 8
# When at most this share of the batch is in use and no image waits, the last images move
# to a smaller batch, a multiple of this part of the full one. They do so only if this
# many steps are left, which pay for another compilation.
_SHARE_IN_USE, _PART_OF_FULL, _MANY_STEPS = 0.6, 16, 50


@runtime_checkable
class Images(Protocol):
    """Hold images [n, h, w, c]: an array, or an object that decodes parts on demand.

    Indexing returns a part, and `np.asarray` of a part returns its pixels.
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    def __len__(self) -> int: ...

    def __getitem__(self, chosen: slice | np.ndarray) -> "Images": ...

    def __array__(self, dtype=None, copy=None) -> np.ndarray: ...


class Campaign:
    """Attack sets of images on all devices, in batches of images not yet broken.

    A `logits_fn` maps images f32[b, h, w, c] in [0, 1] to logits [b, k]. A callable
    pytree hands over its arrays (see `attack.as_pytree`), and another one of the same
    structure compiles nothing. `batch_size` is rounded up to a multiple of the devices.

    Every image has its own keys, made from `seed`, its index and the attempt, and images
    do not influence one another. The same images are therefore robust for any batch size
    and number of devices. Two details may differ: the attempt whose image is returned for
    a broken one, and the noise in which a randomised model sees the natural images.
    """

    def __init__(self, *, batch_size: int, seed: int = 0):
        self._batch_size = parallel.multiple_of_devices(batch_size)
        self._seed = np.uint32(seed)
        self._compilations = 0

    @property
    def compilations(self) -> int:
        """Return how many programs this campaign compiled.

        A first campaign compiles one program for the logits, two for each kind of attack,
        and one for each smaller batch in which an attack ended. A later campaign with the
        same model structure, shapes and kinds of attack finds them (see `programs`).
        """
        return self._compilations

    def logits(self, logits_fn: Callable, images: Images) -> np.ndarray:
        """Return f32[n, k] for images [n, h, w, c], uint8 or floats in [0, 1]."""
        return self._in_batches(_logits, logits_fn, images)

    def zero_gradients(
        self, logits_fn: Callable, images: Images, labels: np.ndarray
    ) -> np.ndarray:
        """Return bool[n]: where the gradient of the attacked cross-entropy is zero."""
        return self._in_batches(_zero_gradients, logits_fn, images, labels)

    def _in_batches(self, function, logits_fn, *sets):
        """Return `function(logits_fn, *parts)` of the whole sets."""
        logits_fn = parallel.place(as_pytree(logits_fn), REPLICATED)
        program, found, size = None, [], self._batch_size
        for first in range(0, len(sets[0]), size):
            parts = [np.asarray(array[first : first + size]) for array in sets]
            batch = tuple(parallel.place(_padded(part, size), SPLIT) for part in parts)
            if program is None:
                bound, layout = functools.partial(function), (SPLIT,) * len(sets)
                program = self._find(bound, logits_fn, batch, layout)
            found.append(parallel.fetch(program(*batch))[: len(parts[0])])
        return np.concatenate(found)

    def attack(
        self,
        attack: Attack,
        logits_fn: Callable,
        images: Images,
        labels: np.ndarray,
        robust: np.ndarray,
        *,
        finished: np.ndarray | None = None,
        adversarial: np.ndarray | None = None,
        watch: Callable | None = None,
    ) -> np.ndarray:
        """Return which images no attempt breaks, bool[n]; only `robust` ones are attacked.

        `images` are [n, h, w, c], uint8 or floats in [0, 1]. `finished` bool[attempts, n]
        marks attempts made before; it is updated in place, and so are the attacked images
        in `adversarial` f32[n, h, w, c]. `watch(done, robust)` is called after each look
        with the number of attempts decided, and a fraction for those under way.
        """
        logits_fn = parallel.place(as_pytree(logits_fn), REPLICATED)
        kind, numbers = split_numbers(attack)
        settings = {"attack": numbers, "seed": self._seed}
        settings = parallel.place(settings, REPLICATED)
        steps = _steps_a_call()
        begin = functools.partial(_begin, kind=kind)
        advance = functools.partial(_advance, kind=kind, steps=steps)
        layout = REPLICATED, SPLIT, SPLIT
        slots = _Slots(images, labels, self._batch_size)
        state = _no_state(kind, logits_fn, settings, slots.batch)
        example = settings, slots.on_devices(), state
        start_fresh = self._find(begin, logits_fn, example, layout)
        go_on = self._find(advance, logits_fn, example, layout)

        attempts = attack.attempts
        if finished is None:
            finished = np.zeros((attempts, len(labels)), bool)
        attacked, robust = robust.copy(), robust.copy()
        pending = _pending(attempts, attacked, robust, finished)
        while True:
            if slots.fill(pending):
                batch = slots.on_devices()
                state = start_fresh(settings, batch, state)
            if not slots.occupied.any():
                return robust
            batch |= slots.on_devices("iteration")
            state = go_on(settings, batch, state)
            slots.batch["iteration"] += steps

            broken = slots.occupied & parallel.fetch(state.broken)
            robust[slots.index[broken]] = False
            done = slots.occupied & (broken | (slots.iteration >= attack.steps))
            finished[slots.attempt[done], slots.index[done]] = True
            if adversarial is not None and done.any():
                found = parallel.fetch(state.adversarial)
                # A broken image overwrites the other attempts of the same image.
                for rows in (done & ~broken, broken):
                    adversarial[slots.index[rows]] = found[rows]
            slots.release(done | ~robust[slots.index])
            if size := slots.smaller_size(attack.steps):
                state = _taken(state, slots.shrink(size))
                batch = slots.on_devices()
                smaller = settings, batch, state
                go_on = self._find(advance, logits_fn, smaller, layout)
            if watch:
                decided = finished[:, attacked] | ~robust[attacked]
                under_way = slots.iteration[slots.occupied].sum() / max(attack.steps, 1)
                watch(float(decided.sum() + under_way), robust)

    def _find(self, function, logits_fn, arguments, layout):
        program = find_program(function, logits_fn, arguments, layout)
        self._compilations += program.compiled
        return program


def _pending(
    attempts: int, attacked: np.ndarray, robust: np.ndarray, finished: np.ndarray
) -> Iterator[tuple[int, int]]:
    """Yield (attempt, index) for every attempt to be made: the first of all images, then
    the second of all images, and so on.

    The generator must stay lazy. It is consumed whenever places become free, and only
    then looks at `robust` and `finished`, which the attack changes in place. Attempts on
    images that were broken in the meantime are therefore never made.
    """
    for attempt in range(attempts):
        for index in np.flatnonzero(attacked):
            if robust[index] and not finished[attempt, index]:
                yield attempt, index


class _Slots:
    """Hold on the host which image is at which place of the batch, and its attempt."""

    def __init__(self, images, labels, size):
        self._images, self._labels = images, labels
        self._exhausted = False
        self._unit = parallel.multiple_of_devices(size // _PART_OF_FULL)
        self.occupied = np.zeros(size, bool)
        self.batch = {
            "image": np.zeros((size, *images.shape[1:]), images.dtype),
            "label": np.zeros(size, np.int32),
            "index": np.zeros(size, np.int32),
            "attempt": np.zeros(size, np.int32),
            "iteration": np.zeros(size, np.int32),
            "fresh": np.zeros(size, bool),
        }

    index = property(lambda self: self.batch["index"])
    attempt = property(lambda self: self.batch["attempt"])
    iteration = property(lambda self: self.batch["iteration"])

    def fill(self, pending) -> bool:
        """Put pending attempts into free places if enough are free; return if any."""
        free = np.flatnonzero(~self.occupied)
        self.batch["fresh"][:] = False
        if len(free) * _REFILLED_PART < len(self.occupied):
            return False
        for place, (attempt, index) in zip(free, pending):
            self.occupied[place] = self.batch["fresh"][place] = True
            self.index[place], self.attempt[place] = index, attempt
        fresh = np.flatnonzero(self.batch["fresh"])
        self.iteration[fresh] = 0
        self.batch["label"][fresh] = self._labels[self.index[fresh]]
        self._read(fresh)
        self._exhausted = not self.occupied.all()
        return bool(self.batch["fresh"].any())

    def smaller_size(self, steps) -> int:
        """Return the batch size that holds the last images, or 0 to stay as it is."""
        in_use = int(self.occupied.sum())
        if not self._exhausted or not 0 < in_use <= _SHARE_IN_USE * len(self.occupied):
            return 0
        left = steps - self.iteration[self.occupied].min()
        size = -(-in_use // self._unit) * self._unit
        return size if left >= _MANY_STEPS and size < len(self.occupied) else 0

    def shrink(self, size) -> np.ndarray:
        """Keep the occupied places, and free ones up to `size`; return their rows."""
        rows = np.argsort(~self.occupied, kind="stable")[:size]
        self.occupied = self.occupied[rows]
        self.batch = {name: array[rows] for name, array in self.batch.items()}
        self._read(np.arange(size))  # Some images were on other processes.
        return rows

    def _read(self, places):
        """Read the images of the places that lie on this process's devices.

        One call reads all images, because they may have to be decoded.
        """
        here = parallel.rows(len(self.occupied))
        places = places[(places >= here.start) & (places < here.stop)]
        if len(places):
            self.batch["image"][places] = self._images[self.index[places]]

    def on_devices(self, *names) -> dict:
        """Return copies on the devices.

        Without a copy, a device may read the buffer of a NumPy array when the host has
        already changed it.
        """
        chosen = {name: self.batch[name].copy() for name in names or self.batch}
        return parallel.place(chosen, SPLIT)

    def release(self, places) -> None:
        """Free places; the devices go on with their images, and the results are unused."""
        self.occupied &= ~places


def _steps_a_call():
    return 1 if jax.default_backend() == "cpu" else _STEPS_A_CALL


def _logits(logits_fn, images):
    return _as_float32(logits_fn)(unit_range(images))


def _zero_gradients(logits_fn, images, labels):
    loss, logits_fn = UNTARGETED["cross-entropy"], _as_float32(logits_fn)

    def objective(points):
        logits = logits_fn(points)
        return loss(logits, labels), logits

    gradient = value_and_gradient(objective, unit_range(images))[2]
    return jnp.all(gradient == 0, axis=(1, 2, 3))


def _padded(part, size):
    padded = np.zeros((size, *part.shape[1:]), part.dtype)
    padded[: len(part)] = part
    return padded


def _as_float32(logits_fn):
    """Return `logits_fn` with float32 logits, for models that work in another type."""

    def float32_logits(*arguments):
        return logits_fn(*arguments).astype(jnp.float32)

    return float32_logits


def _attack_and_batch(kind, settings, slots):
    keys = attack_keys(settings["seed"], slots["index"], slots["attempt"])
    images = unit_range(slots["image"])
    attack = dataclasses.replace(kind, **settings["attack"])
    batch = Batch(images, slots["label"], keys, slots["attempt"], slots["iteration"])
    return attack, batch


def _start(logits_fn, settings, slots, *, kind):
    attack, batch = _attack_and_batch(kind, settings, slots)
    return attack.start(_as_float32(logits_fn), batch)


def _no_state(kind, logits_fn, settings, slots):
    """Return zeros in the shapes of a state, which the first start replaces."""
    start = functools.partial(_start, kind=kind)
    shapes = jax.eval_shape(start, logits_fn, settings, slots)
    zeros = jax.tree.map(lambda like: np.zeros(like.shape, like.dtype), shapes)
    return parallel.place(zeros, SPLIT)


def _taken(state, rows):
    """Return the state of some of the images as a batch of its own."""
    state = parallel.fetch(state)
    return parallel.place(jax.tree.map(lambda array: array[rows], state), SPLIT)


def _begin(logits_fn, settings, slots, state, *, kind):
    """Return the state in which the fresh places have just started."""
    return where(slots["fresh"], _start(logits_fn, settings, slots, kind=kind), state)


def _advance(logits_fn, settings, slots, state, *, kind, steps):
    """Return the state `steps` steps later; broken and finished images stay as they are."""
    attack, batch = _attack_and_batch(kind, settings, slots)
    logits_fn = _as_float32(logits_fn)

    def step(number, state):
        at = batch._replace(iteration=batch.iteration + number)
        return step_unfinished(attack, logits_fn, at, state)

    if steps == 1:
        return step(0, state)
    return jax.lax.fori_loop(0, steps, step, state)
