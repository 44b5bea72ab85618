"""The kernels of the convolutions in an attack on a CPU: XLA's, or oneDNN's in long ones."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from freeadv_jax.attacks.attack import Attack, as_pytree
from freeadv_jax.attacks.draws import image_keys
from freeadv_jax.devices import onednn
from freeadv_jax.models.fast_conv import convolution_flop, with_fast_convolutions


def are_random(attacks: Iterable[Attack]) -> bool:
    """Return whether attacks draw samples of a randomised model."""
    return any(getattr(attack, "samples", None) is not None for attack in attacks)


def kernels_for(
    choice: str, attacks: Iterable[Attack], logits_fn: Callable, images
) -> str:
    """Return "xla" or "onednn" for `attacks` on `images` [n, h, w, c].

    With the `choice` "auto" the work decides, see `devices.onednn.choose`: the FLOP of the
    model's convolutions if each attempt on each image took all its steps.
    """
    attacks = list(attacks)

    def flop():
        steps = sum(
            attack.attempts * attack.steps * (getattr(attack, "samples", None) or 1)
            for attack in attacks
        )
        if not steps:
            return 0
        image = jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32)
        keys = (jax.eval_shape(lambda: image_keys(1)),) if are_random(attacks) else ()
        forward = convolution_flop(
            lambda logits_fn, *arguments: logits_fn(*arguments),
            as_pytree(logits_fn),
            image,
            *keys,
        )
        # Forward, and backward to the image.
        return 2 * forward * steps * len(images)

    return onednn.choose(choice, attack_flop=flop)


def traced_with(kernels: str, logits_fn: Callable, *, looped: bool = False) -> Callable:
    """Return `logits_fn` with its convolutions by the kernels "xla" or "onednn".

    For "xla" it stays as it is, unless it is `looped`: the gradients of convolutions are
    slow inside the loop over the draws of a randomised model (see `fast_conv`). A pytree of
    arrays stays one, so that programs compiled for it serve all models of its structure.
    """
    if kernels == onednn.XLA and not looped:
        return logits_fn
    if jax.tree_util.all_leaves([logits_fn]):
        return with_fast_convolutions(logits_fn, kernels=kernels)
    leaves, structure = jax.tree.flatten(logits_fn)
    return jax.tree_util.Partial(_Traced(kernels, structure), leaves)


@dataclasses.dataclass(frozen=True)
class _Traced:
    """A model without its arrays; equal for models of one structure and the same kernels."""

    kernels: str
    structure: Any

    def __call__(self, leaves, *arguments):
        logits_fn = jax.tree.unflatten(self.structure, leaves)
        return with_fast_convolutions(logits_fn, kernels=self.kernels)(*arguments)
