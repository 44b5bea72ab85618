"""AutoAttack on linear models: outcomes, parameters, and warnings."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.attacks.apgd_l1 import SparseAPGD
from freeadv_jax.attacks.ensemble import autoattack, cascade
from freeadv_jax.attacks.programs import forget_programs
from freeadv_jax.attacks.square import Square
from freeadv_jax.errors import InputError

RNG = np.random.default_rng(0)


def linear_problem(classes, shape=(5, 3, 2), images=48):
    """Return a linear model, images, labels and each image's exact distance to the
    boundary.
    """
    matrix = RNG.normal(size=(np.prod(shape), classes)).astype(np.float32)
    images = RNG.uniform(0.3, 0.7, (images, *shape)).astype(np.float32)

    def logits_fn(images):
        return (images - 0.5).reshape(len(images), -1) @ matrix

    z = logits_fn(images.astype(np.float64))
    labels = z.argmax(-1).astype(np.int32)
    rows = np.arange(len(images))
    across = np.abs(matrix[:, labels].T[:, :, None] - matrix[None]).sum(1)
    across[rows, labels] = 1
    distance = (z[rows, labels, None] - z) / across
    distance[rows, labels] = np.inf
    return logits_fn, images, labels, distance.min(axis=1)


@pytest.fixture(autouse=True)
def fewer_queries(monkeypatch):
    """Give Square 60 queries instead of 5,000."""
    shorter = functools.partial(Square, steps=60)
    monkeypatch.setattr("freeadv_jax.attacks.ensemble.Square", shorter)


@pytest.mark.parametrize(
    ("version", "classes"),
    [
        ("standard", 2),
        ("standard", 3),
        pytest.param("standard", 10, marks=pytest.mark.slow),
        pytest.param("plus", 3, marks=pytest.mark.slow),
    ],
)
def test_exactly_the_images_nearer_than_epsilon_are_broken(classes, version, caplog):
    logits_fn, images, labels, distance = linear_problem(classes)
    epsilon = float(np.median(distance))
    with caplog.at_level(logging.WARNING):
        found = autoattack(
            logits_fn, images, labels, epsilon=epsilon, version=version, batch_size=16
        )
    clear = np.abs(distance - epsilon) > 1e-4
    np.testing.assert_array_equal(found.success[clear], (distance < epsilon)[clear])
    assert 10 < found.success.sum() < 38
    assert np.abs(found.images - images).max() <= epsilon + 1.2e-7
    wrong = logits_fn(found.images).argmax(-1) != labels
    np.testing.assert_array_equal(wrong, found.success)
    assert ("the margin is attacked instead" in caplog.text) == (classes < 4)


def test_each_attack_runs_on_the_images_that_the_others_left():
    logits_fn, images, labels, distance = linear_problem(4)
    wrong = np.where(np.arange(48) < 7, (labels + 1) % 4, labels).astype(np.int32)
    seen = {}
    found = autoattack(
        logits_fn,
        images.astype(np.float64),
        wrong,
        epsilon=float(np.median(distance)),
        batch_size=16,
        watch=lambda attack, done, robust: seen.setdefault(attack, robust.sum()),
    )
    counts = list(found.standing.values())
    assert list(found.standing) == ["natural", "apgd-ce", "apgd-t", "fab-t", "square"]
    assert counts[0] == 41
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == (~found.success).sum()
    assert found.success[:7].all()
    assert found.images.dtype == np.float32
    np.testing.assert_array_equal(found.images[:7], images[:7])
    assert list(seen) == list(found.standing)[1:]


@pytest.mark.parametrize(
    ("batch_size", "most"),
    [(8, 10), pytest.param(48, 10 + 4 * 4, marks=pytest.mark.slow)],
)
def test_programs_are_two_for_each_attack_and_few_for_smaller_batches(batch_size, most):
    """The logits and the check of gradients need one more program each.

    Eight devices have no batch smaller than eight.
    """
    logits_fn, images, labels, _ = linear_problem(4)
    forget_programs()
    found = autoattack(logits_fn, images, labels, epsilon=0.01, batch_size=batch_size)
    assert 10 <= found.compilations <= most


def test_standard_has_the_parameters_of_the_reference():
    attacks = cascade("standard", norm="linf", epsilon=8 / 255, num_classes=10)
    ce, t, fab, square = attacks.values()
    assert (ce.steps, ce.restarts, ce.loss, ce.rho) == (100, 1, "cross-entropy", 0.75)
    assert (t.steps, t.attempts, t.loss, t.goal) == (100, 9, "dlr", "multi-target")
    assert (fab.steps, fab.attempts) == (100, 9)
    assert (fab.alpha_max, fab.overshoot, fab.backward) == (0.1, 1.05, 0.9)
    assert (square.restarts, square.p_init, square.rescaled) == (1, 0.8, False)
    assert Square("linf", 8 / 255).steps == 5000


def test_l1_has_the_schedule_of_mind_the_box(monkeypatch):
    monkeypatch.setattr("freeadv_jax.attacks.ensemble.Square", Square)
    attacks = cascade("standard", norm="l1", epsilon=12, num_classes=10)
    ce, t, fab, square = attacks.values()
    assert isinstance(ce, SparseAPGD)
    assert (ce.steps, ce.attempts, ce.loss) == (100, 5, "cross-entropy")
    assert (t.steps, t.attempts, t.loss, t.goal) == (100, 5, "dlr", "multi-target")
    assert (fab.steps, fab.attempts) == (100, 9)
    assert (square.steps, square.p_init, square.rescaled) == (5000, 0.8, False)
    few = cascade("standard", norm="l1", epsilon=12, num_classes=3)
    assert few["apgd-t"].attempts == 2


def test_plus_has_five_restarts_and_the_untargeted_attacks():
    attacks = cascade("plus", norm="l2", epsilon=0.5, num_classes=10)
    assert {name: attack.attempts for name, attack in attacks.items()} == {
        "apgd-ce": 5,
        "apgd-dlr": 5,
        "fab": 5,
        "square": 1,
        "apgd-t": 9,
        "fab-t": 9,
    }


def bent_problem(levels=None, classes=10, images=60):
    """Return a model with steep slopes, on which attacks differ, images and labels.

    With `levels` it rounds its images, so that only Square breaks many of them.
    """
    rng = np.random.default_rng(1)
    first = 3 * rng.normal(size=(30, 24)).astype(np.float32)
    second = rng.normal(size=(24, classes)).astype(np.float32)
    images = rng.uniform(0.3, 0.7, (images, 5, 3, 2)).astype(np.float32)

    def logits_fn(images):
        if levels:
            images = jnp.round(images * levels) / levels
        return jnp.tanh((images - 0.5).reshape(len(images), -1) @ first) @ second

    return logits_fn, images, np.asarray(logits_fn(images)).argmax(axis=-1)


@pytest.fixture(scope="module")
def verdicts():
    """Return the outcomes of versions on one problem, with 1,000 queries of Square."""
    problem = bent_problem(levels=32)
    shorter = functools.partial(Square, steps=1000)

    def found(version, **options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("freeadv_jax.attacks.ensemble.Square", shorter)
            threat = {"norm": "linf", "epsilon": 0.02}
            return autoattack(*problem, **threat, version=version, **options)

    outcomes = {
        "standard": found("standard"),
        "none": found("quick", audit=0),
        "half": found("quick", audit=0.5),
        "all": found("quick", audit=1),
    }
    assert 10 < outcomes["standard"].success.sum() < 60
    return outcomes


def test_quick_with_a_whole_audit_is_standard_to_the_image(verdicts):
    standard, audited = verdicts["standard"], verdicts["all"]
    np.testing.assert_array_equal(audited.success, standard.success)
    assert audited.audit["missed_at_most"] == 0
    assert standard.audit is None


def test_quick_breaks_no_image_that_standard_leaves(verdicts):
    for name in ("none", "half"):
        assert not (verdicts[name].success & ~verdicts["standard"].success).any()
    assert verdicts["none"].success.sum() < verdicts["standard"].success.sum()


def test_an_audit_tells_what_it_did_and_what_may_be_missed(verdicts):
    names = ["natural", "apgd-ce", "apgd-t", "square"]
    audits = ["audit apgd-t", "audit fab-t", "audit square"]
    half = verdicts["half"]
    assert list(half.standing) == names + audits
    survivors, left = half.standing["square"], half.standing["audit square"]
    assert left == (~half.success).sum()
    assert half.audit["share"] == 0.5
    assert half.audit["broken"] == survivors - left
    assert 0 < half.audit["broken"] < half.audit["audited"] < survivors
    assert half.audit["missed_at_most"] > 0


def test_the_passes_of_quick_are_less_than_a_fifth_of_standards(monkeypatch):
    """No image is broken: 1/3 for the logits and 101 for apgd-ce in both versions."""
    monkeypatch.setattr("freeadv_jax.attacks.ensemble.Square", Square)

    def never_broken(images):
        return jnp.tile(9 * jax.nn.one_hot(0, 10), (len(images), 1))

    images, labels = np.full((2, 5, 4, 1), 0.5, np.float32), np.zeros(2, int)
    threat = {"norm": "linf", "epsilon": 0.03}
    standard = autoattack(never_broken, images, labels, **threat)
    apgd_t, fab_t = 9 * (1 / 3 + 101), 9 * (1 / 3 + 100 * 4 / 3)
    expected = 1 / 3 + 101 + apgd_t + fab_t + 5001 / 3
    np.testing.assert_allclose(standard.passes, expected, rtol=1e-6)
    quick = autoattack(never_broken, images, labels, **threat, version="quick", audit=0)
    # A target is given up at the first checkpoint, after 22 steps.
    expected = 1 / 3 + 101 + 9 * (1 / 3 + 1 + 22) + 301 / 3
    np.testing.assert_allclose(quick.passes, expected, rtol=1e-6)
    assert 5 * quick.passes[0] < standard.passes[0]


def test_quick_inside_jit_is_quick_outside():
    logits_fn, images, labels = bent_problem(images=8)

    @jax.jit
    def inside(images, labels):
        how = {"epsilon": 0.02, "version": "quick", "audit": 0.5}
        return autoattack(logits_fn, images, labels, **how).success

    outside = autoattack(
        logits_fn, images, labels, epsilon=0.02, version="quick", audit=0.5
    )
    np.testing.assert_array_equal(inside(images, labels), outside.success)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"norm": "l1", "version": "quick"}, "'quick' is for linf and l2: not l1"),
        ({"version": "quick", "samples": 3}, "models that draw nothing"),
        ({"version": "quick", "audit": 2}, "must be a share from 0 to 1"),
        ({"audit": 0.1}, "audit is for AutoAttack version 'quick': not 'standard'"),
    ],
)
def test_quick_refuses_what_it_is_not_for(options, said):
    logits_fn, images, labels, _ = linear_problem(4)
    if "samples" in options:
        plain = logits_fn

        def logits_fn(images, keys):
            return plain(images)

    with pytest.raises(InputError, match=said):
        autoattack(logits_fn, images, labels, epsilon=0.05, **options)


@pytest.mark.slow
def test_rand_averages_gradients_and_breaks_a_randomised_model():
    """The model adds noise to its logits, with a key for each image."""
    logits_fn, images, labels, distance = linear_problem(4)

    def noisy(images, keys):
        noise = jax.vmap(lambda key: 0.05 * jax.random.normal(key, (4,)))(keys)
        return logits_fn(images) + noise

    epsilon = float(np.median(distance))
    found = autoattack(
        noisy, images, labels, epsilon=epsilon, version="rand", batch_size=16
    )
    assert list(found.standing) == ["natural", "apgd-ce", "apgd-dlr"]
    assert found.success[distance < 0.8 * epsilon].all()
    assert not found.success[distance > 1.5 * epsilon].any()


@pytest.fixture(scope="module")
def problem():
    return linear_problem(4)


def warnings_of(caplog, model, images, labels, **options):
    with caplog.at_level(logging.WARNING):
        autoattack(model, images, labels, epsilon=0.05, batch_size=16, **options)
    return caplog.text


def test_an_ordinary_model_causes_no_warning(problem, caplog):
    logits_fn, images, labels, _ = problem
    assert warnings_of(caplog, logits_fn, images, labels) == ""


def test_zero_gradients_cause_a_warning(problem, caplog):
    logits_fn, images, labels, _ = problem

    def rounded(images):
        return logits_fn(jnp.round(images * 16) / 16)

    labels = np.asarray(rounded(images)).argmax(axis=-1)
    said = warnings_of(caplog, rounded, images, labels)
    assert "the gradient is zero at 48 of the 48 images" in said
    assert "Square, which uses no gradients, broke" in said


def test_a_randomised_model_causes_a_warning_that_says_what_to_do(problem, caplog):
    logits_fn, images, labels, _ = problem
    draws = np.random.default_rng(0)

    def noisy(images):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        draw = jax.pure_callback(lambda: np.float32(draws.normal()), shape)
        return logits_fn(images) + 0.01 * jax.lax.stop_gradient(draw)

    assert "images and keys, and give samples" in warnings_of(
        caplog, noisy, images, labels
    )


def test_images_that_influence_one_another_cause_a_warning(problem, caplog):
    """Each device has two images, as in BatchNorm in training mode."""
    logits_fn, images, labels, _ = problem

    def centred(images):
        return logits_fn(images - images.mean(axis=0) + 0.5)

    said = warnings_of(caplog, centred, images, labels)
    assert "put the model into evaluation mode" in said
