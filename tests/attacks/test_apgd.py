"""Auto-PGD agrees with the paper's algorithm in float64."""

import dataclasses
from fractions import Fraction

import apgd_oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.attacks.apgd import APGD, apgd
from freeadv_jax.attacks.attack import Batch, step_unfinished
from freeadv_jax.attacks.draws import DRAWS
from freeadv_jax.attacks.one_batch import run_attack
from freeadv_jax.attacks.pgd import pgd
from freeadv_jax.errors import InputError

SHAPE = (5, 3, 2)
IMAGES = jax.random.uniform(jax.random.key(0), (12, *SHAPE))
FIRST = jax.random.normal(jax.random.key(1), (30, 12))
SECOND = jax.random.normal(jax.random.key(2), (12, 6))
BOTH = pytest.mark.parametrize("norm", ["linf", "l2"])
ORDER = {"linf": np.inf, "l2": 2}


def curved(images, classes=6):
    units = jnp.tanh((images - 0.5).reshape(len(images), -1) @ FIRST)
    return units @ SECOND[:, :classes]


def labelled(model, images=IMAGES):
    return jnp.argmax(model(images), axis=-1)


def sizes(delta, norm):
    flat = np.asarray(delta, np.float64).reshape(len(delta), -1)
    return np.linalg.norm(flat, ORDER[norm], axis=-1)


def batch_of(images, labels, *, seed=0, attempt=0, iteration=0):
    count = len(images)
    keys = jax.random.split(jax.random.key(seed), count)
    attempt = jnp.broadcast_to(jnp.asarray(attempt, jnp.int32), (count,))
    iteration = jnp.broadcast_to(jnp.asarray(iteration, jnp.int32), (count,))
    return Batch(images, labels, keys, attempt, iteration)


def states_of(attack, model, batch):
    """Return the states after the start and after each step."""
    step = jax.jit(lambda batch, state: step_unfinished(attack, model, batch, state)[0])
    states = [jax.jit(lambda batch: attack.start(model, batch))(batch)]
    for _ in range(attack.steps):
        states.append(step(batch, states[-1]))
        batch = batch._replace(iteration=batch.iteration + 1)
    return states


# A model with steep slopes, on which no search stalls early. Class 0 leads. In float64.
STEEP = (
    3 * np.asarray(FIRST, np.float64),
    np.asarray(SECOND, np.float64),
    6.0 * np.eye(6)[0],
)


def steep(images):
    first, second, offset = STEEP
    units = jnp.tanh((images - 0.5).reshape(len(images), -1) @ first)
    return units @ second + offset


def steep_batch(count, attempt):
    """Return random images labelled 0; needs float64 enabled. Some are broken on the
    way.
    """
    images = jax.random.uniform(jax.random.key(3), (count, *SHAPE), jnp.float64)
    return batch_of(images, jnp.zeros(count, int), attempt=attempt)


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.05), ("l2", 0.2)])
@pytest.mark.parametrize(
    ("loss", "goal"), [("cross-entropy", "untargeted"), ("dlr", "multi-target")]
)
@pytest.mark.parametrize("rho", [0.75, 0.0])
def test_every_iterate_agrees_with_the_paper_in_float64(norm, epsilon, loss, goal, rho):
    """Compare a hundred steps with NumPy, including step sizes and checkpoints.

    With rho = 0 only the second condition of Algorithm 1 halves the step.
    """
    attack = APGD(norm, epsilon, loss=loss, goal=goal, targets=3, rho=rho)
    with jax.enable_x64(True):
        batch = steep_batch(40, np.arange(40) % 3)
        states = jax.device_get(states_of(attack, steep, batch))
        images = np.asarray(batch.images).reshape(40, -1)

    seen, whole = set(), 0
    for i in np.flatnonzero(~states[0].broken):
        target = None
        if goal == "multi-target":
            target = np.argsort(-apgd_oracle.logits(images[i], *STEEP)[1:])[i % 3] + 1
        start = states[0].here.point[i].ravel()
        settings = {"norm": norm, "epsilon": epsilon, "steps": 100, "rho": rho}
        wanted = apgd_oracle.walk(images[i], start, 0, target, STEEP, **settings)
        for state, step in zip(states[1:], wanted, strict=False):
            if step.tie:  # Rounding decides from here on.
                break
            mine = jax.tree.map(lambda leaf, i=i: leaf[i], state)
            np.testing.assert_allclose(mine.here.point.ravel(), step.point, atol=1e-7)
            np.testing.assert_allclose(mine.best.point.ravel(), step.best, atol=1e-7)
            best = mine.best.loss
            if (
                loss == "cross-entropy"
            ):  # The attack computes log odds; this gives the cross-entropy.
                best = np.logaddexp(0, best)
            np.testing.assert_allclose(best, step.best_loss, atol=1e-7)
            np.testing.assert_allclose(mine.step_size, step.eta, rtol=1e-6)
            assert (mine.window.steps == 0) == (step.conditions is not None)
            assert mine.broken == step.broken
            seen |= {step.conditions, bool(step.broken)}
            whole += len(wanted) == 100 and step is wanted[99]
    assert whole >= 2
    assert seen >= {True, False, ("few rises",) if rho else ("no better",)}
    assert rho or () in seen


