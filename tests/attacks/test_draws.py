"""Randomised models: gradients over draws, and successes that fresh draws confirm."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import freeadv_jax
from freeadv_jax.attacks import apgd, autoattack, fab, fgsm, pgd, square
from freeadv_jax.attacks.apgd import APGD
from freeadv_jax.attacks.attack import Batch
from freeadv_jax.attacks.checks import check_samples
from freeadv_jax.attacks.draws import evaluated
from freeadv_jax.attacks.ensemble import cascade
from freeadv_jax.attacks.fab import FAB
from freeadv_jax.attacks.losses import margin
from freeadv_jax.attacks.pgd import PGD
from freeadv_jax.errors import InputError

RNG = np.random.default_rng(0)
SHAPE = (5, 4, 2)
PIXELS = 40
CLASSES = 4
WEIGHTS = RNG.normal(size=(PIXELS, CLASSES))
IMAGES = RNG.uniform(0.3, 0.7, (40, *SHAPE)).astype(np.float32)


def linear(images):
    flat = (images - 0.5).reshape(len(images), -1)
    return flat @ jnp.asarray(WEIGHTS, images.dtype)


def distances():
    """Return each image's exact L-inf distance to the boundary of `linear`, in float64."""
    logits = (IMAGES.astype(np.float64) - 0.5).reshape(40, -1) @ WEIGHTS
    labels = logits.argmax(axis=-1)
    rows = np.arange(40)
    across = np.abs(WEIGHTS[:, labels].T[:, :, None] - WEIGHTS[None]).sum(axis=1)
    across[rows, labels] = 1
    apart = (logits[rows, labels, None] - logits) / across
    apart[rows, labels] = np.inf
    return labels.astype(np.int32), apart.min(axis=1)


LABELS, DISTANCE = distances()


def pruned(images, keys):
    """Return the logits with half of the pixels, drawn anew for each image and key."""
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, SHAPE))(keys)
    return linear(0.5 + 2 * keep.astype(images.dtype) * (images - 0.5))


def noisy(images, keys):
    noise = jax.vmap(lambda key: jax.random.normal(key, (CLASSES,)))(keys)
    return linear(images) + 0.05 * noise


def batch_of(iteration=0):
    keys = jax.random.split(jax.random.key(1), 40)
    zeros = jnp.zeros(40, jnp.int32)
    return Batch(
        jnp.asarray(IMAGES, jnp.float64),
        jnp.asarray(LABELS, int),
        keys,
        zeros,
        zeros + iteration,
    )


class Recording:
    """Keep the masks that a pass of `pruned` draws, in NumPy."""

    def __init__(self):
        self.masks = []

    def __call__(self, images, keys):
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, SHAPE))(keys)
        jax.debug.callback(lambda keep: self.masks.append(np.asarray(keep)), keep)
        return linear(0.5 + 2 * keep.astype(images.dtype) * (images - 0.5))


def margin_and_gradient(point, mask):
    """Return the margin under one mask and its gradient, in NumPy."""
    logits = (2 * mask * (point - 0.5)).reshape(40, -1) @ WEIGHTS
    rows = np.arange(40)
    others = logits.copy()
    others[rows, LABELS] = -np.inf
    other = others.argmax(axis=-1)
    towards = (WEIGHTS[:, other] - WEIGHTS[:, LABELS]).T.reshape(40, *SHAPE)
    return others[rows, other] - logits[rows, LABELS], 2 * mask * towards


