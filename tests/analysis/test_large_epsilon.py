"""Images attacked far beyond the training's epsilon, and input gradients."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.analysis.comparison import Examples, first_examples, open_models
from freeadv_jax.analysis.large_epsilon import (
    default_times,
    gradient_picture,
    input_gradients,
    main,
    make,
    one_of_each_class,
    radius,
    target_classes,
    title,
)
from freeadv_jax.attacks.campaign import Campaign
from freeadv_jax.errors import InputError
from freeadv_jax.runs.load import load


@pytest.fixture
def run(trained_pair, tmp_path):
    return shutil.copytree(trained_pair[1], tmp_path / "run")


def test_attacked_images_use_the_whole_ball_and_reach_their_target_class(
    run, monkeypatch
):
    (model,) = open_models([run])
    examples = one_of_each_class(first_examples([model], data="", examples=200), 6)
    assert len(set(examples.labels)) == 6
    campaign = Campaign(batch_size=6)
    made = make(model, examples, times=3, campaign=campaign)
    images = examples.images / np.float32(255)
    for row in ("untargeted", "targeted"):
        delta = np.abs(made[row] - images)
        assert 0.55 < delta.max() <= 0.6 + 1e-6
        assert made[row].min() >= 0
        assert made[row].max() <= 1
        logits = load(run)(jnp.asarray(made[row]))
        np.testing.assert_allclose(made[f"{row} logits"], logits, atol=1e-4)
    predicted = made["untargeted logits"].argmax(axis=-1)
    assert (predicted != examples.labels).all()
    targets = target_classes(examples.labels, 10)
    before = made["image logits"].argmax(axis=-1) == targets
    after = made["targeted logits"].argmax(axis=-1) == targets
    assert before.sum() == 0
    assert after.sum() >= 5
    # The pictures are kept: a second call needs no attack.
    monkeypatch.delattr(Campaign, "attack")
    again = make(model, examples, times=3, campaign=campaign)
    np.testing.assert_array_equal(again["targeted"], made["targeted"])


def test_the_gradient_of_a_linear_model_is_the_known_one():
    """The gradient of -log softmax(x W)[y] is W (softmax - onehot(y))."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(8, 3)).astype(np.float32)
    images = rng.uniform(size=(5, 2, 2, 2)).astype(np.float32)
    labels = np.array([0, 1, 2, 0, 1], np.int32)
    linear = jax.tree_util.Partial(
        lambda weights, x: x.reshape(len(x), -1) @ weights, weights
    )
    logits = images.reshape(5, 8) @ weights
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = (softmax - np.eye(3)[labels]) @ weights.T
    found = input_gradients(linear, images, labels)
    np.testing.assert_allclose(np.reshape(found, (5, 8)), expected, atol=1e-6)


def test_a_gradient_picture_is_grey_at_zero_and_cut_at_three_deviations():
    gradient = np.zeros((10, 10, 1), np.float32)
    gradient[0, 0], gradient[0, 1] = 5, -5
    picture = gradient_picture(gradient)
    assert (picture[0, 0, 0], picture[0, 1, 0], picture[5, 5, 0]) == (1, 0, 0.5)
    half = gradient.std() * 1.5
    gradient[1, 1] = half
    assert 0.7 < gradient_picture(gradient)[1, 1, 0] < 0.76


def test_the_radius_is_a_multiple_up_to_the_whole_range_of_a_pixel():
    assert radius("linf", 0.1, times=4) == 0.4
    assert radius("linf", 0.1, times=40) == 1.0
    assert radius("l2", 0.5, times=4) == 2.0


def test_the_default_radius_leaves_something_of_the_image_to_see():
    assert default_times("linf", 8 / 255) == 4
    assert radius("linf", 0.2, times=default_times("linf", 0.2)) == pytest.approx(0.4)
    assert default_times("linf", 0.5) == 1
    assert default_times("l2", 0.5) == 4


def test_the_title_says_how_large_the_ball_is():
    text = title("linf", 0.1, times=40)
    assert "L-inf epsilon 1:" in text
    assert "10 times the epsilon 0.1 of the training" in text


def test_a_target_class_is_never_the_class_itself():
    for classes in (2, 3, 10):
        labels = np.arange(classes, dtype=np.int32)
        assert (target_classes(labels, classes) != labels).all()


def test_the_first_image_of_each_class_is_taken_in_order():
    labels = np.array([3, 3, 1, 3, 0], np.int32)
    images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)
    chosen = one_of_each_class(Examples(images, labels, ("a", "b", "c", "d")), 2)
    assert chosen.labels.tolist() == [3, 1]
    assert chosen.images.ravel().tolist() == [0, 2]


def test_the_command_draws_a_figure_whose_title_explains_the_radius(run, tmp_path):
    out = tmp_path / "large.svg"
    main(["large_epsilon", str(run), f"--out={out}", "--images=3", "--times=2"])
    drawn = out.read_text()
    assert "input gradient" in drawn
    assert "within L-inf epsilon 0.4" in drawn
    assert "2 times the epsilon 0.2 of the training" in drawn


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ("0", "must be a number above 0"),
        ("-1/2", "must be a number above 0"),
        ("much", "must be a number, such as 8/255"),
        ("inf", "must be a number, such as 8/255"),
    ],
)
def test_impossible_times_are_refused(run, tmp_path, times, message):
    with pytest.raises(InputError, match=f"--times: .*{message}"):
        main(
            [
                "large_epsilon",
                str(run),
                f"--out={tmp_path / 'a.png'}",
                f"--times={times}",
            ]
        )
