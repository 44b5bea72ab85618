"""Measure a defence: natural, attacked plainly, red flags, attacked adaptively."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from freeadv_jax.attacks.attack import as_pytree, finite
from freeadv_jax.attacks.draws import randomized
from freeadv_jax.attacks.red_flags import Flag, red_flags
from freeadv_jax.attacks.threat import Threat
from freeadv_jax.gallery.defence import Defended
from freeadv_jax.models.user_model import arrays_as_leaves

STEPS = 20


@dataclasses.dataclass(frozen=True)
class Seen:
    """Hold n images, and what a defended network makes of them.

    images    f32[n, h, w, c]
    classes   int[n]: the class of each image; for a random defence that of the mean of the
              logits over 200 draws.
    rejected  bool[n]: the images that a detector does not let pass.
    """

    images: Float[np.ndarray, "n h w c"]
    classes: Int[np.ndarray, " n"]
    rejected: Bool[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class Measured:
    """Hold what was measured on n images with their `labels`.

    `natural` are the images as they are, `naive` after the plain PGD-20, and `adaptive` by
    attack after those made for the defence. `flags` are the answers of `red_flags`.
    """

    labels: Int[np.ndarray, " n"]
    natural: Seen
    naive: Seen
    adaptive: dict[str, Seen]
    flags: list[Flag]

    @property
    def right(self) -> Bool[np.ndarray, " n"]:
        """Return which images are classified right and not rejected as they are."""
        return (self.natural.classes == self.labels) & ~self.natural.rejected

    def defended(self, *attacked: Seen) -> Bool[np.ndarray, " n"]:
        """Return which of them are still right, or rejected, after each of the attacks.

        The network decides, whatever an attack says of itself.
        """
        left = self.right
        for seen in attacked:
            left = left & ((seen.classes == self.labels) | seen.rejected)
        return left

    @property
    def broken(self) -> Seen:
        """Return for each image the attack that breaks it, the plain one last."""
        found = self.naive
        for seen in self.adaptive.values():
            breaks = ~self.defended(seen)
            found = Seen(
                np.where(breaks[:, None, None, None], seen.images, found.images),
                np.where(breaks, seen.classes, found.classes),
                np.where(breaks, seen.rejected, found.rejected),
            )
        return found


def measure(
    defended: Defended,
    images: Float[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    threat: Threat,
    *,
    flagged: int,
    seed: int = 0,
    tell: Callable[[str], None] = lambda what: None,
) -> Measured:
    """Return the measurements of a defence on `images`; red flags on the first `flagged`.

    Plain attacks and red flags see a random defence as its author hands it over: it draws
    anew at each pass. `tell` is called with the name of each part before it begins.
    """
    tell("plain PGD")
    see = functools.partial(_seen, defended)
    natural = see(images)
    naive = see(plain_pgd(defended, images, labels, threat, seed=seed))
    adaptive = {}
    for name, attack in defended.adaptive.items():
        tell(name)
        adaptive[name] = see(np.asarray(attack(images, labels, threat, seed)))
    tell("red flags")
    flags = red_flags(
        drawing_by_itself(defended, seed=seed),
        images[:flagged],
        labels[:flagged],
        norm=threat.norm,
        epsilon=threat.epsilon,
        batch_size=flagged,
        seed=seed,
    )
    return Measured(labels, natural, naive, adaptive, flags)


def _seen(defended, images):
    logits_fn = defended.logits_fn
    if defended.random:
        logits_fn = randomized(logits_fn)
    classes = np.asarray(_logits(_as_argument(logits_fn), images)).argmax(axis=-1)
    rejected = np.zeros(len(images), bool)
    if defended.rejects is not None:
        rejected = np.asarray(defended.rejects(images))
    return Seen(images, classes, rejected)


def _as_argument(logits_fn):
    return as_pytree(arrays_as_leaves(logits_fn))


@jax.jit
def _logits(logits_fn, images):
    return logits_fn(images)


def plain_pgd(
    defended: Defended,
    images: Float[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    threat: Threat,
    *,
    steps: int = STEPS,
    seed: int = 0,
) -> Float[np.ndarray, "n h w c"]:
    """Return images attacked by PGD as most people write it: the last of `steps` iterates.

    Madry et al. (ICLR 2018): steps of epsilon / 4 along the gradient of the cross-entropy
    of Optax, from a random start. A random defence draws once a step. The attack knows
    nothing of the defence.
    """
    attack = functools.partial(_plain_pgd, steps=steps, random=defended.random)
    return np.asarray(
        jax.jit(attack, static_argnames="threat")(
            _as_argument(defended.logits_fn),
            images,
            labels,
            jax.random.key(seed),
            threat=threat,
        )
    )


def _plain_pgd(
    logits_fn,
    images: Float[Array, "n h w c"],
    labels: Int[Array, " n"],
    key: Key[Array, ""],
    *,
    threat: Threat,
    steps: int,
    random: bool,
):
    def loss(images, keys):
        logits = logits_fn(images, keys) if random else logits_fn(images)
        # Unlike the losses of this library it saturates, as that of most codes does.
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.sum()

    def step(number, point):
        keys = jax.random.split(jax.random.fold_in(key, number), len(images))
        direction = threat.direction(finite(jax.grad(loss)(point, keys)))
        return threat.inside(images, point + threat.epsilon / 4 * direction)

    start = threat.random_start(jax.random.split(key, len(images)), images.shape[1:])
    point = threat.inside(images, images + start)
    return jax.lax.fori_loop(0, steps, step, point)


def drawing_by_itself(defended: Defended, *, seed: int):
    """Return the defence as a function of images alone.

    A random one draws anew at each call, as a module with a random state does: its number
    is counted on the host.
    """
    if not defended.random:
        return defended.logits_fn
    calls = iter(range(2**31 - 1))

    def logits_fn(images):
        # The argument keeps the call where it is: a loop would make it once.
        number = jax.pure_callback(
            lambda _: np.uint32(next(calls)),
            jax.ShapeDtypeStruct((), jnp.uint32),
            jax.lax.stop_gradient(images),
            vmap_method="sequential",
        )
        key = jax.random.fold_in(jax.random.key(seed), number)
        return defended.logits_fn(images, jax.random.split(key, len(images)))

    return logits_fn
