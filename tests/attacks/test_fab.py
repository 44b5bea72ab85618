"""FAB agrees with exact distances, and its projections with linear and quadratic
programs.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from freeadv_jax.attacks.attack import Batch
from freeadv_jax.attacks.fab import FAB, fab
from freeadv_jax.attacks.one_batch import run_attack
from freeadv_jax.attacks.threat import L1, L2, NORMS, Linf
from freeadv_jax.errors import InputError

SHAPE = (5, 3, 2)
PIXELS = 30
IMAGES = jax.random.uniform(jax.random.key(0), (6, *SHAPE))
LINEAR = jax.random.normal(jax.random.key(1), (PIXELS, 4))
HIDDEN = 0.7 * jax.random.normal(jax.random.key(2), (PIXELS, 12))
OUT = jax.random.normal(jax.random.key(3), (12, 4))
ORDER = {"linf": np.inf, "l2": 2, "l1": 1}
ALL = pytest.mark.parametrize("norm", NORMS)


def linear(images):
    return (images - 0.5).reshape(len(images), -1) @ LINEAR


def curved(images):
    return jnp.sin((images - 0.5).reshape(len(images), -1) @ HIDDEN) @ OUT


def labelled(model, images=IMAGES):
    return jnp.argmax(model(images), axis=-1)


def sizes(delta, norm):
    flat = np.asarray(delta, np.float64).reshape(len(delta), -1)
    return np.linalg.norm(flat, ORDER[norm], axis=-1)


def project_by_bisection(point, w, need, norm):
    """Return the projection in float64: raise the level until d(level) reaches the
    plane.

    If the plane is out of reach, every pixel ends at its bound.
    """
    direction = np.sign(w * need)
    room = np.where(direction > 0, 1 - point, point)
    if norm == "l1":
        return direction * steepest_first(np.abs(w), room, abs(need))
    pace = np.abs(w) if norm == "l2" else np.ones_like(w)

    def move(level):
        return direction * np.minimum(level * pace, room)

    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        if abs(w @ move(middle)) < abs(need):
            low = middle
        else:
            high = middle
    return move(high)


def steepest_first(slope, room, need):
    """Return how far each pixel moves if the steepest ones use up their room first."""
    moved = np.zeros_like(room)
    for pixel in np.argsort(-slope):
        if slope[pixel] > 0:
            moved[pixel] = min(room[pixel], need / slope[pixel])
            need -= moved[pixel] * slope[pixel]
    return moved


def linear_distances(images, labels, norm):
    """Return the distance [image, class] to each other class's plane, inside the box."""
    weights = np.asarray(LINEAR, np.float64)
    distances = np.full((len(images), 4), np.inf)
    for i, label in enumerate(labels):
        x = np.asarray(images[i], np.float64).ravel()
        for k in set(range(4)) - {int(label)}:
            w = weights[:, k] - weights[:, label]
            f = w @ (x - 0.5)
            d = project_by_bisection(x, w, -f, norm)
            if abs(w @ d + f) < 1e-9:
                distances[i, k] = np.linalg.norm(d, ORDER[norm])
    return distances


def batch_of(images, labels, *, seed=0, attempt=0, iteration=0):
    count = len(images)
    keys = jax.random.split(jax.random.key(seed), count)
    attempt = jnp.broadcast_to(jnp.asarray(attempt), (count,))
    iteration = jnp.broadcast_to(jnp.asarray(iteration), (count,))
    return Batch(images, labels, keys, attempt, iteration)


def planes():
    """Return points with many pixels at 0 or 1, and planes; some are out of reach."""
    rng = np.random.default_rng(0)
    points = np.clip(rng.uniform(-0.5, 1.5, (40, 12)), 0, 1)
    w = rng.normal(size=(40, 12)) * (rng.uniform(size=(40, 12)) > 0.2)
    need = rng.normal(size=40) * 2
    return points, w, need


def test_linf_projection_solves_the_linear_program():
    points, w, need = planes()
    found = np.asarray(Linf.project_onto_hyperplane(*map(jnp.float32, planes())))
    reached = 0
    for x, w_i, need_i, d in zip(points, w, need, found, strict=True):
        # The variables are d and a bound on |d|, which is minimised.
        unit, ones = np.eye(12), np.ones((12, 1))
        best = scipy.optimize.linprog(
            np.r_[np.zeros(12), 1],
            A_ub=np.block([[unit, -ones], [-unit, -ones]]),
            b_ub=np.zeros(24),
            A_eq=np.r_[w_i, 0][None],
            b_eq=[need_i],
            bounds=[*zip(-x, 1 - x, strict=True), (0, None)],
        )
        assert ((x + d >= -1e-6) & (x + d <= 1 + 1e-6)).all()
        if best.status == 2:
            towards = w_i * np.sign(need_i)
            corner = np.where(towards > 0, 1 - x, np.where(towards < 0, -x, 0))
            np.testing.assert_allclose(d, corner, atol=1e-5)
        else:
            reached += 1
            np.testing.assert_allclose(np.abs(d).max(), best.fun, atol=1e-5)
            np.testing.assert_allclose(w_i @ d, need_i, atol=1e-5)
    assert 20 < reached < 40


