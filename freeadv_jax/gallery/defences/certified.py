"""A certified defence: no attack goes below its bound.

Wong et al. (ICML 2018) and Gowal et al. (2018) train a network on a bound of its loss in the
whole ball. The bound here is that of interval arithmetic, the published row that of Wong et
al. The certified accuracy stands beside those under attack.
"""

import numpy as np

from freeadv_jax.certify import interval
from freeadv_jax.gallery.defence import Defence
from freeadv_jax.gallery.defences.adversarial import honest
from freeadv_jax.models.deepmind_cnn import DeepMindCNN
from freeadv_jax.models.normalized import NormalizedNetwork


def _build(task):
    model = task.network()
    if min(task.image_shape[:2]) >= 10:
        # The bounds of a network without pooling take a fraction of the time.
        small = DeepMindCNN(len(task.class_names), "small")
        recipe = task.recipe
        model = NormalizedNetwork(small, "mean_std", recipe.mean, recipe.std)
    network = task.fit(
        "ibp",
        model=model,
        method="ibp",
        # Momentum at the recipe's rate can drive a network on bounds to a constant.
        optimizer="adamw",
        learning_rate=1e-3,
        nesterov=False,
        updates=4 * task.recipe.updates,
    )

    def certified(images, labels, threat):
        found = interval(
            network.logits_fn, images, labels, norm=threat.norm, epsilon=threat.epsilon
        )
        return np.asarray(found.certified)

    return honest(network, certified=certified)


DEFENCE = Defence(
    name="certified",
    title="Certified training",
    paper="Wong et al., ICML 2018",
    kind="none",
    parameters="bounds by intervals",
    broken_by="cannot be broken below its certificate",
    masks=False,
    published=0.2354,
    build=_build,
)
