"""Adversarial training at the price of natural training, in JAX and Flax."""

from freeadv_jax.version import __version__

__all__ = ["__version__", "load"]


def load(workdir, *, checkpoint: str = "last"):
    """The trained model of a run folder: images in [0, 1] to logits.

    See `freeadv_jax.weights.classifier.Classifier` for its shapes. `checkpoint` is 'last' or 'best'
    (by robust validation accuracy). InputError where the folder holds no such model.
    """
    # Orbax takes a second to import, which `import freeadv_jax` need not cost.
    from freeadv_jax.runs import load as loading

    return loading.load(workdir, checkpoint=checkpoint)
