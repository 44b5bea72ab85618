"""A trained model as a function, from a run folder or an exported one."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from freeadv_jax.errors import InputError
from freeadv_jax.run import local_path, read_run

# What a folder of `freeadv_jax.export` holds in place of a run's record.
EXPORTED = "model.json"


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A trained model: classifier(images) -> logits.

    `images` are float [b, h, w, c] in [0, 1], `image_shape` is (h, w, c), the logits
    float32 [b, num_classes]. Differentiable, and traceable by jax.jit.
    """

    logits_fn: Callable
    num_classes: int
    image_shape: tuple[int, int, int]

    def __call__(self, images):
        if np.shape(images)[1:] != self.image_shape or np.ndim(images) != 4:
            raise InputError(
                f"images of shape {np.shape(images)}: this model takes "
                f"[b, {', '.join(map(str, self.image_shape))}]"
            )
        images = jnp.asarray(images)
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise InputError(
                f"images of type {images.dtype}: this model takes floats in [0, 1]; "
                "divide by 255"
            )
        return self.logits_fn(images)


def as_classifier(model, variables, *, num_classes, image_shape) -> Classifier:
    """The model with its weights, which jitted functions take as an argument."""

    @jax.jit
    def logits_fn(variables, images):
        return model.apply(variables, images, train=False)

    return Classifier(
        logits_fn=jax.tree_util.Partial(logits_fn, jax.device_put(variables)),
        num_classes=num_classes,
        image_shape=image_shape,
    )


def load(workdir, *, checkpoint: str = "last") -> Classifier:
    """The trained model of a run folder, from its 'last' or 'best' checkpoint.

    A folder of `freeadv_jax.export` holds but one model, which counts as its last.
    """
    folder = local_path(workdir)
    if (folder / EXPORTED).exists():
        # Imported here because it needs this module.
        from freeadv_jax.export import load_exported

        if checkpoint != "last":
            raise InputError(f"{folder} is an exported model; allowed: last")
        return load_exported(folder)
    run = read_run(folder)
    return as_classifier(
        run.model(),
        run.trained_state(checkpoint).variables,
        num_classes=run.num_classes,
        image_shape=run.image_shape,
    )