@pytest.mark.parametrize("samples", [1, 7])
def test_loss_and_gradient_are_the_means_of_single_draws_in_float64(samples):
    with jax.enable_x64(True):
        batch, model = batch_of(), Recording()
        evaluate = jax.jit(
            lambda point: evaluated(
                model, lambda z: margin(z, batch.labels), point, batch, 3, samples
            )
        )
        losses, logits, gradient = evaluate(batch.images)
        jax.effects_barrier()
        assert len(model.masks) == samples
        assert len({mask.tobytes() for mask in model.masks}) == samples
        point = np.asarray(batch.images)
        single = [margin_and_gradient(point, mask) for mask in model.masks]
        wanted = [np.mean(parts, axis=0) for parts in zip(*single, strict=True)]
        np.testing.assert_allclose(losses, wanted[0], rtol=1e-12)
        np.testing.assert_allclose(gradient, wanted[1], rtol=1e-12)
        flat = (2 * np.mean(model.masks, axis=0) * (point - 0.5)).reshape(40, -1)
        np.testing.assert_allclose(logits, flat @ WEIGHTS, rtol=1e-10)


@pytest.mark.parametrize(
    "attack",
    [
        PGD("linf", 0.05, 4, 0.0125, loss="margin", random_start=False),
        APGD("linf", 0.05, 100, loss="margin"),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_a_step_follows_the_mean_gradient_and_each_step_has_its_own_draws(attack):
    attack = dataclasses.replace(attack, samples=3)
    with jax.enable_x64(True):
        model = Recording()
        state = jax.jit(lambda batch: attack.start(model, batch))(batch_of())
        drawn = []
        for iteration in range(2):
            jax.effects_barrier()
            model.masks.clear()
            batch = batch_of(iteration)
            state = jax.jit(lambda *args: attack.step(model, *args))(batch, state)
            jax.effects_barrier()
            here = state if isinstance(attack, PGD) else state.here
            point = np.asarray(here.point)
            # The first draws are for the gradient; the others judge the broken images.
            assert len(model.masks) % 10 == 3
            single = [margin_and_gradient(point, mask)[1] for mask in model.masks[:3]]
            np.testing.assert_allclose(
                here.gradient, np.mean(single, axis=0), rtol=1e-12
            )
            drawn += [mask.tobytes() for mask in model.masks]
        assert len(set(drawn)) == len(drawn)


def test_an_image_is_broken_where_all_means_of_fresh_draws_are_wrong():
    attack = PGD("linf", 0.04, 4, 0.02, samples=3)
    with jax.enable_x64(True):
        model = Recording()
        state = jax.jit(lambda batch: attack.start(pruned, batch))(batch_of())
        state = jax.jit(lambda *args: attack.step(model, *args))(batch_of(), state)
        jax.effects_barrier()

        def wrong(masks):
            flat = 2 * np.mean(masks, axis=0) * (np.asarray(state.point) - 0.5)
            return (flat.reshape(40, -1) @ WEIGHTS).argmax(axis=-1) != LABELS

        broken = wrong(model.masks[:3])
        judged = model.masks[3:]
        for first in range(0, len(judged), 10):
            broken &= wrong(judged[first : first + 10])
        broken &= wrong(judged)
        lucky = wrong(model.masks[:3]) & ~broken
        np.testing.assert_array_equal(state.broken, broken)
        # Both kinds are there, and all 20 means were needed for some image.
        assert lucky.any()
        assert broken.any()
        assert len(judged) == 200


CALLS = {
    fgsm: {},
    pgd: {"steps": 8, "step_size": 0.5, "loss": "margin"},
    apgd: {"steps": 12, "loss": "margin"},
    fab: {"steps": 8, "targets": 3},
    square: {"queries": 40},
}
# Each attack compiles programs of its own.
DEFAULT = {"near": (pgd,), "batches": ()}


def every(kind):
    attacks = [
        attack
        if attack in DEFAULT[kind]
        else pytest.param(
            attack, marks=pytest.mark.slow if attack is pgd else pytest.mark.thorough
        )
        for attack in CALLS
    ]
    return pytest.mark.parametrize("attack", attacks, ids=lambda each: each.__name__)


def found(attack, model, **options):
    call = dict(CALLS[attack])
    epsilon = options.pop("epsilon", float(np.median(DISTANCE)))
    if "step_size" in call:
        call["step_size"] *= epsilon
    call = {"epsilon": epsilon, "samples": 4} | call | options
    return attack(model, IMAGES, LABELS, **call)


@every("near")
def test_the_images_near_the_boundary_are_broken_and_stay_so_for_new_keys(attack):
    outcome = found(attack, noisy)
    epsilon = float(np.median(DISTANCE))
    assert outcome.standing["natural"] >= 36
    assert not outcome.success[DISTANCE > 1.05 * epsilon].any()
    if attack not in (fgsm, square):
        clear = DISTANCE < 0.8 * epsilon
        assert clear.sum() > 5
        assert outcome.success[clear].all()
    assert np.abs(outcome.images - IMAGES).max() <= epsilon + 1.2e-7
    fresh = jax.random.split(jax.random.key(9), (500, 40))
    logits = jax.vmap(lambda keys: noisy(outcome.images, keys))(fresh)
    wrong = logits.mean(axis=0).argmax(axis=-1) != LABELS
    # An image on the boundary itself may be misclassified without an attack.
    assert wrong[outcome.success & (DISTANCE > 0.1 * epsilon)].all()


@every("batches")
def test_batch_size_and_tracing_change_no_success(attack):
    whole = found(attack, noisy).success
    np.testing.assert_array_equal(whole, found(attack, noisy, batch_size=8).success)
    traced = jax.jit(lambda: found(attack, noisy).success)()
    # Rounding, and the draws of the natural images, may decide one.
    assert np.sum(np.asarray(traced) != whole) <= 1


@pytest.mark.slow
def test_untargeted_fab_goes_to_the_nearest_boundary_of_the_mean():
    outcome = found(fab, noisy, goal="untargeted", steps=8)
    epsilon = float(np.median(DISTANCE))
    assert outcome.success[DISTANCE < 0.8 * epsilon].all()
    assert not outcome.success[DISTANCE > 1.05 * epsilon].any()
    attack = FAB("linf", epsilon, goal="untargeted", targets=1, samples=3)
    with jax.enable_x64(True):
        batch = batch_of()
        state = jax.jit(lambda batch: attack.start(pruned, batch))(batch)
        model = Recording()
        jax.jit(lambda *args: attack.step(model, *args))(batch, state)
        jax.effects_barrier()
        # The same three draws serve f and the gradients of all classes.
        assert len({mask.tobytes() for mask in model.masks[:3]}) == 3
        first = model.masks[: 3 * CLASSES]
        assert {m.tobytes() for m in first} == {m.tobytes() for m in first[:3]}


def test_no_lucky_draw_breaks_an_image():
    """Most single draws of this model are wrong at some step; no mean is."""

    def lottery(images, keys):
        noise = jax.vmap(lambda key: jax.random.normal(key, (CLASSES,)))(keys)
        return linear(images) + 0.8 * noise

    far = DISTANCE > np.median(DISTANCE)
    keys = jax.random.split(jax.random.key(5), (400, 40))
    single = jax.vmap(lambda keys: lottery(IMAGES, keys))(keys).argmax(axis=-1)
    assert np.mean(np.asarray(single) != LABELS, axis=0)[far].mean() > 0.05
    outcome = pgd(lottery, IMAGES, LABELS, epsilon=1e-4, steps=60, samples=1)
    assert not outcome.success[far].any()


# Two classes, 400 pixels near grey. The gradient of a draw is nearly noise alone.
SIGNS = np.random.default_rng(2).choice([-1.0, 1.0], (20, 20, 1)).astype(np.float32)
GREY_EPSILON = 0.1
PART = np.linspace(0.05, 0.95, 24, dtype=np.float32)[:, None, None, None]
SIDE = np.random.default_rng(3).integers(0, 2, 24).astype(np.int32)
GREYS = 0.5 + GREY_EPSILON * PART * SIGNS * (2 * SIDE - 1)[:, None, None, None]


def steep_noise(images, keys):
    noise = jax.vmap(lambda key: jax.random.normal(key, SIGNS.shape))(keys)
    excess = jnp.sum((images - 0.5) * (SIGNS + 10 * noise), axis=(1, 2, 3))
    return jnp.stack([-excess, excess], axis=-1)


@pytest.mark.slow
def test_more_draws_break_a_randomised_defence_that_one_draw_does_not():
    images = GREYS.astype(np.float32)
    call = {
        "epsilon": GREY_EPSILON,
        "steps": 8,
        "random_start": False,
        "loss": "margin",
    }
    one, many = (
        pgd(steep_noise, images, SIDE, **call, samples=samples) for samples in (1, 200)
    )
    # An attack that knew the signs would break all.
    assert one.standing["natural"] >= 20
    assert one.success.mean() < 0.5
    assert many.success.mean() > one.success.mean() + 0.25
    truth = np.sum((many.images - 0.5) * SIGNS, axis=(1, 2, 3)) * (2 * SIDE - 1)
    assert (truth[many.success] < 0).all()


def test_robust_accuracy_averages_draws_and_records_them():
    table = freeadv_jax.robust_accuracy(
        noisy,
        IMAGES,
        LABELS,
        epsilon=float(np.median(DISTANCE)),
        attacks="natural,pgd-5,fgsm",
        samples=3,
        red_flags=False,
    )
    row = table.rows["pgd-5"]
    assert row["attack"]["samples"] == 3
    assert table.rows["natural"]["correct"] >= 36
    assert 8 < row["correct"] < 32
    assert "samples" not in table.rows["natural"]["attack"]


@pytest.mark.slow
def test_autoattack_of_robust_accuracy_is_the_version_for_randomised_models():
    table = freeadv_jax.robust_accuracy(
        noisy,
        IMAGES,
        LABELS,
        epsilon=float(np.median(DISTANCE)),
        attacks="autoattack",
        samples=2,
        red_flags=False,
    )
    row = table.rows["autoattack"]
    assert list(row["stages"]) == ["apgd-ce", "apgd-dlr"]
    assert row["attack"]["stages"]["apgd-ce"]["samples"] == 2
    outcome = autoattack(
        noisy, IMAGES, LABELS, epsilon=float(np.median(DISTANCE)), samples=2
    )
    assert list(outcome.standing) == ["natural", "apgd-ce", "apgd-dlr"]
    assert outcome.standing["apgd-dlr"] == row["correct"]


def test_versions_of_autoattack_for_randomised_models():
    common = {"norm": "linf", "epsilon": 0.1, "num_classes": 10}
    usual = cascade("rand", **common)
    assert {attack.samples for attack in usual.values()} == {20}
    assert list(usual) == ["apgd-ce", "apgd-dlr"]
    averaged = cascade("standard", **common, samples=5)
    assert list(averaged) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert {attack.samples for attack in averaged.values()} == {5}
    plain = cascade("standard", **common)
    assert {attack.samples for attack in plain.values()} == {None}


FUNCTIONS = (fgsm, pgd, apgd, fab, square, autoattack, freeadv_jax.robust_accuracy)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("model", "samples", "message"),
    [
        (linear, 5, "takes images alone: a randomised model must be a function"),
        (noisy, None, "a randomised model, a function of images and keys, goes with"),
        (noisy, 0, "samples = 0: must be a whole number of draws, 1 or more"),
    ],
    ids=["no keys", "no samples", "none"],
)
def test_models_and_samples_that_do_not_fit_are_refused(
    function, model, samples, message
):
    with pytest.raises(InputError, match=message) as refused:
        function(model, IMAGES, LABELS, epsilon=0.1, samples=samples)
    assert "\n" not in str(refused.value)


def test_samples_are_a_whole_number():
    with pytest.raises(InputError, match="samples = 2.5: must be a whole number"):
        check_samples(2.5)
    check_samples(np.int64(3))
    check_samples(None)