def test_a_target_is_given_up_where_the_last_period_brought_too_little():
    """Compare each state with the rule in NumPy, in float64."""
    how = {"goal": "multi-target", "targets": 3, "loss": "dlr", "reach": 1.0}
    with jax.enable_x64(True):
        batch = steep_batch(60, np.arange(60) % 3)
        states = jax.device_get(states_of(APGD("linf", 0.05, **how), steep, batch))
        how["reach"] = None
        whole = jax.device_get(states_of(APGD("linf", 0.05, **how), steep, batch))
    given_up_at, kept = set(), 0
    for i in range(60):
        before = states[0].best.loss[i]
        for number in range(1, 101):
            state, last = states[number], states[number - 1]
            if last.broken[i] or last.given_up[i]:
                np.testing.assert_array_equal(state.adversarial[i], last.adversarial[i])
                continue
            # Until then the walk is that of the attack without the rule.
            np.testing.assert_array_equal(
                state.adversarial[i], whole[number].adversarial[i]
            )
            best = state.best.loss[i]
            checkpoint = state.window.steps[i] == 0
            far = checkpoint and -best > best - before
            assert state.given_up[i] == (far and not state.broken[i])
            given_up_at |= {number} if state.given_up[i] else set()
            before = best if checkpoint else before
        kept += bool(states[-1].broken[i])
    assert len(given_up_at) >= 2 and min(given_up_at) == 22
    assert kept > 5
    assert not whole[-1].given_up.any()


def checkpoints(steps):
    labels = labelled(curved, IMAGES[:1])
    attack = APGD("l2", 1e-3, steps)
    states = states_of(attack, curved, batch_of(IMAGES[:1], labels))
    return [k for k, state in enumerate(states) if k and state.window.steps[0] == 0]


def test_a_hundred_steps_are_checked_where_the_paper_says():
    """Section 3: p_0 = 0 and p_1 = 0.22; each period is 0.03 shorter, but at least
    0.06.
    """
    before, p = Fraction(0), Fraction(22, 100)
    papers = []
    while p < 1:
        papers.append(int(100 * p))
        shorter = p - before - Fraction(3, 100)
        before, p = p, p + max(shorter, Fraction(6, 100))
    assert papers == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(100) == papers