def test_l2_projection_solves_the_quadratic_program():
    points, w, need = planes()
    found = np.asarray(L2.project_onto_hyperplane(*map(jnp.float32, planes())))
    reached = 0
    for x, w_i, need_i, d in zip(points, w, need, found, strict=True):
        room = np.where(w_i * need_i > 0, 1 - x, x)
        if np.abs(w_i) @ room < abs(need_i):
            corner = np.sign(w_i * need_i) * room
            np.testing.assert_allclose(d, corner, atol=1e-5)
            continue
        reached += 1
        best = scipy.optimize.minimize(
            lambda d: d @ d,
            np.zeros(12),
            jac=lambda d: 2 * d,
            method="SLSQP",
            bounds=[*zip(-x, 1 - x, strict=True)],
            constraints={
                "type": "eq",
                "fun": lambda d, w=w_i, need=need_i: w @ d - need,
                "jac": lambda d, w=w_i: w,
            },
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert best.success
        np.testing.assert_allclose(d, best.x, atol=1e-5)
    assert 20 < reached < 40


def test_l1_projection_solves_the_linear_program():
    points, w, need = planes()
    found = np.asarray(L1.project_onto_hyperplane(*map(jnp.float32, planes())))
    reached = 0
    for x, w_i, need_i, d in zip(points, w, need, found, strict=True):
        # The variables are p and q in d = p - q, whose sum is the norm.
        best = scipy.optimize.linprog(
            np.ones(24),
            A_eq=np.r_[w_i, -w_i][None],
            b_eq=[need_i],
            bounds=[*zip(0 * x, 1 - x, strict=True), *zip(0 * x, x, strict=True)],
        )
        assert ((x + d >= -1e-6) & (x + d <= 1 + 1e-6)).all()
        if best.status == 2:
            room = np.where(w_i * need_i > 0, 1 - x, x)
            np.testing.assert_allclose(d, np.sign(w_i * need_i) * room, atol=1e-5)
        else:
            reached += 1
            np.testing.assert_allclose(np.abs(d).sum(), best.fun, atol=1e-5)
            np.testing.assert_allclose(w_i @ d, need_i, atol=1e-5)
    assert 20 < reached < 40


@ALL
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15])
def test_projection_holds_for_gradients_of_any_scale_in_float32(norm, scale):
    rng = np.random.default_rng(1)
    points = rng.uniform(size=(8, 3072))
    # Slopes span six decades: once the steep pixels are at their bounds, flat ones must
    # move.
    w = rng.normal(size=(8, 3072)) * 10 ** rng.uniform(-6, 0, (8, 3072))
    room = np.where(w > 0, 1 - points, points)
    need = np.linspace(0.01, 0.999, 8) * (np.abs(w) * room).sum(-1)
    scaled = map(jnp.float32, (points, w * scale, need * scale))
    found = NORMS[norm].project_onto_hyperplane(*scaled)
    wanted = [project_by_bisection(*each, norm) for each in zip(points, w, need)]
    # In L1 the last pixel alone makes up for all rounding, however flat it is.
    np.testing.assert_allclose(found, wanted, atol=0.05 if norm == "l1" else 1e-3)
    reached = (np.asarray(found, np.float64) * w).sum(-1)
    np.testing.assert_allclose(reached, need, rtol=1e-5)


@ALL
def test_projection_moves_nothing_without_slope_distance_or_room(norm):
    points = jnp.array([[0.3, 0.6], [0.3, 0.6], [1.0, 0.0]])
    w = jnp.array([[0.0, 0.0], [1.0, -2.0], [1.0, -2.0]])
    need = jnp.array([1.0, 0.0, 1.0])
    d = NORMS[norm].project_onto_hyperplane(points, w, need)
    np.testing.assert_array_equal(d, 0)


@ALL
def test_linear_boundary_is_found_within_a_hundredth_of_its_distance(norm):
    labels = labelled(linear)
    exact = linear_distances(IMAGES, labels, norm).min(-1)
    for epsilon in exact:
        assert np.isfinite(epsilon)
        beyond = fab(linear, IMAGES, labels, norm=norm, epsilon=float(epsilon * 1.01))
        np.testing.assert_array_equal(beyond.success, exact <= epsilon)
        short = fab(linear, IMAGES, labels, norm=norm, epsilon=float(epsilon * 0.999))
        np.testing.assert_array_equal(short.success, exact < epsilon)


