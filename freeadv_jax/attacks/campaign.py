"""Attacks on whole sets: what is broken leaves the batch, and others take its place."""

import dataclasses
import functools
from collections.abc import Callable
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
    where,
)
from freeadv_jax.devices import parallel
from freeadv_jax.devices.parallel import REPLICATED, SPLIT

# Steps between two looks at what is broken. On CPU a loop would slow down the
# convolutions of other libraries (jax-ml/jax#12868), and a call costs little.
_STEPS_A_CALL = 10
# A start costs a pass of the whole batch: so large a part must have become free.
_REFILLED_PART = 8
# When so small a part of the places is still in use, the last images go on in a smaller
# batch, a multiple of this part of the full one: if it is for so many steps that
# another compilation pays.
_PART_IN_USE, _PART_OF_FULL, _MANY_STEPS = 0.6, 16, 50


@runtime_checkable
class Images(Protocol):
    """An array [n, h, w, c], or what gives one: of its parts, by `np.asarray`.

    So a large set may be decoded part by part.
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    def __len__(self) -> int: ...

    def __getitem__(self, chosen: slice | np.ndarray) -> "Images": ...

    def __array__(self, dtype=None, copy=None) -> np.ndarray: ...


class Campaign:
    """Attacks over all devices, in batches that stay full of images still standing.

    A `logits_fn` maps images f32[b, h, w, c] in [0, 1] to logits; a callable pytree
    hands over its arrays (see `as_pytree`), so that another one of the same structure
    compiles nothing anew. `batch_size` is rounded up to a multiple of the devices.
    Every image has keys of its own, from `seed`, its index and the attempt, and images
    do not influence one another: the same ones stand for any batch size and number of
    devices. (Which attempt's image is kept of one that breaks may differ, and the noise
    in which a randomised model sees the images as they are.)
    """

    def __init__(self, *, batch_size: int, seed: int = 0):
        devices = jax.device_count()
        self._batch_size = -(-batch_size // devices) * devices
        self._seed = np.uint32(seed)
        self._programs: dict = {}

    @property
    def compilations(self) -> int:
        """Programs compiled so far: one for the logits, and two for each attack.

        And another one for each smaller batch in which an attack came to its end.
        """
        return len(self._programs)

    def logits(self, logits_fn: Callable, images: Images) -> np.ndarray:
        """f32[n, k] of images [n, h, w, c], floats in [0, 1] or uint8."""
        logits_fn = parallel.place(as_pytree(logits_fn), REPLICATED)
        program = self._program(_logits, None, (REPLICATED, SPLIT), self._batch_size)
        found = []
        for first in range(0, len(images), self._batch_size):
            part = np.asarray(images[first : first + self._batch_size])
            padded = np.zeros((self._batch_size, *part.shape[1:]), part.dtype)
            padded[: len(part)] = part
            logits = program(logits_fn, parallel.place(padded, SPLIT))
            found.append(parallel.fetch(logits)[: len(part)])
        return np.concatenate(found)

    def attack(
        self,
        attack: Attack,
        logits_fn: Callable,
        images: Images,
        labels: np.ndarray,
        standing: np.ndarray,
        *,
        finished: np.ndarray | None = None,
        adversarial: np.ndarray | None = None,
        watch: Callable | None = None,
    ) -> np.ndarray:
        """Which images stand, bool[n], of those that did: worst case over all attempts.

        `images` are [n, h, w, c], floats in [0, 1] or uint8. `finished` bool[attempts,
        n] says which attempts were made before, and is brought up to date; so are the
        attacked images in `adversarial` f32[n, h, w, c]. `watch(done, standing)` is
        called after each look, with the attempts decided.
        """
        logits_fn = parallel.place(as_pytree(logits_fn), REPLICATED)
        kind, numbers = split_numbers(attack)
        settings = {"attack": numbers, "seed": self._seed}
        layout = (REPLICATED, REPLICATED, SPLIT, SPLIT)
        begin = self._program(_begin, kind, layout, self._batch_size)
        advance = self._program(_advance, kind, layout, self._batch_size)
        slots = _Slots(images, labels, self._batch_size)
        state = _no_state(kind, logits_fn, settings, slots.batch)

        attempts = attack.attempts
        if finished is None:
            finished = np.zeros((attempts, len(labels)), bool)
        begun, standing = standing.copy(), standing.copy()
        pending = (
            (attempt, index)
            for attempt in range(attempts)
            for index in np.flatnonzero(begun)
            if standing[index] and not finished[attempt, index]
        )
        while True:
            if slots.fill(pending):
                batch = slots.on_devices()
                state = begin(logits_fn, settings, batch, state)
            if not slots.occupied.any():
                return standing
            batch |= slots.on_devices("iteration")
            state = advance(logits_fn, settings, batch, state)
            slots.batch["iteration"] += _steps_a_call()

            broken = slots.occupied & parallel.fetch(state.broken)
            standing[slots.index[broken]] = False
            done = slots.occupied & (broken | (slots.iteration >= attack.steps))
            finished[slots.attempt[done], slots.index[done]] = True
            if adversarial is not None and done.any():
                found = parallel.fetch(state.adversarial)
                for rows in (done & ~broken, broken):  # The broken have the last word.
                    adversarial[slots.index[rows]] = found[rows]
            slots.release(done | ~standing[slots.index])
            if size := slots.smaller_size(attack.steps):
                state = _taken(state, slots.shrink(size))
                batch = slots.on_devices()
                advance = self._program(_advance, kind, layout, size)
            if watch:
                decided = finished[:, begun] | ~standing[begun]
                watch(int(decided.sum()), standing)

    def _program(self, function, kind, inputs, size):
        """`function` over all devices, compiled once for each kind of attack and size."""
        name = function.__name__, kind, size
        if name not in self._programs:
            bound = functools.partial(function, kind=kind)
            self._programs[name] = parallel.spmd(bound, inputs=inputs, outputs=SPLIT)
        return self._programs[name]


class _Slots:
    """The places of a batch, on the host: which image is where, at which attempt."""

    def __init__(self, images, labels, size):
        self._images, self._labels = images, labels
        self._exhausted = False
        devices = jax.device_count()
        self._unit = max(1, size // _PART_OF_FULL // devices) * devices
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
        """Puts what is pending into the free places, if it is worth a start."""
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
        """Of the batch that holds what is left, 0 where the present one will do."""
        in_use = int(self.occupied.sum())
        if not self._exhausted or not 0 < in_use <= _PART_IN_USE * len(self.occupied):
            return 0
        left = steps - self.iteration[self.occupied].min()
        size = -(-in_use // self._unit) * self._unit
        return size if left >= _MANY_STEPS and size < len(self.occupied) else 0

    def shrink(self, size) -> np.ndarray:
        """Keeps the occupied places and as many more as make up `size`; which ones."""
        rows = np.argsort(~self.occupied, kind="stable")[:size]
        self.occupied = self.occupied[rows]
        self.batch = {name: array[rows] for name, array in self.batch.items()}
        self._read(np.arange(size))  # Some were on other processes.
        return rows

    def _read(self, places):
        """The images of those places that lie on this process's devices.

        All at once: they may have to be decoded.
        """
        here = parallel.rows(len(self.occupied))
        places = places[(places >= here.start) & (places < here.stop)]
        if len(places):
            self.batch["image"][places] = self._images[self.index[places]]

    def on_devices(self, *names) -> dict:
        """Copies: a device may read a NumPy buffer where it lies, even later on."""
        chosen = {name: self.batch[name].copy() for name in names or self.batch}
        return parallel.place(chosen, SPLIT)

    def release(self, places) -> None:
        """Frees places; the devices go on with what lies there, and nobody looks."""
        self.occupied &= ~places


def _steps_a_call():
    return 1 if jax.default_backend() == "cpu" else _STEPS_A_CALL


def _unit_range(images):
    """Pixels in [0, 1], from those or from uint8."""
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255
    return images


def _logits(logits_fn, images, *, kind):
    del kind
    return logits_fn(_unit_range(images))


def _attack_and_batch(kind, settings, slots):
    keys = attack_keys(settings["seed"], slots["index"], slots["attempt"])
    images = _unit_range(slots["image"])
    attack = dataclasses.replace(kind, **settings["attack"])
    batch = Batch(images, slots["label"], keys, slots["attempt"], slots["iteration"])
    return attack, batch


def _start(logits_fn, settings, slots, *, kind):
    attack, batch = _attack_and_batch(kind, settings, slots)
    return attack.start(logits_fn, batch)


def _no_state(kind, logits_fn, settings, slots):
    """What the first start fills: a state of the right shapes."""
    start = functools.partial(_start, kind=kind)
    shapes = jax.eval_shape(start, logits_fn, settings, slots)
    zeros = jax.tree.map(lambda like: np.zeros(like.shape, like.dtype), shapes)
    return parallel.place(zeros, SPLIT)


def _taken(state, rows):
    """The state of some of the images, as a batch of its own."""
    state = parallel.fetch(state)
    return parallel.place(jax.tree.map(lambda array: array[rows], state), SPLIT)


def _begin(logits_fn, settings, slots, state, *, kind):
    """The state in which the fresh places have just started."""
    return where(slots["fresh"], _start(logits_fn, settings, slots, kind=kind), state)


def _advance(logits_fn, settings, slots, state, *, kind):
    """The state some steps further; the broken and the finished stay as they are."""
    attack, batch = _attack_and_batch(kind, settings, slots)

    def step(number, state):
        at = batch._replace(iteration=batch.iteration + number)
        return step_unfinished(attack, logits_fn, at, state)

    steps = _steps_a_call()
    if steps == 1:
        return step(0, state)
    return jax.lax.fori_loop(0, steps, step, state)
