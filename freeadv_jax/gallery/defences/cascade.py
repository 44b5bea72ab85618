"""Cascade adversarial training: Na et al. (ICLR 2018); it masks nothing and is weak.

Images that were attacked in several steps on a first network are carried over to the
training of a second one, which is also attacked in one step itself. Plain PGD leaves 15 % at
epsilon 0.015.
"""

import jax.numpy as jnp

from freeadv_jax.attacks.losses import cross_entropy
from freeadv_jax.attacks.pgd import projected_ascent
from freeadv_jax.attacks.threat import make_threat
from freeadv_jax.gallery.defence import Defence
from freeadv_jax.gallery.defences.adversarial import honest
from freeadv_jax.gallery.defences.fgsm import fgsm_trained, one_step

STEPS = 3


def cascade_loss(first, epsilon: float):
    """Return the mean of the losses of an image, of it attacked, and of it carried over.

    The second is attacked in one step on the network in training, the third in three
    steps of the size epsilon / 2 on the logits_fn `first`.
    """
    threat = make_threat("linf", epsilon)

    def loss(logits_fn, images, labels, key):
        carried = projected_ascent(
            lambda points: cross_entropy(first(points), labels),
            images,
            jnp.zeros_like(images),
            threat=threat,
            steps=STEPS,
            step_size=epsilon / 2,
        )
        logits = logits_fn(images)
        own = one_step(logits_fn, images, epsilon, key)
        losses = [cross_entropy(logits, labels)]
        losses += [cross_entropy(logits_fn(x), labels) for x in (own, carried)]
        return sum(losses) / len(losses), logits

    return loss


def _build(task):
    first = fgsm_trained(task).logits_fn
    loss = cascade_loss(first, task.recipe.epsilon)
    return honest(
        task.train_on("cascade", loss, updates=task.recipe.robust_minibatches)
    )


DEFENCE = Defence(
    name="cascade",
    title="Cascade adversarial training",
    paper="Na et al., ICLR 2018",
    kind="none",
    parameters=f"{STEPS} steps on a network of FGSM training",
    broken_by="plain PGD",
    masks=False,
    published=0.15,
    epsilon={"cifar10": 0.015},
    build=_build,
)
