"""FGSM training: Kurakin et al. (ICLR 2017); it masks nothing and is weak.

Each batch is trained on as it is and attacked by one step, whose size is drawn anew for
each image. More steps are stronger: the slides print 45.89 % for FGSM, and PGD leaves less.
"""

import jax
import jax.numpy as jnp

from freeadv_jax.attacks.losses import cross_entropy
from freeadv_jax.gallery.defence import Defence
from freeadv_jax.gallery.defences.adversarial import honest

# The weight of the attacked images beside the natural ones.
WEIGHT = 0.3


def one_step(logits_fn, images, epsilon, key):
    """Return images after one step of FGSM against the predicted class.

    `images` are f32[b, h, w, c] in [0, 1]. The size of each step is the absolute value of
    a normal number with the deviation epsilon / 2, cut off at epsilon. The predicted class
    in place of the label does not leak the label (Kurakin et al., section 4.4).
    """

    def loss(images):
        logits = logits_fn(images)
        predicted = jax.lax.stop_gradient(logits.argmax(axis=-1))
        return cross_entropy(logits, predicted).sum()

    size = jax.random.truncated_normal(key, -2.0, 2.0, (len(images), 1, 1, 1))
    step = epsilon / 2 * jnp.abs(size) * jnp.sign(jax.grad(loss)(images))
    return jax.lax.stop_gradient(jnp.clip(images + step, 0, 1))


def fgsm_loss(epsilon: float):
    """Return the loss (CE(x) + 0.3 * CE(x attacked)) / 1.3 with steps up to `epsilon`."""

    def loss(logits_fn, images, labels, key):
        logits = logits_fn(images)
        attacked = logits_fn(one_step(logits_fn, images, epsilon, key))
        losses = cross_entropy(logits, labels) + WEIGHT * cross_entropy(
            attacked, labels
        )
        return losses / (1 + WEIGHT), logits

    return loss


def fgsm_trained(task):
    """Return the network of a task that was trained on one-step attacks."""
    return task.train_on("fgsm", fgsm_loss(task.recipe.epsilon))


DEFENCE = Defence(
    name="fgsm",
    title="FGSM training",
    paper="Kurakin et al., ICLR 2017",
    kind="none",
    parameters="one step of random size, weight 0.3",
    broken_by="plain PGD",
    masks=False,
    published=0.4589,
    build=lambda task: honest(fgsm_trained(task)),
)
