"""Gradients for what has none: the backward pass of another function."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from freeadv_jax.errors import InputError


def bpda(forward: Callable, backward: Callable | None = None) -> Callable:
    """Return `forward` with the gradient of `backward`.

    Backward pass differentiable approximation (Athalye et al., ICML 2018, section 4.1).
    Attacks by gradients then pass a defence that cannot be differentiated, or whose
    gradient leads nowhere: rounding, an encoder, a codec, a purifier. Put the result in
    the place of the defence: `logits_fn = lambda images: network(defend(images))` with
    `defend = bpda(quantise)`.

    Args:
        forward: the defence. It maps an array of floats, and any further arguments such as
            random keys, to an array of floats. It is never differentiated, so that it may
            call the host, see `freeadv_jax.attacks.host.on_host`.
        backward: a differentiable function of the same arguments that resembles it and
            returns the same shape, such as a smooth form of the encoder. The default is the
            identity in the first argument, for a defence that returns nearly its input.

    Returns:
        A function of the same arguments. Its result is that of `forward` to the bit. Its
        gradient for the first argument is that of `backward`; everything after the defence
        is differentiated at the true result.

    Raises:
        InputError: when it is called, for a `backward` of another shape and for a result
            that is not one array of floats.
    """

    # Wrapped, the signature says whether the function takes keys.
    @functools.wraps(forward, updated=())
    def defend(inputs, *others, **keywords):
        inputs = jnp.asarray(inputs)
        # JAX differentiates neither the call nor a host callback inside it.
        value = forward(jax.lax.stop_gradient(inputs), *others, **keywords)
        if backward is None:
            stand_in = inputs
        else:
            stand_in = backward(inputs, *others, **keywords)
        _check(inputs, value, stand_in, given=backward is not None)
        return _with_gradient_of(value, stand_in.astype(value.dtype))

    return defend


def _check(inputs, value, stand_in, *, given):
    """Raise InputError unless the two results are floats of one shape."""
    source = "backward" if given else "the identity, which stands in for backward,"
    for name, result in {"forward": value, source: stand_in}.items():
        if not isinstance(result, jax.Array):
            raise InputError(
                f"bpda: {name} gives a {type(result).__name__}: must be one array of jax.numpy"
            )
        if not jnp.issubdtype(result.dtype, jnp.floating):
            raise InputError(
                f"bpda: {name} gives {result.dtype}, which has no gradient: must be floats"
            )
    if value.shape != stand_in.shape:
        raise InputError(
            f"bpda: {source} gives shape {stand_in.shape} and forward {value.shape} for "
            f"inputs of shape {inputs.shape}: must be the same"
        )


@jax.custom_jvp
def _with_gradient_of(value, stand_in):
    """Return `value`; its derivative is that of `stand_in`."""
    del stand_in
    return value


@_with_gradient_of.defjvp
def _derivative(primals, tangents):
    return primals[0], tangents[1]
