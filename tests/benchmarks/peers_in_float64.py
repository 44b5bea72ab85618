"""Compare a replay of Free-m with the PyTorch peer in float64, to 1e-5.

    PYTHONPATH=. python tests/benchmarks/peers_in_float64.py NETWORK PIXELS BATCH_SIZE

It is a process of its own, because it turns float32 in the package into float64. In
float32, two programs for a deep network on a small batch differ by some percent of a
gradient: rounding decides on which side of 0 some rectifiers are.
"""

import sys

import jax
import jax.numpy as jnp

jax.config.update("jax_enable_x64", True)
jnp.float32 = jnp.float64

import numpy as np
import torch
import torch.nn.functional as F
from test_peers import (
    BALL,
    assert_same_gradients,
    in_pytorch,
    our_replay,
    to_torch,
    trained_on,
)

from benchmarks.peers.torch_training import free_step
from freeadv_jax import models


def main(network, pixels, batch_size):
    run, batch, state = trained_on(
        network, "free-1", pixels=pixels, batch_size=batch_size
    )
    # Weights that float32 can hold too.
    state = jax.tree.map(_rounded, state)
    learner, (_, labels), before = in_pytorch(run, batch, state)
    classifier = learner.model.double()
    for buffer, values in (
        (classifier.mean, run.config.model.mean),
        (classifier.std, run.config.model.std),
    ):
        buffer.copy_(torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1, 1))

    def loss(images, labels):
        logits = classifier(images)
        return F.cross_entropy(logits, labels), logits

    learner.loss = loss
    images, delta = (to_torch(x).double() for x in (batch["image"], state.delta))
    theirs = free_step(learner, (images / 255, labels), delta, **BALL, replays=1)
    after, ours = our_replay(run, batch, state)
    assert ours["loss"].dtype == jnp.float64
    np.testing.assert_allclose(float(theirs["loss"]), float(ours["loss"]), rtol=1e-9)
    assert_same_gradients(run, after, learner, before, atol=1e-5)
    difference = np.abs(to_torch(after.delta).numpy() - delta.detach().numpy())
    assert np.mean(difference > 1e-6) < 1e-4
    assert np.mean(np.abs(after.delta - state.delta) > 1e-4) > 0.4


def _rounded(array):
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    return array.astype(np.float32).astype(np.float64) if floating else array


if __name__ == "__main__":
    models.DTYPES["float32"] = jnp.float64
    main(sys.argv[1], *map(int, sys.argv[2:]))