@ALL
def test_step_follows_the_formula_of_the_paper(norm):
    """Start away from the image, in float64; check both projections, alpha and
    overshoot.
    """
    labels = labelled(curved)
    off = jax.random.uniform(jax.random.key(4), IMAGES.shape, minval=-0.1, maxval=0.1)
    point = jnp.clip(IMAGES + off, 0, 1)
    attack = FAB(norm, 1e-3)
    batch = batch_of(IMAGES, labels, attempt=jnp.arange(6) % 3, iteration=3)
    state = attack.start(curved, batch)._replace(point=point)
    found = jax.jit(attack.step, static_argnums=0)(curved, batch, state)

    hidden, out = np.asarray(HIDDEN, np.float64), np.asarray(OUT, np.float64)
    stepped_back = 0
    for i in range(len(IMAGES)):
        x0 = np.asarray(IMAGES[i], np.float64).ravel()
        x1 = np.asarray(point[i], np.float64).ravel()
        label, target = int(labels[i]), int(state.targets[i])
        angles, towards = (x1 - 0.5) @ hidden, out[:, target] - out[:, label]
        f, w = np.sin(angles) @ towards, hidden @ (np.cos(angles) * towards)
        b = -f + w @ x1
        d1 = project_by_bisection(x1, w, b - w @ x1, norm)
        d2 = project_by_bisection(x0, w, b - w @ x0, norm)
        size1, size2 = np.linalg.norm(d1, ORDER[norm]), np.linalg.norm(d2, ORDER[norm])
        alpha = min(size1 / (size1 + size2), 0.1)
        new = np.clip((1 - alpha) * (x1 + 1.05 * d1) + alpha * (x0 + 1.05 * d2), 0, 1)
        if np.argmax(np.sin((new - 0.5) @ hidden) @ out) != label:
            new = x0 + 0.9 * (new - x0)
            stepped_back += 1
        np.testing.assert_allclose(found.point[i].ravel(), new, atol=2e-5)
    assert 0 < stepped_back < len(IMAGES)
    assert not found.broken.any()
    np.testing.assert_array_equal(found.adversarial, IMAGES)


@pytest.mark.parametrize(
    ("norm", "classes", "goal"),
    [
        ("linf", 2, "multi-target"),
        ("linf", 3, "untargeted"),
        ("l2", 2, "untargeted"),
        ("l2", 3, "multi-target"),
        ("l1", 3, "multi-target"),
    ],
)
def test_successes_are_misclassified_inside_ball_and_box(norm, classes, goal):
    def model(images):
        return curved(images)[:, :classes]

    images = jnp.round(jax.random.uniform(jax.random.key(5), (16, *SHAPE)) * 4) / 4
    labels = labelled(model, images)
    epsilon = {"linf": 0.06, "l2": 0.25, "l1": 0.9}[norm]
    found = fab(model, images, labels, norm=norm, epsilon=epsilon, steps=20, goal=goal)
    assert 0 < found.success.sum() < 16
    np.testing.assert_array_equal(
        found.success, labelled(model, found.images) != labels
    )
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    size = sizes(np.float64(found.images) - np.float64(images), norm)
    assert size.max() <= epsilon + np.spacing(np.float32(1))
    assert size.max() > 0.5 * epsilon
    np.testing.assert_array_equal(found.images[~found.success], images[~found.success])


def test_image_misclassified_as_it_is_succeeds_unchanged():
    labels = labelled(linear).at[2].add(1) % 4
    found = fab(linear, IMAGES, labels, epsilon=1e-4, steps=2)
    np.testing.assert_array_equal(found.success, np.arange(6) == 2)
    np.testing.assert_array_equal(found.images, IMAGES)


@pytest.mark.parametrize(
    ("norm", "goal"), [("linf", "multi-target"), ("l2", "untargeted")]
)
def test_images_do_not_influence_one_another(norm, goal):
    """The attempts and iterations of the others make no difference either."""
    attack = FAB(
        norm, {"linf": 0.05, "l2": 0.2}[norm], targets=3, restarts=2, goal=goal
    )
    attempt = jnp.array([0, 1, 5, 2, 1, 0])
    iteration = jnp.array([0, 3, 0, 7, 1, 2])
    together = batch_of(IMAGES, labelled(curved), attempt=attempt, iteration=iteration)

    start = jax.jit(lambda batch: attack.start(curved, batch))
    step = jax.jit(lambda batch, state: attack.step(curved, batch, state))

    def walk(batch):
        state = start(batch)
        for _ in range(4):
            state = step(batch, state)
        return state

    whole = walk(together)
    for i in range(len(IMAGES)):
        alone = walk(jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], together))
        for one, all_of_them in zip(alone, whole, strict=True):
            np.testing.assert_allclose(one[0], all_of_them[i], atol=1e-6)


