"""Attacks on whole sets: broken images leave the batch, and others take their place.

A batch is as large as the attempts that remain, up to the size that was asked for.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

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
from freeadv_jax.attacks.gradients import Measured, measure_gradients
from freeadv_jax.attacks.losses import UNTARGETED
from freeadv_jax.attacks.programs import find_program, program_cost
from freeadv_jax.devices import parallel
from freeadv_jax.devices.parallel import REPLICATED, SPLIT
from freeadv_jax.pixels import unit_range

# New images start only when at least this part of the batch is free, because a start
# costs a pass of the whole batch.
_REFILLED_PART = 8
# Most images break in their first steps, and a broken image waits for the end of the call.
# A call on a CPU therefore makes a small part of the steps that the youngest image has
# made. It takes at most a second or so, in which nothing is shown or saved.
_PART_OF_STEPS, _MOST_STEPS_A_CALL, _SECONDS_A_CALL = 8, 50, 1.0
# The steps of a call on GPU and TPU.
_STEPS_A_CALL = 10


class Running(NamedTuple):
    """Hold the state of an attack's attempts, and int32[b], the steps that each made."""

    state: Any
    made: jax.Array


class Work(NamedTuple):
    """Hold the steps of single images that an attack has made, and has `left` at most."""

    made: int
    left: int


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
    and number of devices. Three details may differ: the attempt whose image is returned
    for a broken one, the steps that other attempts on it have made by then, and the noise
    in which a randomised model sees the natural images.
    """

    def __init__(self, *, batch_size: int, seed: int = 0):
        self._batch_size = parallel.multiple_of_devices(batch_size)
        self._seed = np.uint32(seed)
        self._compilations = 0

    @property
    def seed(self) -> int:
        """Return the seed of all random choices."""
        return int(self._seed)

    @property
    def compilations(self) -> int:
        """Return how many programs this campaign compiled.

        A first campaign compiles one program for the logits, two for each kind of attack,
        and one for each smaller batch to which an attack moved its last images. A later
        campaign with the same model structure, shapes and kinds of attack finds them (see
        `programs`).
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

    def gradients(
        self,
        logits_fn: Callable,
        images: Images,
        labels: np.ndarray,
        *,
        norm: str,
        epsilon: float,
        step_size: float,
        precision: float,
        samples: int | None,
    ) -> Measured:
        """Return the measurements of `measure_gradients` at each image."""
        n = len(labels)
        numbers = (np.full(n, number, np.float32) for number in (epsilon, step_size))
        return self._in_batches(
            _gradients,
            logits_fn,
            images,
            labels,
            np.arange(n, dtype=np.int32),
            *numbers,
            np.full(n, precision, np.float32),
            np.full(n, samples or 0, np.int32),
            norm=norm,
            randomized=samples is not None,
            seed=self._seed,
        )

    def _in_batches(self, function, logits_fn, *sets, **fixed):
        """Return `function(logits_fn, *parts, **fixed)` of the whole sets."""
        logits_fn = parallel.place(as_pytree(logits_fn), REPLICATED)
        size = _fitting_size(len(sets[0]), self._batch_size)
        program, found, runs = None, [], len(sets[0]) / size
        for first in range(0, len(sets[0]), size):
            batch = tuple(
                parallel.place(_own_part(array, first, size), SPLIT) for array in sets
            )
            if program is None:
                bound, layout = (
                    functools.partial(function, **fixed),
                    (SPLIT,) * len(sets),
                )
                program = self._find(bound, logits_fn, batch, layout, runs=runs)
            results, here = parallel.fetch(program(*batch)), slice(len(sets[0]) - first)
            found.append(jax.tree.map(operator.itemgetter(here), results))
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *found)

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
        made: np.ndarray | None = None,
        watch: Callable | None = None,
    ) -> np.ndarray:
        """Return which images no attempt breaks, bool[n]; only `robust` ones are attacked.

        `images` are [n, h, w, c], uint8 or floats in [0, 1]. `finished` bool[attempts, n]
        marks attempts made before; it is updated in place, and so are the attacked images
        in `adversarial` f32[n, h, w, c]. `made` int[2, n] counts on: the attempts that each
        image began, and the steps that it needed. `watch(done, robust, work)` is called
        after each look with the number of attempts decided, a fraction for those under way,
        and the `Work` so far and to come.
        """
        logits_fn = parallel.place(as_pytree(logits_fn), REPLICATED)
        kind, numbers = split_numbers(attack)
        settings = {"attack": numbers, "seed": self._seed}
        settings = parallel.place(settings, REPLICATED)
        attempts = attack.attempts
        if finished is None:
            finished = np.zeros((attempts, len(labels)), bool)
        attacked, robust = robust.copy(), robust.copy()
        undecided = int((~finished[:, attacked]).sum())
        if not undecided:
            return robust
        counts = undecided, finished.size
        slots = self._slots(attack, logits_fn, settings, images, labels, *counts)
        start_fresh, running = self._starter(
            kind, logits_fn, settings, slots, finished.size
        )
        runs = finished.size * attack.steps
        draws = getattr(attack, "samples", None) or 1
        go_on = self._stepper(kind, logits_fn, settings, slots, running, runs)
        pending = _pending(attempts, attacked, robust, finished)
        work = 0
        while True:
            if slots.fill(pending):
                batch = slots.on_devices()
                running = start_fresh(settings, batch, running)
            if not slots.occupied.any():
                return robust
            steps = _steps_a_call(go_on, slots.youngest, attack.steps, draws)
            batch |= slots.on_devices("iteration")
            running = go_on(settings, _on_devices(steps), batch, running)
            slots.batch["iteration"] += steps
            work += steps * len(slots.occupied)

            state = running.state
            broken = slots.occupied & parallel.fetch(state.broken)
            robust[slots.index[broken]] = False
            given_up = parallel.fetch(getattr(state, "given_up", np.False_))
            ended = given_up | (slots.iteration >= attack.steps)
            done = broken | slots.occupied & ended
            finished[slots.attempt[done], slots.index[done]] = True
            if adversarial is not None and done.any():
                found = parallel.fetch(state.adversarial)
                # A broken image overwrites the other attempts of the same image.
                for rows in (done & ~broken, broken):
                    adversarial[slots.index[rows]] = found[rows]
            released = slots.occupied & (done | ~robust[slots.index])
            if made is not None and released.any():
                index = slots.index[released]
                np.add.at(made[0], index, 1)
                np.add.at(made[1], index, parallel.fetch(running.made)[released])
            slots.release(released)
            if size := slots.smaller_size(attack.steps, go_on.cost):
                running = _taken(running, slots.shrink(size))
                batch = slots.on_devices()
                runs = (attack.steps - slots.youngest) * size
                go_on = self._stepper(kind, logits_fn, settings, slots, running, runs)
            if watch:
                undecided = int((~finished[:, attacked & robust]).sum())
                decided = attempts * int(attacked.sum()) - undecided
                under_way = slots.iteration[slots.occupied].sum() / max(attack.steps, 1)
                left = slots.work_left(undecided, attack.steps)
                watch(float(decided + under_way), robust, Work(work, left))

    def _slots(self, attack, logits_fn, settings, images, labels, undecided, of):
        """Return the places of a batch for `undecided` attempts `of` so many in all.

        The batch is as large as all attempts need, however many images are robust, so that
        a later call finds its programs. It fits the undecided ones where that saves more
        than another compilation costs.
        """
        slots = _Slots(images, labels, _fitting_size(of, self._batch_size))
        size = _fitting_size(undecided, self._batch_size)
        if size == len(slots.occupied):
            return slots
        kind, _ = split_numbers(attack)
        running = _nothing_running(kind, logits_fn, settings, slots.batch)
        cost = program_cost(
            *_step_program(kind, logits_fn, settings, slots, running),
            otherwise=_step_without_loop(kind),
        )
        if _pays(size / len(slots.occupied), attack.steps, cost):
            return _Slots(images, labels, size)
        return slots

    def _starter(self, kind, logits_fn, settings, slots, starts):
        """Return the program that starts the fresh places, and a state to begin with.

        `starts` is the number of images that it starts at most.
        """
        running = _nothing_running(kind, logits_fn, settings, slots.batch)
        # Where many images break, a refill starts only a part of the batch.
        runs = 1 + 2 * starts / len(slots.occupied)
        program = self._find(
            functools.partial(_begin, kind=kind),
            logits_fn,
            (settings, slots.on_devices(), running),
            (REPLICATED, SPLIT, SPLIT),
            runs=runs,
        )
        return program, running

    def _stepper(self, kind, logits_fn, settings, slots, running, steps):
        """Return the program that makes steps, of which single images need `steps`."""
        return self._find(
            *_step_program(kind, logits_fn, settings, slots, running),
            runs=steps / len(slots.occupied),
            otherwise=_step_without_loop(kind),
        )

    def _find(self, function, logits_fn, arguments, layout, **options):
        program = find_program(function, logits_fn, arguments, layout, **options)
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

    @property
    def youngest(self) -> int:
        """Return the number of steps that the image started last has made."""
        return int(self.iteration[self.occupied].min())

    def work_left(self, undecided, steps) -> int:
        """Return the steps of single images to come at most, those of free places too."""
        in_use, size = self.iteration[self.occupied], len(self.occupied)
        waiting = undecided - len(in_use)
        if waiting:
            # The last ones may be alone in the batch.
            return (waiting + size) * steps + int((steps - in_use).sum())
        return (steps - self.youngest) * size if undecided else 0

    def smaller_size(self, steps, cost) -> int:
        """Return the batch size to which the last images should move, or 0 to stay.

        They move if the steps that are left cost more than another compilation.
        """
        in_use, size = int(self.occupied.sum()), len(self.occupied)
        if not self._exhausted or not in_use:
            return 0
        smaller = _fitting_size(in_use, size)
        left = steps - self.youngest
        return smaller if _pays(smaller / size, left, cost) else 0

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


