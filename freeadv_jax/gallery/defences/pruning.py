"""Stochastic activation pruning: Dhillon et al. (ICLR 2018); the gradient is random.

After each layer small units are dropped at random, and the others are scaled up. EOT breaks
it completely (Athalye et al., ICML 2018): 0 % are left.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from freeadv_jax.gallery.defence import Defence, Defended, by_pgd
from freeadv_jax.models.conv import Conv

SAMPLES = 10


def prune(
    units: Float[Array, "b ..."], keys: Key[Array, " b"], draws: float = 1.0
) -> Float[Array, "b ..."]:
    """Return units of which small ones are 0 and the others are scaled up.

    A unit whose share of the positive units of its image is p is kept with probability
    1 - exp(-n * p), as if n = `draws` times the number of units were drawn with
    replacement, and divided by it. Negative units, which a ReLU drops, stay as they are.
    """

    def one(units, key):
        positive = jax.lax.stop_gradient(jnp.maximum(units, 0))
        share = positive / jnp.maximum(jnp.sum(positive), 1e-12)
        chance = -jnp.expm1(-draws * units.size * share)
        kept = jax.random.bernoulli(key, chance).astype(units.dtype)
        kept /= jnp.maximum(chance, 1e-12)
        return jnp.where(positive > 0, units * kept, units)

    return jax.vmap(one)(units, keys)


def stochastic_pruning(model: nn.Module, variables):
    """Return a Flax Linen module in evaluation mode with its layers pruned at random.

    The result maps images f32[b, h, w, c] and a key for each to logits. All convolutions
    and dense layers but the last are pruned, before the ReLU that follows them.
    """
    return jax.tree_util.Partial(_Pruned(model), variables)


class _Pruned:
    """A module whose hidden layers are pruned; equal for equal modules."""

    def __init__(self, model):
        self.model = model

    def __eq__(self, other):
        return isinstance(other, _Pruned) and self.model == other.model

    def __hash__(self):
        return hash(self.model)

    def __call__(self, variables, images, keys):
        layers = self._layers(variables, images)
        passed = 0

        def after(run, arguments, keywords, context):
            nonlocal passed
            units = run(*arguments, **keywords)
            if not _is_layer(context):
                return units
            passed += 1
            if passed == layers:
                return units
            return prune(units, jax.vmap(jax.random.fold_in, (0, None))(keys, passed))

        with nn.intercept_methods(after):
            return self.model.apply(variables, images, train=False)

    def _layers(self, variables, images):
        """Count the layers in a pass over shapes."""
        found = 0

        def count(run, arguments, keywords, context):
            nonlocal found
            found += _is_layer(context)
            return run(*arguments, **keywords)

        with nn.intercept_methods(count):
            jax.eval_shape(
                lambda images: self.model.apply(variables, images, train=False), images
            )
        return found


def _is_layer(context):
    kind = isinstance(context.module, Conv | nn.Conv | nn.Dense)
    return kind and context.method_name == "__call__"


def _build(task):
    defended = stochastic_pruning(task.network(), task.natural.variables)
    return Defended(
        defended,
        {
            f"EOT over {SAMPLES} draws": by_pgd(defended, samples=SAMPLES),
            "EOT on the margin": by_pgd(defended, samples=SAMPLES, loss="margin"),
        },
        random=True,
    )


DEFENCE = Defence(
    name="activation-pruning",
    title="Stochastic activation pruning",
    paper="Dhillon et al., ICLR 2018",
    kind="random gradients",
    parameters="as many draws as units",
    broken_by="EOT",
    masks=True,
    published=0.0,
    build=_build,
)
