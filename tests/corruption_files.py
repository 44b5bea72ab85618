"""Folders like CIFAR-10-C, and a stand-in for the library that makes corruptions."""

import types

import numpy as np

from freeadv_jax.corrupted.images import KINDS, SEVERITIES


def write_corruptions(folder, images, labels, *, labels_once=False):
    """Write a folder in which severity s makes images uint8[n, h, w, c] 10 s levels darker.

    The kind at place k makes them darker by k more levels. Return the folder.
    """
    folder.mkdir()
    for place, kind in enumerate(KINDS):
        darker = [
            np.maximum(images.astype(int) - 10 * severity - place, 0)
            for severity in SEVERITIES
        ]
        np.save(folder / f"{kind}.npy", np.concatenate(darker).astype(np.uint8))
    repeats = 1 if labels_once else len(SEVERITIES)
    np.save(folder / "labels.npy", np.tile(labels, repeats).astype(np.uint8))
    return folder


def stand_in():
    """Return a module that makes images darker, with noise of NumPy's generator.

    Its `calls` are the kinds and severities that were asked for.
    """
    calls = []

    def corrupt(image, *, severity, corruption_name, seed=None):
        calls.append((corruption_name, severity))
        assert image.dtype == np.uint8
        # The library draws the noise of two kinds from a generator of their own.
        seeded = corruption_name in ("impulse_noise", "glass_blur")
        assert seeded == (seed is not None)
        rng = np.random.default_rng(seed) if seeded else np.random
        noise = rng.normal(size=image.shape, scale=5) - 20 * severity
        noisy = np.clip(image + noise, 0, 255).astype(np.uint8)
        return np.broadcast_to(noisy, (*image.shape[:2], 3))

    return types.SimpleNamespace(corrupt=corrupt, calls=calls)
