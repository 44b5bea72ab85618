"""Attacks on whole data sets: any batch size gives the same outcome, and batches stay
full.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.attacks import campaign as campaign_module
from freeadv_jax.attacks.apgd import APGD
from freeadv_jax.attacks.campaign import Campaign, _fitting_size, _Slots
from freeadv_jax.attacks.cost import Cost
from freeadv_jax.attacks.fab import FAB
from freeadv_jax.attacks.one_batch import run_attack
from freeadv_jax.attacks.pgd import PGD
from freeadv_jax.attacks.programs import forget_programs
from freeadv_jax.attacks.square import Square
from freeadv_jax.models.conv import Conv

RNG = np.random.default_rng(0)
IMAGES = RNG.random((77, 5, 4, 2), np.float32)
LABELS = RNG.integers(0, 3, 77).astype(np.int32)
WEIGHTS = {
    "hidden": RNG.normal(size=(40, 16)).astype(np.float32),
    "out": RNG.normal(size=(16, 3)).astype(np.float32),
}
CALLS = []


def network(weights, images):
    hidden = jnp.tanh(images.reshape(len(images), -1) @ weights["hidden"])
    return hidden @ weights["out"]


LOGITS_FN = jax.tree_util.Partial(network, WEIGHTS)
LABELS = np.where(
    np.arange(77) % 5 == 0, LABELS, np.argmax(LOGITS_FN(IMAGES), -1)
).astype(np.int32)
WEAK = PGD("linf", 0.03, steps=3, step_size=0.01)


@pytest.fixture(autouse=True)
def no_programs_kept():
    """Forget the programs of earlier tests, so that each test counts its own
    compilations.
    """
    forget_programs()


def robust_under(attack=WEAK, *, batch_size=24, seed=0, **fields):
    campaign = Campaign(batch_size=batch_size, seed=seed)
    right = campaign.logits(LOGITS_FN, IMAGES).argmax(axis=-1) == LABELS
    return campaign.attack(attack, LOGITS_FN, IMAGES, LABELS, right, **fields)


def test_outcome_is_that_of_the_whole_set_as_one_batch():
    whole = run_attack(WEAK, LOGITS_FN, jnp.asarray(IMAGES), jnp.asarray(LABELS))
    np.testing.assert_array_equal(robust_under(), ~np.asarray(whole.success))
    assert 5 < robust_under().sum() < 60


@pytest.mark.parametrize("batch_size", [1, 40, 300])
def test_outcome_is_the_same_for_any_batch_size(batch_size):
    attack = PGD("linf", 0.03, 3, 0.01, restarts=2, goal="multi-target", targets=2)
    np.testing.assert_array_equal(
        robust_under(attack, batch_size=batch_size), robust_under(attack, batch_size=16)
    )


def test_random_starts_differ_by_seed_and_restarts_only_break_more():
    one = robust_under(seed=0)
    assert any((one != robust_under(seed=seed)).any() for seed in range(1, 6))
    many = robust_under(PGD("linf", 0.03, 3, 0.01, restarts=20))
    assert not (many & ~one).any()
    assert many.sum() < one.sum()


def test_equal_images_have_random_starts_of_their_own():
    campaign = Campaign(batch_size=16)
    right = campaign.logits(LOGITS_FN, IMAGES).argmax(axis=-1) == LABELS
    differ = 0
    for index in np.flatnonzero(right)[:20]:
        images = np.repeat(IMAGES[index : index + 1], 40, axis=0)
        labels = np.repeat(LABELS[index : index + 1], 40)
        found = campaign.attack(WEAK, LOGITS_FN, images, labels, np.ones(40, bool))
        differ += 0 < found.sum() < 40
    assert differ > 0


def counted(images):
    jax.debug.callback(lambda: CALLS.append(1))
    return network(WEIGHTS, images)


def test_broken_images_leave_the_batch_and_others_take_their_places():
    """Few passes are needed, because broken images make room for others."""
    campaign = Campaign(batch_size=8)
    attack = PGD("linf", 0.5, steps=40, step_size=0.1)
    right = campaign.logits(counted, IMAGES).argmax(axis=-1) == LABELS
    jax.effects_barrier()
    CALLS.clear()
    looks = []
    found = campaign.attack(
        attack,
        counted,
        IMAGES,
        LABELS,
        right,
        watch=lambda done, robust, _: looks.append((done, robust.sum())),
    )
    jax.effects_barrier()
    assert found.sum() == 0
    # Without refilling the batch, there would be 40 * 65 / 8 = 325 looks.
    assert len(looks) < 40
    assert looks[-1] == (right.sum(), 0)
    assert [done for done, _ in looks] == sorted(done for done, _ in looks)


def test_attempts_on_one_image_fill_the_batch_and_end_when_it_is_broken():
    """One image has nine attempts, and the batch holds eight: one attempt waits.

    The attempts under way count by their steps, so that progress is seen in a batch.
    """
    attack = PGD("linf", 1e-4, steps=5, step_size=1e-4, restarts=9)
    campaign = Campaign(batch_size=8)
    looks = []
    campaign.attack(
        attack,
        LOGITS_FN,
        IMAGES[1:2],
        LABELS[1:2],
        np.ones(1, bool),
        watch=lambda done, *_: looks.append(done),
    )
    assert looks == pytest.approx([1.6, 3.2, 4.8, 6.4, 8, 8.2, 8.4, 8.6, 8.8, 9])


def test_other_numbers_compile_nothing_and_compilations_are_counted():
    campaign = Campaign(batch_size=16)
    right = campaign.logits(LOGITS_FN, IMAGES).argmax(axis=-1) == LABELS
    run = functools.partial(
        campaign.attack,
        logits_fn=LOGITS_FN,
        images=IMAGES,
        labels=LABELS,
        robust=right,
    )
    run(PGD("linf", 0.03, 3, 0.01))
    run(PGD("linf", 0.1, 10, 0.02, restarts=2, random_start=False))
    assert campaign.compilations == 3
    run(PGD("linf", 0.03, 3, 0.01, loss="margin"))
    assert campaign.compilations == 5


def test_uint8_images_are_attacked_as_their_pixels_over_255():
    raw = (IMAGES * 255).astype(np.uint8)
    campaign = Campaign(batch_size=16)
    floats = raw.astype(np.float32) / 255
    right = campaign.logits(LOGITS_FN, floats).argmax(axis=-1) == LABELS
    np.testing.assert_allclose(
        campaign.logits(LOGITS_FN, raw), campaign.logits(LOGITS_FN, floats), atol=1e-5
    )
    found = [
        campaign.attack(WEAK, LOGITS_FN, images, LABELS, right)
        for images in (raw, floats)
    ]
    np.testing.assert_array_equal(*found)


def test_attacked_images_are_inside_the_ball_and_break_the_model():
    adversarial = IMAGES.copy()
    found = robust_under(adversarial=adversarial)
    wrong = np.argmax(LOGITS_FN(adversarial), axis=-1) != LABELS
    np.testing.assert_array_equal(wrong, ~found)
    assert np.abs(adversarial - IMAGES).max() <= 0.03 + 1.2e-7


def test_finished_attempts_are_not_repeated():
    attack = PGD("linf", 0.03, 3, 0.01, restarts=4)
    finished = np.zeros((4, 77), bool)
    whole = robust_under(attack, finished=finished)
    assert finished[:, whole].all()
    looks = []
    again = robust_under(
        attack, finished=finished, watch=lambda *look: looks.append(look)
    )
    # An image's remaining attempts count as finished once one of them has broken it.
    assert finished.sum() >= 4 * whole.sum()
    assert len(looks) <= 12
    assert (again | ~whole).all()


def test_another_model_of_the_same_structure_compiles_nothing():
    """The arrays of a callable pytree are arguments of the program; a closure's are
    constants.
    """
    traces = []

    def traced(weights, images):
        traces.append(1)
        return network(weights, images)

    campaign = Campaign(batch_size=24)
    other = WEIGHTS | {"out": WEIGHTS["out"][:, [1, 2, 0]]}
    found, counts = [], []
    for weights in (WEIGHTS, other):
        model = jax.tree_util.Partial(traced, weights)
        right = campaign.logits(model, IMAGES).argmax(axis=-1) == LABELS
        found.append(campaign.attack(WEAK, model, IMAGES, LABELS, right))
        counts.append(len(traces))
    # The second model is traced for its shapes, but not compiled.
    assert counts[1] - counts[0] < counts[0]
    assert campaign.compilations == 3
    assert (found[0] != found[1]).any()
    np.testing.assert_array_equal(found[0], robust_under())


def test_a_device_reads_the_iteration_of_its_own_step():
    """Devices that shared the host's buffers could read the iteration of a later step."""
    attack = PGD("linf", 0.1, 1, 0.1, random_start=False, last_iterate=True)
    robust = np.ones(77, bool)
    for _ in range(6):
        moved = np.zeros_like(IMAGES)
        Campaign(batch_size=80).attack(
            attack, LOGITS_FN, IMAGES, LABELS, robust, adversarial=moved
        )
        assert (np.abs(moved - IMAGES).max((1, 2, 3)) > 0.05).all()


