"""FMN finds the nearest misclassified point, whose distance linear models give exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.attacks.attack import Batch, attack_keys
from freeadv_jax.attacks.fmn import FMN, fmn
from freeadv_jax.attacks.one_batch import run_attack
from freeadv_jax.attacks.threat import NORMS
from freeadv_jax.errors import InputError

ORDER = {"linf": np.inf, "l2": 2, "l1": 1}
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}
MATRIX = np.random.default_rng(3).normal(size=(30, 4)).astype(np.float32)
# No pixel is near the box, so that a distance is |margin| / dual norm.
IMAGES = np.random.default_rng(4).uniform(0.45, 0.55, (24, 5, 3, 2)).astype(np.float32)
ALL = pytest.mark.parametrize("norm", NORMS)


def linear(images):
    return (images - 0.5).reshape(len(images), -1) @ MATRIX


LABELS = np.argmax(linear(IMAGES), axis=-1).astype(np.int32)


def distances(norm):
    """Return the distance of each image to the nearest plane, in float64."""
    z = linear(IMAGES.astype(np.float64))
    own = z[np.arange(24), LABELS]
    across = MATRIX[:, LABELS].T[:, :, None] - MATRIX[None].astype(np.float64)
    sizes = np.linalg.norm(across, DUAL[norm], axis=1)
    sizes[np.arange(24), LABELS] = 1
    found = (own[:, None] - z) / sizes
    found[np.arange(24), LABELS] = np.inf
    return found.min(axis=1)


def leads(images):
    """Return by how much the label leads the largest other logit."""
    z = np.float64(linear(images))
    own = z[np.arange(24), LABELS]
    z[np.arange(24), LABELS] = -np.inf
    return own - z.max(axis=1)


def sizes(delta, norm):
    flat = np.asarray(delta, np.float64).reshape(len(delta), -1)
    return np.linalg.norm(flat, ORDER[norm], axis=1)


@ALL
def test_without_epsilon_the_nearest_point_is_found(norm):
    found = fmn(linear, IMAGES, LABELS, norm=norm)
    assert found.success.all()
    # The nearest point is on the boundary, to rounding.
    assert np.abs(leads(found.images)).max() < 1e-3
    assert leads(found.images).max() < 1e-6
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    ratio = sizes(found.images - IMAGES, norm) / distances(norm)
    assert ratio.min() > 0.999
    # The likeliest other class is not always the nearest.
    assert np.median(ratio) < 1.02
    assert np.mean(ratio < 1.05) > 0.8


@ALL
def test_an_image_is_broken_inside_epsilon_only(norm):
    exact = distances(norm)
    epsilon = float(np.median(exact))
    found = fmn(linear, IMAGES, LABELS, norm=norm, epsilon=epsilon)
    assert not found.success[exact > epsilon].any()
    assert found.success[exact < 0.9 * epsilon].mean() > 0.8
    size = sizes(np.float64(found.images) - np.float64(IMAGES), norm)
    assert size.max() <= epsilon + np.spacing(np.float32(epsilon))
    robust = ~found.success
    np.testing.assert_array_equal(found.images[robust], IMAGES[robust])


def test_the_ball_follows_algorithm_1():
    """Compare radii and points with NumPy in float64, for an L2 walk of 30 steps."""
    weights = MATRIX.astype(np.float64)
    x, label = IMAGES[0].ravel().astype(np.float64), LABELS[0]
    zero = jnp.zeros(1, jnp.int32)
    attack = FMN("l2", 1e-6, steps=30)
    keys = attack_keys(0, zero, zero)
    batch = Batch(jnp.asarray(IMAGES[:1]), jnp.asarray(LABELS[:1]), keys, zero, zero)
    step = jax.jit(lambda batch, state: attack.step(linear, batch, state))
    state = attack.start(linear, batch)
    point, radius, least = x, np.inf, np.inf
    signs = set()
    for k in range(30):
        z = (point - 0.5) @ weights
        other = np.argmax(np.where(np.arange(4) == label, -np.inf, z))
        slope, f = weights[:, other] - weights[:, label], z[other] - z[label]
        if k / 29 < 0.25:
            # The log odds: all other classes pull, by their probabilities.
            odds = np.where(np.arange(4) == label, 0, np.exp(z - z[other]))
            slope = weights @ (odds / odds.sum()) - weights[:, label]
        size = np.linalg.norm(point - x)
        gamma, alpha = (
            last + (first - last) * (1 + np.cos(np.pi * k / 29)) / 2
            for first, last in ((0.05, 1e-3), (2.0, 2e-2))
        )
        if f > 0:
            least = min(least, size)
            radius = min(radius * (1 - gamma), least)
        else:
            base = size - f / np.linalg.norm(slope) if np.isinf(least) else radius
            radius = base * (1 + (0.05 if np.isinf(least) else gamma))
        moved = point + alpha * radius * slope / np.linalg.norm(slope) - x
        point = x + moved * min(1, radius * (1 - 1e-6) / np.linalg.norm(moved))
        state = step(batch._replace(iteration=zero + k), state)
        signs.add(f > 0)
        np.testing.assert_allclose(state.radius[0], radius, rtol=2e-3)
        np.testing.assert_allclose(state.point[0].ravel(), point, atol=2e-3)
        # Float32 decides a little differently on which side of the boundary it is.
        point = np.float64(state.point[0].ravel())
        radius, least = float(state.radius[0]), float(state.least[0])
    assert signs == {True, False}


def test_one_compilation_serves_all_numbers():
    traces = []

    def model(images):
        traces.append(1)
        return linear(images)

    model = jax.tree_util.Partial(model)
    run_attack(FMN("l2", 0.1, 5), model, IMAGES, LABELS)
    traced = len(traces)
    run_attack(FMN("l2", 0.3, 9, nearest=True), model, IMAGES, LABELS)
    assert len(traces) == traced


def test_unknown_norm_and_epsilon_of_zero_are_refused():
    with pytest.raises(InputError, match="'l3' is unknown"):
        fmn(linear, IMAGES, LABELS, norm="l3")
    with pytest.raises(InputError, match="must be above 0"):
        fmn(linear, IMAGES, LABELS, epsilon=0.0)


@pytest.mark.torch
@ALL
def test_no_weaker_than_foolbox(norm):
    """Foolbox has FMN in L-inf and L1, and DDN in L2; its FMN in L2 does not project."""
    pytest.importorskip("foolbox")
    pytest.importorskip("torch")
    import digits_mlp

    from benchmarks.peers.references import nearest

    images, labels = digits_mlp.correct_examples(100)
    ours = fmn(digits_mlp.logits, images, labels, norm=norm)
    assert ours.success.all()
    mine = sizes(ours.images - images, norm)
    model = digits_mlp.torch_model()
    name = "ddn" if norm == "l2" else "fmn"
    adversarial = nearest(name, norm)(model, images, labels)
    theirs = sizes(adversarial - images, norm)
    theirs[(adversarial == images).all(axis=(1, 2, 3))] = np.inf
    epsilon = np.median(theirs)
    assert np.sum(mine > epsilon) <= np.sum(theirs > epsilon) + 1