def _fitting_size(count: int, most: int) -> int:
    """Return the batch size for `count` images: a little more, at most `most`.

    Eight sizes lie between a power of two and the next, so that few programs are compiled.
    """
    each = max(1, -(-count // jax.device_count()))
    unit = 2 ** max(0, each.bit_length() - 4)
    return min(most, parallel.multiple_of_devices(1) * -(-each // unit) * unit)


def _pays(part: float, steps: int, cost) -> bool:
    """Return whether a program for this part of a batch saves more than it costs."""
    saved = steps * (cost.run() - cost.run(scale=part))
    return saved > cost.compilation(steps)


def _steps_a_call(program, youngest, steps, draws=1):
    """Return how many steps the next call makes.

    The cost of a program has one of the `draws` over which each step averages.
    """
    most = steps - youngest
    if jax.default_backend() != "cpu":
        return min(_STEPS_A_CALL, most)
    if not program.first_choice:
        return 1
    quick = int(_SECONDS_A_CALL / (draws * program.cost.run()))
    return max(1, min(youngest // _PART_OF_STEPS, quick, _MOST_STEPS_A_CALL, most))


def _step_program(kind, logits_fn, settings, slots, running):
    """Return what `find_program` takes for the steps of an attack."""
    function = functools.partial(_advance, kind=kind, loop=True)
    arguments = settings, _on_devices(1), slots.on_devices(), running
    return function, logits_fn, arguments, (REPLICATED, REPLICATED, SPLIT, SPLIT)


def _step_without_loop(kind):
    cpu = jax.default_backend() == "cpu"
    return functools.partial(_advance, kind=kind, loop=False) if cpu else None


def _on_devices(number):
    return parallel.place(np.int32(number), REPLICATED)


def _logits(logits_fn, images):
    return _as_float32(logits_fn)(unit_range(images))


def _zero_gradients(logits_fn, images, labels):
    loss, logits_fn = UNTARGETED["cross-entropy"], _as_float32(logits_fn)

    def objective(points):
        logits = logits_fn(points)
        return loss(logits, labels), logits

    gradient = value_and_gradient(objective, unit_range(images))[2]
    return jnp.all(gradient == 0, axis=(1, 2, 3))


def _gradients(logits_fn, images, labels, *numbers, **fixed):
    logits_fn, images = _as_float32(logits_fn), unit_range(images)
    return measure_gradients(logits_fn, images, labels, *numbers, **fixed)


def _own_part(array, first, size):
    """Return `size` rows from `first` on, of which this process reads those it computes.

    The others, and those behind the end, are zero.
    """
    part = np.zeros((size, *array.shape[1:]), array.dtype)
    here = parallel.rows(size)
    own = array[first + here.start : min(first + here.stop, len(array))]
    if len(own):
        part[here.start : here.start + len(own)] = own
    return part


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
    state = attack.start(_as_float32(logits_fn), batch)
    return Running(state, jnp.zeros_like(batch.iteration))


def _nothing_running(kind, logits_fn, settings, slots):
    """Return zeros in the shapes of a state, which the first start replaces."""
    start = functools.partial(_start, kind=kind)
    shapes = jax.eval_shape(start, logits_fn, settings, slots)
    zeros = jax.tree.map(lambda like: np.zeros(like.shape, like.dtype), shapes)
    return parallel.place(zeros, SPLIT)


def _taken(running, rows):
    """Return the state of some of the images as a batch of its own."""
    running = parallel.fetch(running)
    return parallel.place(jax.tree.map(lambda array: array[rows], running), SPLIT)


def _begin(logits_fn, settings, slots, running, *, kind):
    """Return the state in which the fresh places have just started."""
    return where(slots["fresh"], _start(logits_fn, settings, slots, kind=kind), running)


def _advance(logits_fn, settings, steps, slots, running, *, kind, loop):
    """Return the state `steps` steps later, or one where there is no loop.

    Broken and finished images stay as they are.
    """
    attack, batch = _attack_and_batch(kind, settings, slots)
    logits_fn = _as_float32(logits_fn)

    def step(number, running):
        at = batch._replace(iteration=batch.iteration + number)
        state, goes_on = step_unfinished(attack, logits_fn, at, running.state)
        return Running(state, running.made + goes_on.astype(running.made.dtype))

    return jax.lax.fori_loop(0, steps, step, running) if loop else step(0, running)
