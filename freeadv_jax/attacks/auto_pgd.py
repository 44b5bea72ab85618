"""The parts that Auto-PGD has in every norm: its loss, its targets and its success."""

from typing import NamedTuple

import jax
from jaxtyping import Array, Float

from freeadv_jax.attacks.attack import FORWARD, misclassified, target_class
from freeadv_jax.attacks.draws import confirmed, evaluated, mean_logits
from freeadv_jax.attacks.losses import TARGETED, untargeted_loss

GOALS = ("untargeted", "multi-target")


class Evaluated(NamedTuple):
    """Hold a point with the loss and the gradient there."""

    point: Float[Array, "b h w c"]
    loss: Float[Array, " b"]
    gradient: Float[Array, "b h w c"]


class AutoPGD:
    """Hold the parts that do not depend on the norm; the subclasses have the fields."""

    @property
    def attempts(self):
        """Return the number of restarts times targets; only one goal has targets."""
        return self.restarts * (self.targets if self.goal == "multi-target" else 1)

    def success(self, logits, labels):
        """Return where the image is misclassified."""
        return misclassified(logits, labels)

    def passes(self, num_classes):
        """Return what the start and a step take; the targets are read from the logits."""
        draws, targeted = self.samples or 1, self.goal == "multi-target"
        return draws * (1 + targeted * FORWARD), draws

    def _start_keys(self, batch):
        return jax.vmap(jax.random.fold_in, (0, None))(batch.keys, 0)

    def _evaluate(self, logits_fn, batch, targets, point, number):
        """Return the evaluated point and its logits; `number` selects the draws."""

        def loss(logits):
            if self.goal == "untargeted":
                chosen = untargeted_loss(self.loss, randomized=self.samples is not None)
                return chosen(logits, batch.labels)
            return TARGETED[self.loss](logits, batch.labels, targets)

        losses, logits, gradient = evaluated(
            logits_fn, loss, point, batch, number, self.samples
        )
        return Evaluated(point, losses, gradient), logits

    def _broken(self, logits_fn, batch, point, logits, number):
        """Return which images are broken, for a randomised model on fresh draws too."""
        found = self.success(logits, batch.labels)
        how = logits_fn, point, batch, number, self.samples
        return confirmed(found, self.success, *how)

    def _targets(self, logits_fn, batch):
        """Return the target class of each image; the label where the goal uses none."""
        if self.goal == "untargeted":
            return batch.labels
        logits = mean_logits(logits_fn, batch.images, batch, 1, self.samples)
        return target_class(logits, batch.labels, batch.attempt % self.targets)