@pytest.mark.parametrize(
    ("steps", "wanted"), [(1, [1]), (4, [1, 2, 3, 4]), (20, [4, 7, 9, *range(10, 21)])]
)
def test_periods_of_few_steps_are_at_least_one(steps, wanted):
    assert checkpoints(steps) == wanted


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.06), ("l2", 0.25)])
@pytest.mark.parametrize(
    ("classes", "loss", "goal"),
    [
        (2, "cross-entropy", "untargeted"),
        (2, "margin", "multi-target"),
        (3, "dlr", "untargeted"),
        (3, "cross-entropy", "multi-target"),
        (4, "dlr", "multi-target"),
    ],
)
def test_successes_are_misclassified_and_all_points_are_inside_ball_and_box(
    norm, epsilon, classes, loss, goal
):
    def model(images):
        return curved(images, classes)

    images = jnp.round(jax.random.uniform(jax.random.key(4), (16, *SHAPE)) * 4) / 4
    labels = labelled(model, images)
    settings = {"loss": loss, "goal": goal, "targets": 9, "steps": 30}
    found = apgd(model, images, labels, norm=norm, epsilon=epsilon, **settings)
    assert 0 < found.success.sum() < 16
    wrong = labelled(model, found.images) != labels
    np.testing.assert_array_equal(found.success, wrong)
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    size = sizes(np.float64(found.images) - np.float64(images), norm)
    assert size.max() <= epsilon + np.spacing(np.float32(1))
    assert size.max() > 0.9 * epsilon


@BOTH
def test_start_is_on_the_sphere_and_differs_between_attempts(norm):
    images = jnp.full_like(IMAGES, 0.5)
    labels = labelled(curved, images)
    attack = APGD(norm, 0.2)
    start = jax.jit(lambda batch: attack.start(curved, batch))
    batches = [batch_of(images, labels, seed=seed) for seed in range(2)]
    points = [start(batch).adversarial for batch in batches]
    for point in points:
        np.testing.assert_allclose(sizes(point - images, norm), 0.2, rtol=1e-5)
    assert sizes(points[0] - points[1], norm).min() > 0.1


@BOTH
def test_images_do_not_influence_one_another(norm):
    """The attempts and iterations of the others make no difference either; in float64."""
    epsilon = {"linf": 0.05, "l2": 0.2}[norm]
    attack = APGD(norm, epsilon, 20, goal="multi-target", targets=3, restarts=2)
    assert attack.attempts == 6
    ahead = np.array([0, 3, 0, 7, 1, 2, 0, 0, 5, 0, 9, 0])
    with jax.enable_x64(True):
        batch = steep_batch(12, np.arange(12) % 6)

        @jax.jit
        def step(batch, state):
            return step_unfinished(attack, steep, batch, state)[0]

        start = jax.jit(lambda batch: attack.start(steep, batch))

        def alone(i, steps):
            mine = jax.tree.map(lambda leaf: leaf[i : i + 1], batch)
            state = start(mine)
            for k in range(steps):
                at = mine._replace(iteration=jnp.full_like(mine.iteration, k))
                state = step(at, state)
            return state

        begun = [alone(i, ahead[i]) for i in range(12)]
        state = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *begun)
        for k in range(8):
            iteration = jnp.asarray(ahead + k, jnp.int32)
            state = step(batch._replace(iteration=iteration), state)
        for i in range(12):
            (found, wanted) = (state.adversarial[i], alone(i, ahead[i] + 8))
            np.testing.assert_allclose(found, wanted.adversarial[0], atol=1e-6)
            np.testing.assert_allclose(state.step_size[i], wanted.step_size[0])
            assert state.broken[i] == wanted.broken[0]
        assert 0 < state.broken.sum() < 12


def test_the_best_loss_never_falls_and_belongs_to_the_result():
    labels = labelled(curved)
    batch = batch_of(IMAGES, labels)
    states = states_of(APGD("linf", 0.01), curved, batch)
    best = np.stack([state.best.loss for state in states])
    assert (np.diff(best, axis=0) >= 0).all()
    unbroken = ~states[-1].broken
    assert unbroken.any()
    rows = jax.nn.log_softmax(curved(states[-1].adversarial))
    loss = -jnp.take_along_axis(rows, labels[:, None], axis=-1)[:, 0]
    from_odds = np.logaddexp(0, best[-1][unbroken])
    np.testing.assert_allclose(loss[unbroken], from_odds, rtol=1e-5)
    assert (best[-1] > best[0]).all()