def test_the_last_images_move_to_a_smaller_batch_with_the_same_outcome(monkeypatch):
    """On eight devices five images need eight places, not all 64.

    Compilation is free here, so that the images move although the model is small.
    """
    monkeypatch.setattr(Cost, "compilation", lambda self, runs: 0)
    attack = PGD("linf", 0.03, 120, 0.001)
    expected = robust_under(attack, batch_size=16)
    forget_programs()
    sizes = []

    def sized(weights, images):
        sizes.append(images.shape)
        return network(weights, images)

    campaign = Campaign(batch_size=64)
    model = jax.tree_util.Partial(sized, WEIGHTS)
    right = campaign.logits(model, IMAGES).argmax(axis=-1) == LABELS
    few = right & (np.cumsum(expected) <= 5)
    sizes.clear()
    adversarial = IMAGES.copy()
    found = campaign.attack(attack, model, IMAGES, LABELS, few, adversarial=adversarial)
    np.testing.assert_array_equal(found, expected & few)
    # The whole batch where shapes are asked for, else a device's part of one: of the
    # first batch, and of ever smaller ones.
    fitting = _fitting_size(int(few.sum()), 64)
    parts = {shape[0] for shape in sizes} - {64, fitting}
    assert {fitting // 8, 1} <= parts
    assert 2 + len({fitting // 8, 1}) <= campaign.compilations <= 6
    wrong = np.argmax(LOGITS_FN(adversarial), axis=-1) != LABELS
    np.testing.assert_array_equal(wrong[few], ~found[few])


@pytest.mark.parametrize("steps", [1, 20])
def test_few_images_are_never_computed_as_a_whole_batch(steps):
    sizes = []

    def sized(weights, images):
        sizes.append(len(images))
        return network(weights, images)

    model = jax.tree_util.Partial(sized, WEIGHTS)
    campaign = Campaign(batch_size=200)
    campaign.logits(model, IMAGES[:10])
    attack = PGD("linf", 1e-3, steps=steps, step_size=1e-3)
    campaign.attack(attack, model, IMAGES[:10], LABELS[:10], np.ones(10, bool))
    assert 2 <= max(sizes) <= 16


def test_batches_have_few_sizes_that_hold_little_more_than_asked_for():
    sizes = [_fitting_size(count, 10_000) for count in range(1, 8_000)]
    for count, size in enumerate(sizes, 1):
        assert count <= size <= 1.125 * count + 8
        assert size % 8 == 0
    assert len(set(sizes)) < 80
    assert _fitting_size(300, 200) == 200


def test_the_last_images_stay_where_another_compilation_costs_more_than_it_saves():
    slots = _Slots(np.zeros((64, 1, 1, 1), np.float32), np.zeros(64, np.int32), 64)
    slots.fill((0, index) for index in range(64))
    slots.release(np.arange(64) >= 10)
    slots.fill(iter(()))
    small, large = (Cost(200, n, 0, True) for n in (1e5, 1e10))
    assert slots.smaller_size(100, small) == 0
    assert slots.smaller_size(100, large) == 16
    assert slots.smaller_size(1, large) == 16


def test_the_work_left_never_rises():
    """Images break at different steps, wait for places, and have two attempts each."""
    attack = PGD("linf", 0.03, steps=23, step_size=0.002, restarts=2)
    looks = []
    robust_under(attack, watch=lambda *look: looks.append((look[0], *look[2])))
    done, made, left = np.transpose(looks)
    assert (np.diff(left) <= 0).all() and left[-1] == 0
    assert (np.diff(made) > 0).all() and (np.diff(done) >= 0).all()
    # Before the first step of 77 images: no more than all their steps.
    assert made[-1] < made[0] + left[0] <= 23 * (2 * 77 + 24)


class Own(nn.Module):
    """A network with Flax's convolutions, or with ours."""

    conv: type

    @nn.compact
    def __call__(self, images):
        size = 3 if self.conv is Conv else (3, 3)
        hidden = nn.relu(self.conv(4, size)(images))
        return nn.Dense(3)(nn.relu(self.conv(4, size)(hidden)).mean((1, 2)))


@pytest.mark.parametrize(
    ("attack", "conv", "together"),
    [
        (PGD("linf", 1e-4, steps=60, step_size=1e-5), Conv, True),
        (PGD("linf", 1e-4, steps=60, step_size=1e-5), nn.Conv, False),
        # Forward passes alone are fast in loops.
        (Square("linf", 1e-4, steps=60), nn.Conv, True),
    ],
    ids=["ours", "flax", "flax-forward"],
)
def test_a_cpu_makes_several_steps_a_call_unless_convolutions_are_slow_in_loops(
    attack, conv, together
):
    model = Own(conv)
    weights = model.init(jax.random.key(0), jnp.asarray(IMAGES[:1]))
    logits_fn = jax.tree_util.Partial(model.apply, weights)
    labels = np.asarray(logits_fn(jnp.asarray(IMAGES[:8])).argmax(-1), np.int32)
    looks = []
    Campaign(batch_size=8).attack(
        attack,
        logits_fn,
        IMAGES[:8],
        labels,
        np.ones(8, bool),
        watch=lambda *look: looks.append(look),
    )
    assert (len(looks) < 30) if together else (len(looks) == 60)


@pytest.mark.parametrize(
    "attack",
    [
        PGD("linf", 0.03, steps=23, step_size=0.002, restarts=2),
        APGD("linf", 0.03, steps=23),
        pytest.param(FAB("linf", 0.03, steps=23), marks=pytest.mark.slow),
        pytest.param(Square("linf", 0.03, steps=230), marks=pytest.mark.slow),
    ],
    ids=lambda attack: type(attack).__name__.lower(),
)
def test_several_steps_a_call_give_the_same_images(attack, monkeypatch):
    """The last call has steps to spare, and some images finish before others."""

    def outcome():
        moved = IMAGES.copy()
        looks = []
        found = robust_under(
            attack,
            batch_size=32,
            adversarial=moved,
            watch=lambda done, *_: looks.append(done),
        )
        return found, moved, len(looks)

    monkeypatch.setattr(campaign_module, "_steps_a_call", lambda *_: 1)
    stands, moved, looks = outcome()
    monkeypatch.setattr(campaign_module, "_steps_a_call", lambda *_: 10)
    together, moved_together, fewer_looks = outcome()
    assert fewer_looks < looks / 4
    assert 0 < stands.sum() < 77
    np.testing.assert_array_equal(together, stands)
    np.testing.assert_allclose(moved_together, moved, atol=1e-6)


def test_a_process_reads_only_its_own_images(
    monkeypatch,
):
    """This is the second of two processes; the places of the first stay empty."""
    monkeypatch.setattr(
        "freeadv_jax.devices.parallel.rows", lambda size: slice(size // 2, size)
    )
    images = np.arange(1, 17, dtype=np.float32).reshape(16, 1, 1, 1) / 16
    slots = _Slots(images, np.zeros(16, np.int32), 16)
    slots.fill((0, index) for index in range(16))
    np.testing.assert_array_equal(slots.batch["image"][8:], images[8:])
    assert not slots.batch["image"][:8].any()
    slots.release(np.arange(16) >= 6)
    slots.fill(iter(()))
    slots.shrink(8)
    np.testing.assert_array_equal(slots.batch["image"][4:], images[slots.index[4:]])
    assert list(slots.index[:6]) == [0, 1, 2, 3, 4, 5]


class _Recorded:
    """Hold images of the value of their index, and remember which were read."""

    shape, dtype = (10, 1), np.dtype(np.float32)

    def __init__(self):
        self.read = []

    def __len__(self):
        return 10

    def __getitem__(self, chosen):
        self.read += range(*chosen.indices(10))
        return np.arange(10, dtype=np.float32)[chosen, None]


@pytest.mark.parametrize(
    ("first", "rows", "read"),
    [(0, slice(0, 4), [0, 1, 2, 3]), (8, slice(0, 4), [8, 9]), (8, slice(4, 8), [])],
    ids=["a whole part", "the end of the images", "behind the end"],
)
def test_a_process_reads_the_images_of_its_own_devices_alone(
    monkeypatch, first, rows, read
):
    monkeypatch.setattr(campaign_module.parallel, "rows", lambda size: rows)
    images = _Recorded()
    part = campaign_module._own_part(images, first, 8)
    assert images.read == read
    expected = np.zeros(8)
    expected[rows.start : rows.start + len(read)] = read
    np.testing.assert_array_equal(part[:, 0], expected)
