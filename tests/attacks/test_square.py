"""Square agrees with plain NumPy loops and with Algorithms 1 to 3 of its paper."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.attacks.attack import Batch, attack_keys
from freeadv_jax.attacks.square import (
    Square,
    covered_part,
    eta,
    move,
    side_of,
    square,
    tiles,
)
from freeadv_jax.errors import InputError

EPSILON = {"linf": 0.1, "l2": 0.7, "l1": 3.0}
IMAGES = jax.random.uniform(jax.random.key(0), (3, 6, 5, 2))
LABELS = jnp.array([0, 1, 2])


def wave(images):
    """Return logits of three classes that no single gradient can solve."""
    phases = jnp.arange(3.0)[:, None, None, None, None]
    rows = jnp.arange(1.0, 1 + images.shape[1])[:, None, None]
    return jnp.sin(9 * images + phases * rows).sum((2, 3, 4)).T


def stubborn(images):
    """Return the same logits, with a lead for each label that no attack removes."""
    return wave(images) + 200 * jax.nn.one_hot(LABELS, 3)


def unbroken(images):
    """Return the same logits, with a lead for class 0 that no attack removes."""
    return wave(images) + 200 * jax.nn.one_hot(0, 3)


def brightness(images):
    """Return logits of class 1 for images brighter than 0.6."""
    light = images.mean((1, 2, 3)) - 0.6
    return jnp.stack([jnp.zeros_like(light), light], axis=-1)


def batch_of(images, labels, iteration=0):
    index = jnp.arange(len(images))
    keys = attack_keys(0, index, jnp.zeros_like(index))
    iteration = jnp.broadcast_to(jnp.asarray(iteration), index.shape)
    return Batch(images, labels, keys, jnp.zeros_like(index), iteration)


def states(attack, logits_fn, images, labels, steps):
    """Return the states before the first step and after each step."""
    step = jax.jit(lambda batch, state: attack.step(logits_fn, batch, state))
    state = jax.jit(lambda batch: attack.start(logits_fn, batch))(
        batch_of(images, labels)
    )
    yield state
    for iteration in range(steps):
        state = step(batch_of(images, labels, iteration), state)
        yield state


@pytest.mark.parametrize(
    ("queries", "iteration", "halvings"),
    [
        *[(10_000, 0, 0), (10_000, 10, 0), (10_000, 11, 1), (10_000, 50, 1)],
        *[(10_000, 51, 2), (10_000, 200, 2), (10_000, 201, 3), (10_000, 500, 3)],
        *[(10_000, 501, 4), (10_000, 1000, 4), (10_000, 1001, 5), (10_000, 2000, 5)],
        *[(10_000, 2001, 6), (10_000, 4000, 6), (10_000, 4001, 7), (10_000, 6000, 7)],
        *[(10_000, 6001, 8), (10_000, 8000, 8), (10_000, 8001, 9), (10_000, 9999, 9)],
        *[(5000, 5, 0), (5000, 6, 1), (5000, 25, 1), (5000, 26, 2), (5000, 4001, 9)],
    ],
)
def test_covered_part_is_halved_after_its_queries(queries, iteration, halvings):
    part = covered_part(0.8, iteration, queries)
    assert part == np.float32(0.8) / 2**halvings


@pytest.mark.parametrize("queries", [1, 7, 100, 3333, 12_345, 1_000_000])
def test_schedule_for_ten_thousand_queries_is_stretched_to_the_budget(queries):
    bounds = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
    iterations = np.linspace(0, queries - 1, 50).astype(np.int32)
    expected = [
        2.0 ** -sum(10_000 * iteration // queries > bound for bound in bounds)
        for iteration in iterations.tolist()
    ]
    parts = jax.vmap(lambda iteration: covered_part(1.0, iteration, queries))(
        jnp.asarray(iterations)
    )
    np.testing.assert_array_equal(parts, expected)


def test_sides_of_squares_in_an_image_of_32_by_32_pixels():
    parts = [0.8 / 2**halvings for halvings in range(10)]
    linf = [int(side_of("linf", part, 32, 32)) for part in parts]
    l2 = [int(side_of("l2", part, 32, 32)) for part in parts]
    assert linf == [29, 20, 14, 10, 7, 5, 4, 3, 2, 1]
    assert l2 == [29, 21, 15, 11, 7, 5, 5, 3, 3, 3]


def test_a_square_is_no_larger_than_the_image():
    assert side_of("linf", 0.8, 4, 40) == 4
    assert side_of("l2", 0.8, 4, 40) == 4
    assert side_of("l2", 0.1, 2, 2) == 2


def plain_eta(side, *, order=2):
    """Compute equation (2) literally: two bumps, each normalised, then their sum.

    In L1 the terms fall twice as fast.
    """
    pattern = np.zeros((side, side))
    for first, height, sign in [(0, side // 2, 1), (side // 2, side - side // 2, -1)]:
        bump = np.zeros((height, side))
        for i in range(height):
            for j in range(side):
                d = max(abs(i - height // 2), abs(j - side // 2))
                last = max(height // 2, side // 2)
                bump[i, j] = sum(
                    1 / (k + 1) ** (4 if order == 1 else 2) for k in range(d, last + 1)
                )
        if height:
            pattern[first : first + height] = (
                sign * bump / np.linalg.norm(bump.ravel(), order)
            )
    return pattern / np.linalg.norm(pattern.ravel(), order)


@pytest.mark.parametrize("side", [1, 2, 3, 5, 8, 21])
def test_eta_is_the_pattern_of_the_paper_in_its_square_and_0_outside(side):
    rows, columns = jnp.arange(24)[:, None, None], jnp.arange(22)[None, :, None]
    expected = np.zeros((24, 22))
    expected[3 : 3 + side, 1 : 1 + side] = plain_eta(side)
    pattern = jax.jit(eta)(rows - 3, columns - 1, jnp.int32(side))
    np.testing.assert_allclose(pattern[..., 0], expected, atol=1e-6)
    expected[3 : 3 + side, 1 : 1 + side] = plain_eta(side).T
    transposed = jax.jit(eta)(columns - 1, rows - 3, side)
    np.testing.assert_allclose(transposed[..., 0], expected, atol=1e-6)


def test_eta_of_side_3_is_pinned():
    pattern = eta(jnp.arange(3)[:, None, None], jnp.arange(3)[None, :, None], 3)
    upper = np.array([[1, 5, 1]]) / math.sqrt(27)
    lower = np.array([[1, 1, 1], [1, 5, 1]]) / math.sqrt(30)
    expected = np.concatenate([upper, -lower]) / math.sqrt(2)
    np.testing.assert_allclose(pattern[..., 0], expected, atol=1e-6)


def plain_move(nu, first, second, side, pattern, signs, epsilon, *, order=2):
    """Apply Algorithm 3 channel by channel, with given random draws.

    In L1 a channel gets the mass of its two squares once for each channel.
    """
    one = np.zeros(nu.shape[:2], bool)
    one[first[0] : first[0] + side, first[1] : first[1] + side] = True
    two = np.zeros(nu.shape[:2], bool)
    two[second[0] : second[0] + side, second[1] : second[1] + side] = True
    unused = max(epsilon**order - np.sum(np.abs(nu) ** order), 0)
    moved = nu.copy()
    for channel, sign in enumerate(signs):
        old = nu[one, channel]
        content = sign * pattern.ravel() + old / np.linalg.norm(old, order)
        mass = np.sum(np.abs(nu[one | two, channel]) ** order)
        available = mass + unused / len(signs)
        if order == 1:
            available *= len(signs)
        moved[two, channel] = 0
        moved[one, channel] = (
            content / np.linalg.norm(content, order) * available ** (1 / order)
        )
    return moved


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_step_is_one_of_the_moves_of_algorithm_3(norm, seed):
    """Try all squares, transpositions and signs: exactly one combination explains the
    step.
    """
    order = {"l2": 2, "l1": 1}[norm]
    rng = np.random.default_rng(seed)
    image, side, epsilon = rng.uniform(size=(5, 4, 2)), 3, 0.7
    nu = rng.normal(size=image.shape)
    nu *= 0.9 * epsilon / np.linalg.norm(nu.ravel(), order)
    image, best = jnp.float32(image), jnp.float32(image + nu)
    change = jax.jit(move, static_argnames="norm")
    moved = change(jax.random.key(seed), side, image, best, epsilon, norm=norm) - image
    places = list(itertools.product(range(3), range(2)))
    patterns = [plain_eta(side, order=order), plain_eta(side, order=order).T]
    signs = list(itertools.product([-1, 1], repeat=2))
    tried = [
        plain_move(nu, *draw[:2], side, *draw[2:], epsilon, order=order)
        for draw in itertools.product(places, places, patterns, signs)
    ]
    explained = {one.tobytes() for one in tried if np.allclose(one, moved, atol=2e-6)}
    assert len(explained) == 1
    if norm == "l2":
        np.testing.assert_allclose(np.linalg.norm(moved), epsilon, rtol=1e-5)


def test_l2_steps_draw_every_square_transposition_and_sign():
    image = jnp.full((4, 4, 1), 0.5)
    keys = jax.random.split(jax.random.key(0), 400)
    moved = jax.jit(jax.vmap(lambda key: move(key, 3, image, image, 0.3)))(keys) - image
    # The second square is invisible without a perturbation: 4 places * 2 orders * 2
    # signs.
    assert len({np.array(delta).tobytes() for delta in moved.round(4) + 0.0}) == 16


def test_l2_start_is_tiles_of_eta_with_a_margin():
    """An image of 13 by 11 pixels holds 6 by 5 tiles of side 2."""
    delta = np.array(jax.jit(tiles)(jax.random.key(1), jnp.zeros((13, 11, 2)), 0.5))
    assert not delta[12:].any()
    assert not delta[:, 10:].any()
    size = 0.5 / math.sqrt(6 * 5 * 2)
    patterns = [size * plain_eta(2), size * plain_eta(2).T]
    drawn = set()
    for row, column in itertools.product(range(6), range(5)):
        tile = delta[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        draws = [
            (turned, signs)
            for turned in (0, 1)
            for signs in itertools.product([-1, 1], repeat=2)
            if np.allclose(tile, patterns[turned][..., None] * signs, atol=1e-6)
        ]
        assert len(draws) == 1
        drawn.update(draws)
    assert len(drawn) == 8


def ends(images, epsilon):
    """Return the lowest and highest pixel values in ball and box, in float32."""
    images = np.array(images)
    lowest = np.maximum(images - np.float32(epsilon), 0)
    return lowest, np.minimum(images + np.float32(epsilon), 1)


def test_linf_start_is_stripes_of_one_sign_a_column_and_channel():
    attack = Square("linf", 0.1)
    images = jnp.full((3, 6, 5, 2), 0.5)
    delta = np.array(attack.start(wave, batch_of(images, LABELS)).adversarial) - 0.5
    np.testing.assert_allclose(np.abs(delta), 0.1, rtol=1e-6)
    assert (delta == delta[:, :1]).all()
    assert 0 < (delta[:, 0] > 0).mean() < 1


def test_every_linf_pixel_is_at_an_end_of_ball_or_box():
    lowest, highest = ends(IMAGES, 0.1)
    for state in states(Square("linf", 0.1, steps=40), stubborn, IMAGES, LABELS, 40):
        point = np.array(state.adversarial)
        assert ((point == lowest) | (point == highest)).all()


@pytest.mark.parametrize("iteration", [0, 3, 900])
def test_linf_query_sets_one_square_to_one_end_in_each_channel(iteration):
    """Try each square of the right side: one of them explains the whole query."""
    asked = []

    def asking(images):
        asked.append(np.array(images))
        return wave(images)

    attack = Square("linf", 0.1, steps=1000, p_init=0.5)
    batch = batch_of(IMAGES, LABELS, iteration)
    state = attack.start(asking, batch)
    attack.step(asking, batch, state)
    best, query = asked
    side = int(side_of("linf", covered_part(0.5, iteration, 1000), 6, 5))
    assert side == {0: 4, 3: 3, 900: 1}[iteration]
    for image, before, after in zip(np.stack(ends(IMAGES, 0.1), 1), best, query):
        fits = 0
        for top in range(6 - side + 1):
            for left in range(5 - side + 1):
                tried = [before.copy() for _ in range(4)]
                at = np.s_[top : top + side, left : left + side]
                for signs, point in zip(itertools.product([0, 1], repeat=2), tried):
                    for channel, sign in enumerate(signs):
                        point[at][..., channel] = image[sign][at][..., channel]
                fits += any((point == after).all() for point in tried)
        assert fits >= 1


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("shape", [(6, 5, 2), (8, 8, 1), (4, 4, 3), (2, 3, 1)])
def test_points_stay_in_ball_and_box_and_the_margin_never_shrinks(norm, shape):
    images = jax.random.uniform(jax.random.key(1), (3, *shape))
    attack = Square(norm, EPSILON[norm], steps=30)
    losses = []
    for state in states(attack, stubborn, images, LABELS, 30):
        point = np.array(state.adversarial, np.float64)
        delta = (point - np.array(images)).reshape(3, -1)
        size = np.linalg.norm(delta, {"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1)
        assert size.max() <= EPSILON[norm] + np.spacing(np.float32(1))
        assert point.min() >= 0
        assert point.max() <= 1
        losses.append(np.array(state.loss))
    assert not state.broken.any()
    assert (np.diff(losses, axis=0) >= 0).all()
    assert (losses[-1] > losses[0]).all()


def test_linf_breaks_exactly_the_images_within_epsilon_of_the_boundary():
    """To exceed 0.6 from 0.501 with epsilon 0.1, every pixel must be at its highest
    value.
    """
    light = jnp.array([0.49, 0.499, 0.501, 0.51, 0.7])
    images = jnp.broadcast_to(light[:, None, None, None], (5, 4, 4, 1))
    found = square(brightness, images, jnp.zeros(5, int), epsilon=0.1, queries=400)
    assert found.success.tolist() == [False, False, True, True, True]
    np.testing.assert_array_equal(found.images[4], images[4])
    np.testing.assert_allclose(found.images[1], images[1] + 0.1, rtol=1e-6)


def test_l2_breaks_images_well_within_epsilon_and_none_beyond():
    """Raising all 64 pixels by d is a distance of 8 d."""
    light = jnp.array([0.49, 0.499, 0.54, 0.59])
    images = jnp.broadcast_to(light[:, None, None, None], (4, 8, 8, 1))
    found = square(
        brightness, images, jnp.zeros(4, int), norm="l2", epsilon=0.8, queries=1000
    )
    assert found.success.tolist() == [False, False, True, True]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_each_image_is_attacked_alone_at_its_own_iteration(norm):
    @jax.jit
    def attacked(batch):
        attack = Square(norm, EPSILON[norm], steps=100)
        return attack.step(wave, batch, attack.start(wave, batch))

    batch = batch_of(IMAGES, LABELS, jnp.array([0, 7, 80]))
    together = attacked(batch)
    for place in range(3):
        alone = attacked(Batch(*(part[place : place + 1] for part in batch)))
        for one, among in zip(alone, together):
            np.testing.assert_allclose(one[0], among[place], rtol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_seed_decides_the_points(norm):
    def attacked(seed):
        call = {"norm": norm, "epsilon": 0.1, "queries": 20, "seed": seed}
        found = square(unbroken, IMAGES, jnp.zeros(3, int), **call)
        assert not found.success.any()
        return np.array(found.images)

    np.testing.assert_array_equal(attacked(0), attacked(0))
    assert (attacked(0) != attacked(1)).any()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_gradient_is_never_used(norm):
    @jax.custom_vjp
    def opaque(images):
        return wave(images)

    def refuse(*_):
        raise AssertionError("a gradient was asked for")

    opaque.defvjp(refuse, refuse)
    square(opaque, IMAGES, LABELS, norm=norm, epsilon=0.1, queries=3)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_start_and_step_each_evaluate_the_model_once(norm):
    asked = []

    def asking(images):
        asked.append(images)
        return wave(images)

    attack = Square(norm, 0.1)
    batch = batch_of(IMAGES, LABELS)
    state = jax.eval_shape(lambda batch: attack.start(asking, batch), batch)
    assert len(asked) == 1
    jax.eval_shape(lambda *given: attack.step(asking, *given), batch, state)
    assert len(asked) == 2


def test_numbers_may_be_traced_and_the_schedule_may_be_cut_off():
    """At step 600 of 1000, the rescaled schedule has squares of side 1, the other of 4."""
    compilations = []

    @jax.jit
    def changed(numbers):
        compilations.append(1)
        attack = dataclasses.replace(Square("linf", 0.1), **numbers)
        images = jnp.full((40, 16, 16, 1), 0.5)
        batch = batch_of(images, jnp.zeros(40, int), 600)
        start = attack.start(lambda x: -brightness(x), batch)
        # With a loss of minus infinity, every query is accepted.
        start = start._replace(loss=jnp.full(40, -jnp.inf))
        after = attack.step(lambda x: -brightness(x), batch, start)
        return (after.adversarial != start.adversarial).sum((1, 2, 3)).max()

    numbers = {"epsilon": np.float32(0.1), "steps": np.int32(1000)}
    numbers |= {"p_init": np.float32(0.8), "rescaled": np.bool_(True)}
    assert changed(numbers) == 1
    assert changed(numbers | {"rescaled": np.bool_(False)}) <= 16
    assert changed(numbers | {"rescaled": np.bool_(False)}) > 1
    assert len(compilations) == 1


def test_restarts_are_attempts_with_keys_of_their_own():
    assert Square("linf", 0.1, restarts=3).attempts == 3
    light = jnp.full((16, 4, 4, 1), 0.5)
    labels = jnp.zeros(16, int)
    broken = [
        int(
            square(
                brightness, light, labels, epsilon=0.13, queries=12, restarts=restarts
            ).success.sum()
        )
        for restarts in (1, 4)
    ]
    assert broken[0] < broken[1]


def test_unusable_settings_are_refused():
    with pytest.raises(InputError, match="epsilon"):
        square(wave, IMAGES, LABELS, epsilon=8)
    with pytest.raises(InputError, match="norm 'l3' is unknown"):
        square(wave, IMAGES, LABELS, norm="l3", epsilon=0.1)
