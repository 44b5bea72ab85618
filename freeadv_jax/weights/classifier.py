"""A trained model as a function."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from freeadv_jax.errors import InputError


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
