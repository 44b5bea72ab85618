"""L1-APGD agrees with a walk in float64, and its points with ball and box."""

import apgd_oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.attacks.apgd import apgd
from freeadv_jax.attacks.apgd_l1 import SparseAPGD
from freeadv_jax.attacks.attack import Batch
from freeadv_jax.attacks.one_batch import run_attack
from freeadv_jax.errors import InputError

SHAPE = (5, 3, 2)
IMAGES = jax.random.uniform(jax.random.key(0), (12, *SHAPE))
FIRST = jax.random.normal(jax.random.key(1), (30, 12))
SECOND = jax.random.normal(jax.random.key(2), (12, 6))


def curved(images):
    return jnp.tanh((images - 0.5).reshape(len(images), -1) @ FIRST) @ SECOND


def labelled(images):
    return jnp.argmax(curved(images), axis=-1)


def project(point, image, epsilon):
    """Return the nearest point in ball and box in float64, by bisection."""
    move = point - image
    room = np.where(move > 0, 1 - image, image)
    low, high = 0.0, np.abs(move).max()
    if np.minimum(np.abs(move), room).sum() > epsilon:
        for _ in range(100):
            level = (low + high) / 2
            fits = np.clip(np.abs(move) - level, 0, room).sum() <= epsilon
            low, high = (low, level) if fits else (level, high)
    else:
        high = 0.0
    return image + np.sign(move) * np.clip(np.abs(move) - high, 0, room)


def walk(image, start, label, model, *, epsilon, steps):
    """Return the point and the number of changed pixels after each step of one image."""
    early = min(-(-3 * steps // 10), (steps - 1) // 2)
    x = best = start
    f_best, gradient = apgd_oracle.loss_and_gradient(x, label, None, *model)
    g_best, before, found = gradient, np.sum(start != image), []
    for times, length in [(3, early), (2, early), (1, steps - 2 * early)]:
        radius, eta = times * epsilon, 1.0
        for k in range(length):
            begins = k == 0 and times < 3
            if begins:
                x = best
            else:
                count = max(int(np.ceil(before / 1.5 - 1e-9)), 1)
                free = np.where(gradient > 0, x < 1 - 1e-9, x > 1e-9)
                chosen = np.argsort(-np.abs(gradient) * free)[:count]
                step = np.zeros_like(x)
                step[chosen] = np.sign(gradient[chosen]) / count
                x = x + eta * radius * step
            x = project(x, image, radius * (1 - 1e-6))
            loss, gradient = apgd_oracle.loss_and_gradient(x, label, None, *model)
            if begins or loss > f_best:
                best, f_best, g_best = x, loss, gradient
            pixels = np.sum(best != image)
            found.append((x, pixels))
            if begins:
                before = pixels
            elif (k + 1) % max(4 * length // 100, 1) == 0:
                if pixels / before < 0.95:
                    eta, x, gradient = 1.0, best, g_best
                else:
                    eta = max(eta / 1.5, 0.1)
                before = pixels
    return found


@pytest.mark.parametrize("steps", [7, 60])
def test_every_step_agrees_with_the_paper_in_float64(steps):
    """Broken images are stepped on like the others; class 0 leads."""
    model = np.asarray(FIRST, np.float64), np.asarray(SECOND, np.float64)
    model = *model, 6.0 * np.eye(6)[0]

    def led(images):
        units = jnp.tanh((images - 0.5).reshape(len(images), -1) @ model[0])
        return units @ model[1] + model[2]

    attack = SparseAPGD(0.8, steps)
    with jax.enable_x64(True):
        images = jax.random.uniform(jax.random.key(3), (8, *SHAPE), jnp.float64)
        keys = jax.random.split(jax.random.key(4), 8)
        zero = jnp.zeros(8, jnp.int32)
        batch = Batch(images, jnp.zeros(8, int), keys, zero, zero)
        state = jax.jit(lambda batch: attack.start(led, batch))(batch)
        start = np.asarray(state.here.point).reshape(8, -1)
        step = jax.jit(lambda batch, state: attack.step(led, batch, state))
        points, pixels = [], []
        for k in range(steps):
            state = step(batch._replace(iteration=zero + k), state)
            points.append(np.asarray(state.here.point).reshape(8, -1))
            pixels.append(np.asarray(state.best.point != images).sum((1, 2, 3)))
    agreed = followed = 0
    for i in range(8):
        image = np.asarray(images[i]).ravel()
        wanted = walk(image, start[i], 0, model, epsilon=0.8, steps=steps)
        for k, (point, changed) in enumerate(wanted):
            if pixels[k][i] != changed:
                # A change of less than an ulp decides; the walks part from here on.
                assert k > 3
                break
            followed += 1
            # After a checkpoint that returns to the best point, ours shows that one.
            agreed += np.allclose(points[k][i], point, atol=1e-5)
    assert followed >= 0.9 * 8 * steps
    assert agreed >= 0.8 * 8 * steps


@pytest.mark.parametrize(
    ("loss", "goal"),
    [
        ("cross-entropy", "untargeted"),
        ("dlr", "multi-target"),
        ("margin", "untargeted"),
    ],
)
def test_successes_are_misclassified_and_all_points_are_inside_ball_and_box(loss, goal):
    images = jnp.round(jax.random.uniform(jax.random.key(4), (16, *SHAPE)) * 4) / 4
    labels = labelled(images)
    call = {"loss": loss, "goal": goal, "targets": 3, "steps": 30}
    found = apgd(curved, images, labels, norm="l1", epsilon=0.8, **call)
    assert 0 < found.success.sum() < 16
    np.testing.assert_array_equal(found.success, labelled(found.images) != labels)
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    delta = np.float64(found.images) - np.float64(images)
    size = np.abs(delta).sum((1, 2, 3))
    assert size.max() <= 0.8 + np.spacing(np.float32(1))
    assert size.max() > 0.7


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 100])
def test_the_last_phase_is_in_the_ball_of_epsilon_and_has_a_step(steps):
    attack = SparseAPGD(1.0, steps)
    iterations = jnp.arange(-1, steps, dtype=jnp.int32)
    phases = np.asarray(attack._phase(iterations))
    radii = np.asarray(attack._radius(jnp.asarray(phases), IMAGES))
    assert (np.diff(radii) <= 0).all()
    assert radii[-1] == 1
    if steps == 100:
        counts = np.bincount(phases[1:], minlength=3)
        assert counts.tolist() == [30, 30, 40]


def test_one_compilation_serves_all_numbers():
    traces = []

    def model(images):
        traces.append(1)
        return curved(images)

    model = jax.tree_util.Partial(model)
    run_attack(SparseAPGD(0.5, 10), model, IMAGES, labelled(IMAGES))
    traced = len(traces)
    other = SparseAPGD(0.8, 7, restarts=2)
    run_attack(other, model, IMAGES, labelled(IMAGES))
    assert len(traces) == traced


def test_unusable_radius_is_refused():
    with pytest.raises(InputError, match="above 0 for l1"):
        apgd(curved, IMAGES, labelled(IMAGES), norm="l1", epsilon=-1.0)
