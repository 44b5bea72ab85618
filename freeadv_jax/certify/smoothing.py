"""Randomised smoothing: certificates in L2 from the classes of noisy copies of an image."""

import functools
import json
import pathlib
import sys
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32
from scipy import special

from freeadv_jax.devices import parallel
from freeadv_jax.devices.parallel import REPLICATED, SPLIT
from freeadv_jax.errors import InputError
from freeadv_jax.files import as_path, checksum, whole_file
from freeadv_jax.intervals import clopper_pearson
from freeadv_jax.models.user_model import arrays_as_leaves, check_model
from freeadv_jax.pixels import Numbers, as_array, check_images, check_labels, unit_range
from freeadv_jax.progress import Progress

# The class of an image about which the samples decide nothing.
ABSTAINED = -1


class Smoothed(NamedTuple):
    """Hold what the smoothed classifier says about n images.

    classes  int[n]: the class of each image, or ABSTAINED.
    radii    f64[n], in [0, 1] pixels: no image within this L2 distance has another class;
             0 where the classifier abstained.
    success  bool[n]: the class is the label.
    votes    int[n]: the noisy copies, out of `samples`, that had the class.
    """

    classes: np.ndarray
    radii: np.ndarray
    success: np.ndarray
    votes: np.ndarray

    def certified_accuracy(self, radius: float) -> float:
        """Return the share of images with the right class and at least this radius."""
        return float(np.mean(self.success & (self.radii >= radius)))


def smooth(
    logits_fn: Callable,
    images: Numbers,
    labels: Numbers,
    *,
    sigma: float,
    selection: int = 100,
    samples: int = 100_000,
    alpha: float = 0.001,
    batch_size: int = 1000,
    seed: int = 0,
    save: str | pathlib.Path | None = None,
    progress: bool | Callable[[str], None] = False,
) -> Smoothed:
    """Certify images by randomised smoothing (Cohen et al., ICML 2019, algorithm CERTIFY).

    The smoothed classifier returns the class that `logits_fn` most often gives to an image
    with Gaussian noise. `selection` noisy copies choose the class. If `samples` fresh ones
    have it with a probability above 1/2, by the Clopper-Pearson bound at confidence
    1 - alpha, the radius is sigma times the normal quantile of that bound; otherwise the
    classifier abstains. Each image's statement is wrong with probability alpha at most. It
    holds for the smoothed classifier, not for `logits_fn`.

    Noisy copies leave [0, 1], as in training with noise. Memory is that of a forward pass of
    `batch_size` images. The result depends on `seed`, not on `batch_size` or the number of
    devices.

    Args:
        logits_fn: maps images f32[b, h, w, c] to logits [b, k]; as for `robust_accuracy`.
        images: [n, h, w, c], uint8 or floats in [0, 1].
        labels: n classes, of any integer type or as a list.
        sigma: the standard deviation of the noise in [0, 1] pixels, such as 0.25: that of
            the training.
        selection: the noisy copies that choose the class.
        samples: the noisy copies that bound its probability. The largest radius follows
            from their number: 3.8 sigma with 100,000 and alpha = 0.001.
        alpha: the probability of a wrong statement about an image.
        batch_size: the noisy copies classified at a time, over all devices together.
        seed: the seed of the noise.
        save: a file for the counts. It is written after each image, and a call with the
            same arguments goes on from there. A plain function gives no weights to compare:
            use one file a model.
        progress: a function that is called with a line of text now and then, such as
            `print`. True writes these lines to standard error.

    Raises:
        InputError: for images, labels or a model that `robust_accuracy` refuses; a sigma or
            count that is not above 0; an alpha outside (0, 1); a `save` file of another
            call; logits that are not finite.
    """
    counts = {"selection": selection, "samples": samples, "batch_size": batch_size}
    _check_numbers(sigma, alpha, **counts)
    images, labels = (np.asarray(as_array(values)) for values in (images, labels))
    check_images(images, labels, raw=True)
    num_classes = check_model(logits_fn, images[:1])
    check_labels(labels, num_classes)
    images = np.asarray(unit_range(images), np.float32)
    voter = _Voter(arrays_as_leaves(logits_fn), sigma, batch_size, num_classes)
    settings = {
        "sigma": float(sigma),
        "selection": int(selection),
        "samples": int(samples),
        "seed": int(seed),
        "images": f"{checksum(images):08x}",
        "model": f"{checksum(voter.weights):08x}",
    }
    kept = _Kept(save, settings, len(images))
    lines = _lines(progress, len(images))
    for index in range(len(kept.classes), len(images)):
        lines(index)
        key = jax.random.fold_in(jax.random.key(seed), index)
        watch = functools.partial(_show_part, lines, index, selection + samples)
        count = functools.partial(voter.votes, images[index], key, watch)
        chosen = int(count(0, selection).argmax())
        votes = count(selection, selection + samples)
        kept.add(chosen, int(votes[chosen]))
    lines(len(images))
    bounds = np.array([clopper_pearson(v, samples, alpha=alpha) for v in kept.votes])
    decided = bounds > 0.5
    radii = np.where(decided, sigma * special.ndtri(bounds), 0.0)
    classes = np.where(decided, kept.classes, ABSTAINED)
    return Smoothed(classes, radii, classes == labels, np.array(kept.votes))


