"""Every attack says how many passes it takes, as a model counts them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.attacks import fab, pgd, square
from freeadv_jax.attacks.apgd import APGD
from freeadv_jax.attacks.apgd_l1 import SparseAPGD
from freeadv_jax.attacks.attack import Batch
from freeadv_jax.attacks.fab import FAB
from freeadv_jax.attacks.fmn import FMN
from freeadv_jax.attacks.noise import Noise
from freeadv_jax.attacks.pgd import PGD
from freeadv_jax.attacks.sparse_pgd import SparsePGD
from freeadv_jax.attacks.square import Square

RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(40, 6)).astype(np.float32)
IMAGES = RNG.uniform(0.3, 0.7, (4, 5, 4, 2)).astype(np.float32)


class Counted:
    """A linear model that counts its forward and backward passes while JAX traces."""

    def __init__(self):
        self.forward = self.backward = 0
        self._function = jax.custom_vjp(self._evaluate)
        self._function.defvjp(self._evaluate_and_keep, self._pull_back)

    def __call__(self, images, keys=None):
        return self._function(images)

    def _evaluate(self, images):
        self.forward += 1
        return (images - 0.5).reshape(len(images), -1) @ WEIGHTS

    def _evaluate_and_keep(self, images):
        return self._evaluate(images), images.shape

    def _pull_back(self, shape, towards):
        self.backward += 1
        return ((towards @ WEIGHTS.T).reshape(shape),)

    def passes(self):
        return (self.forward + 2 * self.backward) / 3


def batch():
    keys, zeros = jax.random.split(jax.random.key(0), 4), jnp.zeros(4, jnp.int32)
    return Batch(jnp.asarray(IMAGES), zeros, keys, zeros, zeros)


@pytest.mark.parametrize(
    "attack",
    [
        PGD("linf", 0.05, 10, step_size=0.01),
        PGD("l2", 0.2, 10, step_size=0.05, goal="multi-target", targets=3),
        PGD("linf", 0.05, 10, step_size=0.01, goal="given-target"),
        APGD("linf", 0.05),
        APGD("l2", 0.2, goal="multi-target", targets=5, loss="dlr", reach=1.0),
        SparseAPGD(2.0, goal="multi-target", targets=5, loss="dlr"),
        SparsePGD(3, 10, step_size=0.1),
        FAB("linf", 0.05),
        FAB("l2", 0.2, goal="untargeted"),
        FMN("l2", 0.2),
        Square("linf", 0.05),
        Square("l2", 0.2),
        Noise("linf", 0.05, 10),
    ],
    ids=repr,
)
def test_start_and_step_take_the_passes_that_they_say(attack):
    model = Counted()
    # JAX traces a loop over the classes once, so that it must run without being traced.
    loops = getattr(attack, "goal", "") == "untargeted" and isinstance(attack, FAB)
    with jax.disable_jit(loops):
        run = (lambda function, *given: function(*given)) if loops else jax.eval_shape
        state = run(lambda batch: attack.start(model, batch), batch())
        start = model.passes()
        run(lambda batch, state: attack.step(model, batch, state), batch(), state)
    step = model.passes() - start
    assert attack.passes(6) == pytest.approx((start, step))


def test_draws_multiply_the_passes():
    start, step = APGD("linf", 0.05).passes(10)
    assert APGD("linf", 0.05, samples=7).passes(10) == (7 * start, 7 * step)
    assert FAB("l2", 1.0, samples=7).passes(10)[1] == pytest.approx(7 * 4 / 3)


def never_broken(images):
    return jnp.tile(jnp.array([9.0, 0, 0, 0, 0, 0]), (len(images), 1))


def always_broken(images):
    return jnp.tile(jnp.array([0.0, 9, 0, 0, 0, 0]), (len(images), 1))


def test_an_outcome_counts_what_each_image_took():
    labels, threat = np.zeros(4, int), {"norm": "linf", "epsilon": 0.05}
    steps = {"steps": 8, "restarts": 3}
    found = pgd(never_broken, IMAGES, labels, **threat, **steps)
    np.testing.assert_allclose(found.passes, 1 / 3 + 3 * (1 + 8), rtol=1e-6)
    found = square(never_broken, IMAGES, labels, **threat, queries=20)
    np.testing.assert_allclose(found.passes, 1 / 3 + 21 / 3, rtol=1e-6)
    found = fab(never_broken, IMAGES, labels, **threat, steps=6, targets=2)
    np.testing.assert_allclose(found.passes, 1 / 3 + 2 * (1 / 3 + 6 * 4 / 3), rtol=1e-6)


def test_an_image_that_is_wrong_as_it_is_takes_one_forward_pass():
    found = pgd(
        always_broken, IMAGES, np.zeros(4, int), norm="linf", epsilon=0.05, steps=8
    )
    np.testing.assert_allclose(found.passes, 1 / 3, rtol=1e-6)
    assert found.success.all()
