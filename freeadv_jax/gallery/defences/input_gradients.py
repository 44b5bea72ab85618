"""Input gradient penalty: Ross & Doshi-Velez (AAAI 2018); it masks nothing and is weak.

The square of the input gradient is a term of the loss. It flattens the loss at the images
and little around them: plain PGD leaves 0 %.
"""

import jax
import jax.numpy as jnp

from freeadv_jax.attacks.losses import cross_entropy
from freeadv_jax.gallery.defence import Defence
from freeadv_jax.gallery.defences.adversarial import honest

WEIGHT = 0.1


def gradient_penalty_loss(logits_fn, images, labels, key):
    """Return CE(x) + 0.1 * |dCE(x) / dx|^2 and the logits.

    `images` are f32[b, h, w, c] in [0, 1]; the gradient is that of each image's own loss.
    """
    del key

    def total(images):
        logits = logits_fn(images)
        losses = cross_entropy(logits, labels)
        return losses.sum(), (losses, logits)

    gradient, (losses, logits) = jax.grad(total, has_aux=True)(images)
    return losses + WEIGHT * jnp.sum(gradient**2, axis=(1, 2, 3)), logits


DEFENCE = Defence(
    name="input-gradients",
    title="Input gradient penalty",
    paper="Ross & Doshi-Velez, AAAI 2018",
    kind="none",
    parameters=f"weight {WEIGHT}",
    broken_by="plain PGD",
    masks=False,
    published=0.0,
    build=lambda task: honest(task.train_on("input-gradients", gradient_penalty_loss)),
)