def rugged(images):
    """Return logits with maxima so narrow that no single step size finds them."""
    flat = (images - 0.5).reshape(len(images), -1)
    return jnp.sin(3 * flat @ FIRST) @ SECOND


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.02), ("l2", 0.05)])
def test_breaks_more_than_pgd_of_the_usual_step_size_in_as_few_steps(norm, epsilon):
    """PGD takes the step size that Madry et al. use for k steps: 2.5 epsilon / k."""
    images = jax.random.uniform(jax.random.key(5), (256, *SHAPE))
    labels = labelled(rugged, images)
    call = {"norm": norm, "epsilon": epsilon, "steps": 20, "loss": "margin"}
    auto = apgd(rugged, images, labels, **call)
    plain = pgd(rugged, images, labels, **call, step_size=epsilon / 8)
    assert 200 < plain.success.sum() < auto.success.sum() < 256


def one_hidden_behind(images):
    """Return logits where class 1 is close but hardly moves, and class 2 is far but
    fast.
    """
    flat = (images - 0.5).reshape(len(images), -1)
    weights = jnp.zeros((30, 4)).at[:15, 1].set(0.01).at[15:, 2].set(10.0)
    return flat @ weights + jnp.array([0.0, -0.5, -30.0, -90.0])


def test_a_second_target_breaks_an_image_that_the_likeliest_does_not():
    images, labels = jnp.full((1, *SHAPE), 0.5), jnp.array([0])
    call = {"norm": "l2", "epsilon": 0.9, "steps": 1, "loss": "dlr"}
    assert not apgd(one_hidden_behind, images, labels, **call).success[0]
    call |= {"goal": "multi-target"}
    assert not apgd(one_hidden_behind, images, labels, **call).success[0]
    assert apgd(one_hidden_behind, images, labels, **call, targets=2).success[0]
    assert apgd(one_hidden_behind, images, labels, **call, targets=99).success[0]


def noisy(images, keys):
    """Add noise with a standard deviation of 3 to every logit."""
    noise = jax.vmap(lambda key: jax.random.normal(key, SHAPE))(keys)
    return curved(images) + 3 * noise.reshape(len(images), -1)[:, :6]


def test_samples_of_a_randomised_model_are_averaged():
    """The noise has mean 0, so the mean of n samples deviates by 1 / sqrt(n) as much."""
    labels = labelled(curved)
    batch = batch_of(IMAGES, labels)
    plain = APGD("linf", 0.02, loss="margin", goal="multi-target")

    def gap(samples):
        attack = dataclasses.replace(plain, samples=samples)
        state = jax.jit(lambda batch: attack.start(noisy, batch))(batch)
        rows = curved(state.here.point)
        at = jnp.take_along_axis
        true = at(rows, state.targets[:, None], -1) - at(rows, labels[:, None], -1)
        return float(jnp.sqrt(jnp.mean((state.here.loss - true[:, 0]) ** 2)))

    spread = 3 * np.sqrt(2)
    np.testing.assert_allclose(gap(1), spread, rtol=0.5)
    np.testing.assert_allclose(gap(400), spread / 20, rtol=0.5)


def shaken(images, keys):
    noise = jax.vmap(lambda key: jax.random.normal(key, SHAPE))(keys)
    return curved(images + 0.1 * noise)


