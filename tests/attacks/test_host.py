"""A function on the host is a part of a model, also where a single core runs both."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.attacks.host import on_host


def levels(images):
    return np.round(3 * images) / 3


def test_the_host_computes_inside_jit_vmap_and_a_loop_without_a_gradient():
    images = np.random.default_rng(0).random((3, 4, 4, 2)).astype(np.float32)

    @jax.jit
    def twice(images):
        return jax.lax.fori_loop(0, 2, lambda _, x: on_host(levels, x), images)

    np.testing.assert_array_equal(twice(images), levels(images))
    mapped = jax.jit(jax.vmap(lambda image: on_host(levels, image[None])[0]))
    np.testing.assert_array_equal(mapped(images), levels(images))
    slope = jax.grad(lambda x: jnp.sum(on_host(levels, x) + 2 * x))(jnp.asarray(images))
    np.testing.assert_array_equal(slope, np.full_like(images, 2))


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="no cores can be chosen"
)
def test_a_single_core_does_not_wait_for_ever():
    """jax.pure_callback does, with images of more than 100 kB."""
    program = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import jax, numpy as np
from freeadv_jax.attacks.host import on_host
images = np.ones((100, 32, 32, 3), np.float32)
run = jax.jit(lambda x: jax.lax.fori_loop(0, 9, lambda _, x: on_host(np.sqrt, x + 1), x))
print(float(np.asarray(run(images)).max()))
"""
    found = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert float(found.stdout) == pytest.approx(1.618, abs=1e-3)