@ALL
def test_first_restart_starts_at_the_image_and_later_ones_half_of_epsilon_off(norm):
    labels = labelled(linear)
    attack = FAB(norm, 0.2, targets=3, restarts=2)
    assert attack.attempts == 6
    images = jnp.full_like(IMAGES, 0.5)
    start = jax.jit(lambda batch: attack.start(linear, batch))
    states = [start(batch_of(images, labels, seed=i, attempt=i)) for i in range(6)]
    for state in states[:3]:
        np.testing.assert_array_equal(state.point, images)
    for state in states[3:]:
        np.testing.assert_allclose(sizes(state.point - images, norm), 0.1, rtol=1e-5)
    assert sizes(states[3].point - states[4].point, norm).min() > 0.05
    for first, second in zip(states[:3], states[3:], strict=True):
        np.testing.assert_array_equal(first.targets, second.targets)


@pytest.mark.parametrize(("norm", "threshold"), [("linf", 0.15), ("l2", 0.005)])
def test_restarts_also_break_an_image_whose_own_gradient_is_zero(norm, threshold):
    def bowl(images):
        height = jnp.square(images - 0.5).sum((1, 2, 3)) - threshold
        return jnp.stack([jnp.zeros_like(height), height], axis=-1)

    images = jnp.stack([jnp.full(SHAPE, 0.5), jnp.full(SHAPE, 0.505)])
    labels = jnp.zeros(2, int)

    def broken(restarts):
        fields = {"norm": norm, "epsilon": 0.1, "steps": 20, "restarts": restarts}
        return fab(bowl, images, labels, **fields).success

    np.testing.assert_array_equal(broken(1), [False, True])
    np.testing.assert_array_equal(broken(2), [True, True])


def test_a_second_target_breaks_an_image_that_the_likeliest_does_not():
    """Class 1 is close but hardly moves, class 2 is far but moves fast."""
    weights = jnp.zeros((PIXELS, 3)).at[:15, 1].set(0.01).at[15:, 2].set(10.0)
    offset = jnp.array([0.0, -0.5, -3.0])

    def model(images):
        return (images - 0.5).reshape(len(images), -1) @ weights + offset

    images = jnp.full((1, *SHAPE), 0.5)
    labels = jnp.array([0])
    fields = {"epsilon": 0.1, "steps": 10}
    assert not fab(model, images, labels, **fields, targets=1).success[0]
    assert fab(model, images, labels, **fields, targets=2).success[0]
    assert fab(model, images, labels, **fields).success[0]
    assert fab(model, images, labels, **fields, goal="untargeted").success[0]


@ALL
def test_untargeted_step_crosses_to_the_nearest_class(norm):
    images = jax.random.uniform(jax.random.key(7), (32, *SHAPE), minval=0.3, maxval=0.7)
    labels = labelled(linear, images)
    logits = np.asarray(linear(images))
    distances = linear_distances(images, labels, norm)
    nearest = distances.argmin(-1)
    likeliest = np.argsort(logits, axis=-1)[:, -2]
    assert (nearest != likeliest).any()

    attack = FAB(norm, 10.0, goal="untargeted")
    assert attack.attempts == 1
    batch = batch_of(images, labels)
    state = attack.start(linear, batch)
    found = jax.jit(attack.step, static_argnums=0)(linear, batch, state)
    np.testing.assert_array_equal(labelled(linear, found.adversarial), nearest)
    size = sizes(found.adversarial - images, norm)
    np.testing.assert_allclose(size, 1.05 * distances.min(-1), rtol=1e-3)


def test_one_compilation_serves_all_numbers():
    labels = labelled(curved)
    traces = []

    def model(images):
        traces.append(1)
        return curved(images)

    model = jax.tree_util.Partial(model)
    attack = FAB("linf", 0.05, steps=3, targets=3)
    run_attack(attack, model, IMAGES, labels)
    traced = len(traces)
    other = {"epsilon": 0.1, "steps": 5, "restarts": 2, "targets": 2, "alpha_max": 0.3}
    run_attack(dataclasses.replace(attack, **other), model, IMAGES, labels, seed=1)
    assert len(traces) == traced


def test_unknown_goal_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'untargeted'"):
        fab(linear, IMAGES, labelled(linear), epsilon=0.1, goal="untargetted")