def test_gradient_and_success_of_a_randomised_model_are_those_of_the_samples_mean():
    labels = labelled(curved)
    batch = batch_of(IMAGES, labels, iteration=4)
    attack = APGD("l2", 0.3, samples=5)
    before = jax.jit(lambda batch: attack.start(shaken, batch))(batch)
    state = jax.jit(lambda *args: attack.step(shaken, *args))(batch, before)
    point = state.here.point
    samples = []

    def recorded(images, keys):
        noise = jax.vmap(lambda key: jax.random.normal(key, SHAPE))(keys)
        jax.debug.callback(lambda noise: samples.append(np.asarray(noise)), noise)
        return curved(images + 0.1 * noise)

    jax.jit(lambda *args: attack.step(recorded, *args))(batch, before)
    jax.effects_barrier()
    # The first five samples are for the gradient, the others check the success again.
    judged, samples = samples[5:], samples[:5]
    assert len(judged) % DRAWS == 0
    assert len({float(noise[0, 0, 0, 0]) for noise in samples}) == 5

    def mean_loss(point):
        rows = jnp.stack([jax.nn.log_softmax(curved(point + 0.1 * n)) for n in samples])
        return -jnp.take_along_axis(rows.mean(0), labels[:, None], axis=-1).sum()

    wanted = jax.grad(mean_loss)(point)
    np.testing.assert_allclose(state.here.gradient, wanted, atol=1e-5)
    logits = np.mean([curved(point + 0.1 * noise) for noise in samples], axis=0)
    broken = logits.argmax(-1) != labels
    for means in np.split(np.array(judged), len(judged) // DRAWS) if judged else []:
        logits = np.mean([curved(point + 0.1 * noise) for noise in means], axis=0)
        broken &= logits.argmax(-1) != labels
    if judged:
        logits = np.mean([curved(point + 0.1 * noise) for noise in judged], axis=0)
        broken &= logits.argmax(-1) != labels
    np.testing.assert_array_equal(state.broken, broken)


@pytest.mark.slow
def test_successes_against_a_randomised_model_hold_for_new_keys():
    labels = labelled(curved)
    fields = {"steps": 10, "samples": 3}
    found = apgd(shaken, IMAGES, labels, epsilon=0.1, **fields)
    fresh = jax.random.split(jax.random.key(9), (500, 12))
    logits = jax.vmap(lambda keys: shaken(found.images, keys))(fresh)
    true = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    other = jnp.where(true, -jnp.inf, logits.mean(0)).argmax(-1)
    at = jnp.take_along_axis
    lead = at(logits, other[None, :, None], -1) - at(logits, labels[None, :, None], -1)
    # The mean of 500 draws and the 200 that judged have errors of their own.
    error = lead.std(0) * jnp.sqrt(1 / 500 + 1 / 200)
    assert found.success.sum() >= 6
    assert (lead.mean(0) > -3 * error)[found.success].all()


def test_step_is_one_forward_and_one_backward_pass():
    calls = []

    def counted(images):
        jax.debug.callback(lambda: calls.append(1))
        return curved(images)

    batch = batch_of(IMAGES, labelled(curved))
    attack = APGD("linf", 0.01)
    state = jax.jit(lambda batch: attack.start(counted, batch))(batch)
    jax.effects_barrier()
    assert len(calls) == 1
    jax.jit(lambda *args: attack.step(counted, *args))(batch, state)
    jax.effects_barrier()
    assert len(calls) == 2


def test_one_compilation_serves_all_numbers():
    traces = []

    def model(images):
        traces.append(1)
        return curved(images)

    model = jax.tree_util.Partial(model)
    attack = APGD("linf", 0.02, steps=10, goal="multi-target", targets=2)
    run_attack(attack, model, IMAGES, labelled(curved))
    traced = len(traces)
    other = {"epsilon": 0.1, "steps": 7, "restarts": 2, "targets": 3, "rho": 0.5}
    run_attack(dataclasses.replace(attack, **other), model, IMAGES, labelled(curved))
    assert len(traces) == traced


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"loss": "dlrr"}, "did you mean 'dlr'"),
        ({"goal": "multitarget"}, "did you mean 'multi-target'"),
        (
            {"loss": "dlr", "goal": "multi-target"},
            "needs 4 classes and the model has 3",
        ),
        ({"epsilon": 8}, "must be above 0"),
    ],
)
def test_unusable_settings_are_refused(fields, says):
    def model(images):
        return curved(images, 3)

    call = {"epsilon": 0.1} | fields
    with pytest.raises(InputError, match=says) as error:
        apgd(model, IMAGES, labelled(model), **call)
    assert "\n" not in str(error.value)
