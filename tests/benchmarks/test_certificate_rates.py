"""benchmarks.certificates: its network, in JAX and in PyTorch, and its rate."""

import jax
import numpy as np
import pytest

from benchmarks.certificates import apply, init, rate, torch_model

IMAGES = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)


@pytest.fixture(scope="module")
def weights():
    return jax.tree.map(np.asarray, init(jax.random.key(0), (32, 32, 3)))


def test_the_network_has_112_006_parameters(weights):
    assert sum(array.size for pair in weights.values() for array in pair) == 112_006


def test_the_network_is_the_same_in_pytorch(weights):
    torch = pytest.importorskip("torch")
    weights = {
        name: (kernel, bias + np.float32(0.1))
        for name, (kernel, bias) in weights.items()
    }
    model = torch_model(weights)
    with torch.no_grad():
        found = model(torch.tensor(np.moveaxis(IMAGES, -1, 1).copy())).numpy()
    expected = np.asarray(apply(weights, IMAGES))
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)
    assert np.ptp(expected) > 0.1


def test_the_rate_is_that_of_two_cores():
    assert rate(200, spent=100.0) == 4.0
