import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.attacks.pgd import pgd
from freeadv_jax.attacks.threat import Threat

IMAGES = jax.random.uniform(jax.random.key(0), (4, 5, 3, 2))
WEIGHTS = jax.random.normal(jax.random.key(1), (5, 3, 2))


def objective(images):
    return (images * WEIGHTS).sum((1, 2, 3))


@pytest.mark.parametrize("start", [0.0, 0.05])
def test_linear_objective_is_driven_to_its_maximum_in_ball_and_box(start):
    """For L-inf that is the corner x + epsilon * sign(w), clipped to the pixels."""
    adversarial = pgd(
        objective,
        IMAGES,
        jnp.full_like(IMAGES, start),
        threat=Threat("linf", 0.1),
        steps=10,
        step_size=0.04,
    )
    best = np.clip(IMAGES + 0.1 * np.sign(WEIGHTS), 0, 1)
    np.testing.assert_allclose(adversarial, best, atol=1e-7)


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.1), ("l2", 0.5)])
def test_result_is_within_ball_and_box_to_one_ulp(norm, epsilon):
    def wild(images):
        return jnp.sin(37 * images).sum((1, 2, 3))

    threat = Threat(norm, epsilon)
    start = threat.random_start(jax.random.split(jax.random.key(2), 4), (5, 3, 2))
    adversarial = pgd(wild, IMAGES, start, threat=threat, steps=9, step_size=epsilon)
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    delta = (np.array(adversarial, np.float64) - np.array(IMAGES)).reshape(4, -1)
    size = np.linalg.norm(delta, {"linf": np.inf, "l2": 2}[norm], axis=1)
    assert size.max() <= epsilon + np.spacing(np.float32(1))
    assert size.max() > 0.9 * epsilon


def test_no_step_gives_the_start_clipped_to_the_box():
    adversarial = pgd(
        objective,
        IMAGES,
        jnp.full_like(IMAGES, 0.3),
        threat=Threat("linf", 0.3),
        steps=0,
        step_size=0.1,
    )
    np.testing.assert_allclose(adversarial, np.clip(IMAGES + 0.3, 0, 1), atol=1e-7)


def test_number_of_steps_may_be_traced():
    @jax.jit
    def attack(steps):
        return pgd(
            objective,
            IMAGES,
            jnp.zeros_like(IMAGES),
            threat=Threat("linf", 0.1),
            steps=steps,
            step_size=0.02,
        )

    moved = [float(jnp.abs(attack(steps) - IMAGES).max()) for steps in (1, 3, 20)]
    np.testing.assert_allclose(moved, [0.02, 0.06, 0.1], rtol=1e-5)
    assert attack._cache_size() == 1