class _Voter:
    """The votes of a model's noisy copies, counted on all devices."""

    def __init__(self, logits_fn, sigma, batch_size, num_classes):
        # A plain function keeps its arrays.
        if jax.tree_util.all_leaves([logits_fn]):
            logits_fn = jax.tree_util.Partial(logits_fn)
        self.weights, structure = jax.tree.flatten(logits_fn)
        self._placed = parallel.place(self.weights, REPLICATED)
        self._classes = parallel.pmap(
            lambda weights, *rest: _noisy_classes(structure.unflatten(weights), *rest),
            inputs=(REPLICATED, SPLIT, REPLICATED, REPLICATED, REPLICATED),
            outputs=SPLIT,
        )
        self._sigma = parallel.place(np.float32(sigma), REPLICATED)
        self._size = parallel.multiple_of_devices(batch_size)
        self._num_classes = num_classes

    def votes(self, image, key, watch, first, end):
        """Return int[k]: the classes of the noisy copies `first` to `end` - 1."""
        image, key = parallel.place((image, jax.random.key_data(key)), REPLICATED)
        votes = np.zeros(self._num_classes, np.int64)
        for start in range(first, end, self._size):
            # Copies beyond the end are classified and not counted: one shape, one program.
            numbers = parallel.place(
                np.arange(start, start + self._size, dtype=np.int32), SPLIT
            )
            found = self._classes(self._placed, numbers, image, key, self._sigma)
            classes = parallel.fetch(found)[: end - start]
            if (classes == ABSTAINED).any():
                raise InputError("the model's logits of noisy images are not finite")
            votes += np.bincount(classes, minlength=self._num_classes)
            watch(min(end, start + self._size))
        return votes


def _noisy_classes(
    logits_fn: Callable,
    numbers: Int[Array, " b"],
    image: Float[Array, "h w c"],
    key: UInt32[Array, "2"],
    sigma: Float[Array, ""],
) -> Int[Array, " b"]:
    """Return the classes of copies of an image, each with the noise of its number.

    Without finite logits it is ABSTAINED.
    """
    key = jax.random.wrap_key_data(key)

    def noise(number):
        return jax.random.normal(jax.random.fold_in(key, number), image.shape)

    logits = logits_fn(image + sigma * jax.vmap(noise)(numbers)).astype(jnp.float32)
    # A masked class has -inf.
    finite = jnp.isfinite(logits.max(-1)) & ~jnp.isnan(logits).any(-1)
    return jnp.where(finite, logits.argmax(-1), ABSTAINED)


class _Kept:
    """The class and the votes of each image so far, in a file where there is one."""

    def __init__(self, path, settings, images):
        self._path = None if path is None else as_path(path)
        self._settings = settings
        self.classes, self.votes = [], []
        if self._path is None or not self._path.exists():
            return
        found = _read(self._path)
        other = [
            name for name in settings if found["settings"].get(name) != settings[name]
        ]
        if other or len(found["classes"]) > images:
            raise InputError(
                f"{self._path} is of another call (another {', '.join(other) or 'set'}): "
                "give another file to save"
            )
        self.classes, self.votes = found["classes"], found["votes"]

    def add(self, chosen, votes):
        self.classes.append(chosen)
        self.votes.append(votes)
        if self._path is not None:
            content = {
                "settings": self._settings,
                "classes": self.classes,
                "votes": self.votes,
            }
            with whole_file(self._path) as partial:
                partial.write_text(json.dumps(content))


def _read(path):
    fault = InputError(f"{path} is damaged: it holds no counts of smoothing")
    try:
        found = json.loads(path.read_text())
    except ValueError:
        raise fault from None
    lists = isinstance(found, dict) and [found.get("classes"), found.get("votes")]
    whole = lists and all(
        isinstance(values, list) and all(type(value) is int for value in values)
        for values in lists
    )
    if not whole or not isinstance(found.get("settings"), dict):
        raise fault
    if len(found["classes"]) != len(found["votes"]):
        raise fault
    return found


def _lines(progress, total):
    if not progress:
        return lambda done: None
    write = _to_standard_error if progress is True else progress
    return Progress("smoothing", total=total, unit="images", write=write).show


def _show_part(show, index, copies, classified):
    """Show the progress within an image."""
    show(index + classified / copies)


def _to_standard_error(line):
    sys.stderr.write(f"{line}\n")


def _check_numbers(sigma, alpha, **counts):
    if not 0 < sigma < np.inf:
        raise InputError(f"sigma = {sigma}: must be above 0, in [0, 1] pixels")
    if not 0 < alpha < 1:
        raise InputError(f"alpha = {alpha}: must be a probability above 0 and below 1")
    for name, count in counts.items():
        if not np.issubdtype(np.asarray(count).dtype, np.integer) or count < 1:
            raise InputError(f"{name} = {count}: must be a whole number, 1 or more")
