"""Stability training: Zheng et al. (CVPR 2016); it masks nothing and is weak.

The network learns to give an image and a noisy copy the same class probabilities. Noise is
no adversary: plain PGD leaves 0.15 %.
"""

import jax

from freeadv_jax.attacks.losses import cross_entropy, divergence
from freeadv_jax.gallery.defence import Defence
from freeadv_jax.gallery.defences.adversarial import honest

WEIGHT, DEVIATION = 0.01, 0.04


def stability_loss(logits_fn, images, labels, key):
    """Return CE(x) + 0.01 * KL(f(x) || f(x + noise)) and the logits.

    `images` are f32[b, h, w, c] in [0, 1], and the noise is normal with the standard
    deviation 0.04, drawn with `key`.
    """
    logits = logits_fn(images)
    noise = DEVIATION * jax.random.normal(key, images.shape)
    apart = divergence(logits, logits_fn(images + noise))
    return cross_entropy(logits, labels) + WEIGHT * apart, logits


DEFENCE = Defence(
    name="stability",
    title="Stability training",
    paper="Zheng et al., CVPR 2016",
    kind="none",
    parameters=f"weight {WEIGHT}, noise of {DEVIATION}",
    broken_by="plain PGD",
    masks=False,
    published=0.0015,
    build=lambda task: honest(task.train_on("stability", stability_loss)),
)
