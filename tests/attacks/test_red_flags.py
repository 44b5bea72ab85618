"""Red flags stay silent for honest models and catch models that mask their gradients."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.attacks import bpda, red_flags, verdict
from freeadv_jax.attacks.robustness import flags_as_record, flags_as_text
from freeadv_jax.data.arrays import load_arrays
from freeadv_jax.recipes import digits
from freeadv_jax.runs.folder import open_run
from freeadv_jax.runs.load import load
from freeadv_jax.runs.train import train_run

DIGITS = load_arrays("digits", "", validation_examples=0)
SHOWN = DIGITS.test.take(np.arange(64))

HONEST = {"rounded": False, "scale": 1.0, "waves": 0.0, "softmax": False}


def masked(mask, logits_fn, images):
    """Hide a model behind a mask whose numbers are traced, so that all masks share a
    program.
    """
    # A staircase before the model has a gradient of 0.
    images = jnp.where(mask["rounded"], jnp.round(images * 4) / 4, images)
    # Large logits saturate the softmax to 0 or 1 in float32. The cross-entropy then has a
    # gradient of 0, or of 5e-11 as XLA rounds it; the attacked log odds have theirs.
    logits = mask["scale"] * logits_fn(images)
    # These waves are too small to change many classes, and too steep to see past.
    ways = jax.random.normal(jax.random.key(0), (64, 10))
    logits += mask["waves"] * jnp.sin(3000 * images.reshape(-1, 64) @ ways)
    return jnp.where(mask["softmax"], jax.nn.softmax(logits), logits)


def suspicious(flags):
    return {flag.name for flag in flags if flag.suspicious}


@pytest.fixture(scope="module")
def flags_of(tmp_path_factory):
    """Return a function of a mask that gives the red flags of a Free-8 model behind it."""
    config = digits()
    config.updates = 640
    config.data.validation_examples = 0
    workdir = tmp_path_factory.mktemp("honest") / "run"
    train_run(open_run(workdir, config, num_classes=10, image_shape=(8, 8, 1)), DIGITS)
    logits_fn = load(workdir).logits_fn

    def flags_of(watch=None, **mask):
        return red_flags(
            jax.tree_util.Partial(masked, HONEST | mask, logits_fn),
            SHOWN.images,
            SHOWN.labels,
            norm="linf",
            epsilon=0.2,
            step_size=0.025,
            watch=watch,
        )

    return flags_of


@pytest.fixture(scope="module")
def honest(flags_of):
    told = []
    return flags_of(watch=lambda *progress: told.append(progress)), told


@pytest.mark.slow
def test_nothing_is_suspicious_in_an_honest_free_model(honest):
    flags, told = honest
    assert suspicious(flags) == set(), flags_as_text(flags_as_record(flags))
    _, losses, unbounded, noise, square, gradients, forward, curve, *others = flags
    assert not losses.suspicious
    accuracies = list(curve.numbers["accuracy"].values())
    assert accuracies[0] > 0.95
    assert 0.2 < accuracies[3] < 0.8
    assert accuracies == sorted(accuracies, reverse=True)
    assert unbounded.numbers["accuracy"] == 0
    assert noise.numbers["accuracy"] > noise.numbers["pgd"] == accuracies[3]
    assert square.numbers["missed"] <= 1
    assert gradients.numbers["zero"] == {"cross-entropy": 0, "margin": 0}
    assert forward.numbers == {"difference": 0, "probabilities": False}
    shattered, vanishing, random, saturated, types = others
    assert shattered.numbers["stuck"] < 0.1
    assert max(vanishing.numbers.values()) < 0.1
    assert random.numbers == {"different": 0}
    assert saturated.numbers["saturated"] == 0 < saturated.numbers["lead"] < 20
    assert types.numbers["narrow"] == []
    assert verdict(flags) == "none of the 13 questions points to masked gradients"
    assert {flag.advice for flag in flags} == {""}
    assert {attack for attack, *_ in told} == {"PGD", "Noise", "Square"}


@pytest.mark.slow
def test_lines_and_record_hold_all_numbers(honest):
    flags, _ = honest
    *lines, last = flags_as_text(flags_as_record(flags)).splitlines()
    assert [line.split()[0] for line in lines] == ["ok"] * 13
    assert last == f"verdict     {verdict(flags)}"
    record = json.loads(json.dumps(flags_as_record(flags)))
    for flag, line in zip(flags, lines, strict=True):
        assert line == f"ok          {flag.name}: {flag.text}"
        assert record[flag.name]["suspicious"] is False
        assert record[flag.name]["text"] == flag.text
        assert record[flag.name].keys() == {"suspicious", "text", *flag.numbers}
        for name, value in flag.numbers.items():
            values = value.values() if isinstance(value, dict) else [value]
            if name.startswith(("accuracy", "zero")) and flag.name != "Square":
                assert all(f"{share:.2%}" in flag.text for share in values), flag
    radii = record["epsilon curve"]["accuracy"]
    np.testing.assert_allclose(list(map(float, radii)), [0, 0.05, 0.1, 0.2, 0.4, 0.8])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (
            {"rounded": True},
            {
                "unbounded attack",
                "random noise",
                "Square",
                "gradients",
                "shattered gradients",
                "vanishing gradients",
            },
        ),
        (
            {"waves": 0.3},
            {"unbounded attack", "random noise", "Square", "shattered gradients"},
        ),
        ({"softmax": True}, {"forward pass"}),
    ],
    ids=["rounded", "shattered", "softmax"],
)
def test_a_model_that_masks_its_gradients_is_caught(flags_of, mask, expected):
    flags = flags_of(**mask)
    assert suspicious(flags) >= expected, flags_as_text(flags_as_record(flags))
    by_name = {flag.name: flag for flag in flags}
    said = verdict(flags)
    assert said.startswith(f"{len(suspicious(flags))} of 13 red flags are raised: ")
    for flag in flags:
        assert bool(flag.advice) == flag.suspicious
        assert (f"\n{flag.name}: {flag.text}\n" in said) == flag.suspicious
        if flag.suspicious:
            assert f"\ntry next: {flag.advice}\n" in f"{said}\n"
    if "gradients" in expected:
        assert "freeadv_jax.attacks.bpda" in said
    if "forward pass" in expected:
        # Saturated probabilities have gradients near those that count as vanishing.
        assert suspicious(flags) - {"vanishing gradients"} == expected
        assert "probabilities, not logits" in by_name["forward pass"].text
    if "gradients" in expected:
        zero = by_name["gradients"].numbers["zero"]
        assert zero["cross-entropy"] > 0.5
        assert zero["margin"] == ("rounded" in mask)
    if "Square" in expected:
        numbers = by_name["Square"].numbers
        assert f"break {numbers['missed']} of" in by_name["Square"].text
        assert numbers["pgd"] - numbers["accuracy"] > 0.1
        assert by_name["unbounded attack"].numbers["accuracy"] > 0.1
    if "random noise" in expected:
        numbers = by_name["random noise"].numbers
        assert numbers["accuracy"] < numbers["pgd"]


@pytest.mark.thorough
def test_a_model_is_attacked_as_strongly_with_large_logits(flags_of, honest):
    flags = flags_of(scale=1e4)
    assert suspicious(flags) == {"saturated logits"}, verdict(flags)
    by_name = {flag.name: flag for flag in flags}
    losses, gradients = by_name["losses"], by_name["gradients"]
    saturated = by_name["saturated logits"]
    assert saturated.numbers["saturated"] > 0.9
    assert "attacks on the margin" in saturated.advice
    assert gradients.numbers["zero"] == {"cross-entropy": 0, "margin": 0}
    # The log odds of such logits are the margin, which breaks the same images at any
    # scale, but for one that rounding may decide.
    margin = honest[0][1].numbers["accuracy_by_loss"]["margin"]
    for accuracy in losses.numbers["accuracy_by_loss"].values():
        assert accuracy == pytest.approx(margin, abs=1.5 / len(SHOWN.labels))


# Images of one brightness, of class 1 if bright, and models that trap PGD.
EPSILON = 0.1
LEVELS = np.random.default_rng(0).integers(20, 236, 80)
COLOURS = np.tile(LEVELS[:, None, None, None], (1, 4, 4, 1)).astype(np.uint8)


def brightness(images):
    return 20 * (images.mean((1, 2, 3)) - 0.5)


def leads(images, sign):
    """Return the brightness, with its gradient multiplied by `sign`."""
    sign = jax.lax.stop_gradient(sign)
    shown = brightness(images)
    return jax.lax.stop_gradient(shown) * (1 - sign) + shown * sign


def turning(images):
    """Return the brightness; its gradient is right until all pixels reach the ball's
    border.
    """
    return leads(images, jnp.where(images.std((1, 2, 3)) > EPSILON / 20, 1.0, -1.0))


def lottery(images):
    """Return the brightness without a gradient; one in six random starts flips the
    class.
    """
    won = images[:, 0, 0, 0] - images[:, 3, 3, 0] > 0.8 * EPSILON
    return leads(images, jnp.zeros(len(images))) * jnp.where(won, -1, 1)


def near_sighted(images):
    """Return the brightness; its gradient is right only if the start is within EPSILON."""
    return leads(images, jnp.where(images.std((1, 2, 3)) < 0.9 * EPSILON, 1.0, 0.0))


def flickering(images):
    """Return the brightness plus a tiny number that changes with each call."""
    shape = jax.ShapeDtypeStruct((), jnp.float32)
    count = jax.pure_callback(lambda: np.float32(next(COUNTER)), shape)
    return brightness(images) + 1e-4 * count


COUNTER = itertools.count()
TRAPS = (brightness, turning, lottery, near_sighted, flickering)


def trapped(number, images):
    """Run the model TRAPS[number]; `number` is traced, so that all traps share a
    program.
    """
    excess = jax.lax.switch(number, TRAPS, images)
    return jnp.stack([-excess, excess], axis=-1)


@pytest.fixture(scope="module")
def flags_of_trap():
    def flags_of_trap(trap):
        flags = red_flags(
            jax.tree_util.Partial(trapped, np.int32(TRAPS.index(trap))),
            COLOURS,
            (LEVELS > 127).astype(np.int32),
            norm="linf",
            epsilon=EPSILON,
            step_size=EPSILON / 8,
        )
        return {flag.name: flag for flag in flags}, flags_as_text(
            flags_as_record(flags)
        )

    return flags_of_trap


@pytest.mark.thorough
def test_plain_brightness_is_no_trap(flags_of_trap):
    flags, lines = flags_of_trap(brightness)
    assert suspicious(flags.values()) == set(), lines


@pytest.mark.thorough
def test_steps_that_weaken_the_attack_are_caught(flags_of_trap):
    flags, lines = flags_of_trap(turning)
    flag = flags["steps and restarts"]
    few, many = flag.numbers["accuracy_by_steps"].values()
    assert flag.suspicious, lines
    assert many > few + 0.05
    assert f"{few:.2%} after 10 steps, {many:.2%} after 50" in flag.text


@pytest.mark.thorough
def test_an_attack_that_needs_its_restarts_is_caught(flags_of_trap):
    flags, lines = flags_of_trap(lottery)
    flag = flags["steps and restarts"]
    one, several = flag.numbers["accuracy_by_starts"].values()
    assert flag.suspicious, lines
    assert one > several + 0.1
    assert f"{one:.2%} from one start, {several:.2%} from 4" in flag.text


@pytest.mark.thorough
def test_accuracy_that_rises_with_epsilon_is_caught(flags_of_trap):
    flags, lines = flags_of_trap(near_sighted)
    flag = flags["epsilon curve"]
    accuracies = list(flag.numbers["accuracy"].values())
    assert flag.suspicious, lines
    assert accuracies[4] > accuracies[3]
    assert "it rises from 0.1 to 0.2" in flag.text


@pytest.mark.thorough
def test_a_forward_pass_that_changes_is_caught(flags_of_trap):
    flags, lines = flags_of_trap(flickering)
    flag = flags["forward pass"]
    assert flag.suspicious, lines
    assert f"differ by up to {flag.numbers['difference']:.3g}" in flag.text


# Grey images under a network whose units are all off at the six darkest of them.
GREYS = np.array([0.1] * 6 + [0.5, 0.85] * 31, np.float32)
SPECKLED = GREYS[:, None, None, None] + np.random.default_rng(1).uniform(
    -0.02, 0.02, (len(GREYS), 4, 4, 1)
).astype(np.float32)


def units(images):
    mean = images.mean((1, 2, 3))
    return jax.nn.relu(20 * (mean[:, None] - jnp.array([0.3, 0.65])))


def two_units(images):
    """Return logits that are monotone in every pixel; bright images are of class 1."""
    few, many = units(images).T
    return jnp.stack([1 - 0.05 * few, many - 1], axis=-1)


@pytest.mark.thorough
def test_dead_units_of_a_certified_network_raise_no_flag():
    epsilon = 0.05
    labels = np.asarray(two_units(SPECKLED)).argmax(axis=-1)
    low, high = (
        np.asarray(units(jnp.clip(SPECKLED + shift, 0, 1))).T
        for shift in (-epsilon, epsilon)
    )
    # The bounds of the intervals certify every image.
    least_lead = np.where(
        labels == 0,
        (1 - 0.05 * high[0]) - (high[1] - 1),
        (low[1] - 1) - (1 - 0.05 * low[0]),
    )
    assert least_lead.min() > 0
    flags = red_flags(two_units, SPECKLED, labels, epsilon=epsilon)
    assert suspicious(flags) == set(), flags_as_text(flags_as_record(flags))
    by_name = {flag.name: flag for flag in flags}
    zero = by_name["gradients"].numbers["zero"]
    assert zero == {loss: 6 / 68 for loss in ("cross-entropy", "margin")}
    unbounded = by_name["unbounded attack"]
    assert unbounded.text.endswith(
        "(6 of 68 images; 6 have no gradient where they are)"
    )


def labelled(logits_fn):
    return np.asarray(logits_fn(SPECKLED)).argmax(axis=-1)


def grey(images):
    """Return smooth logits; the brightness decides among three classes."""
    mean = images.mean((1, 2, 3))[:, None]
    return -20 * (mean - jnp.array([0.1, 0.5, 0.85], images.dtype)) ** 2


def by_name(logits_fn, **options):
    labels = options.pop("labels", None)
    labels = labelled(grey) if labels is None else labels
    flags = red_flags(logits_fn, SPECKLED, labels, epsilon=0.05, **options)
    return {flag.name: flag for flag in flags}, verdict(flags)


@pytest.mark.slow
def test_a_rounding_defence_is_flagged_and_with_bpda_it_is_not():
    def rounded(images):
        return jnp.round(images * 10) / 10

    flags, said = by_name(lambda x: grey(rounded(x)), labels=labelled(grey))
    assert flags["shattered gradients"].suspicious, said
    assert "BPDA, which gives the part without a useful gradient another's" in said
    flags, said = by_name(lambda x: grey(bpda(rounded)(x)), labels=labelled(grey))
    assert not flags["shattered gradients"].suspicious, said
    assert not flags["gradients"].suspicious, said
    assert not flags["vanishing gradients"].suspicious, said


@pytest.mark.thorough
@pytest.mark.parametrize(("factor", "name"), [(1e-4, "vanished"), (1e4, "exploded")])
def test_gradients_of_another_size_than_the_steps_are_flagged(factor, name):
    """The direction is right, so that every attack succeeds as without a defence."""

    flags, said = by_name(bpda(grey, lambda images: factor * grey(images)))
    flag = flags["vanishing gradients"]
    assert flag.suspicious, said
    assert flag.numbers[name] > 0.9
    assert not flags["shattered gradients"].suspicious, said


@pytest.mark.slow
def test_a_model_of_half_precision_is_flagged():
    def half(images):
        return grey(images.astype(jnp.bfloat16)).astype(jnp.float32)

    flags, said = by_name(half)
    flag = flags["float type"]
    assert flag.suspicious, said
    assert flag.numbers["narrow"] == ["bfloat16"]
    assert (
        "the model computes in bfloat16, in which gradients are quantised" in flag.text
    )
    assert "the same weights in float32" in said


def noisy_grey(images, keys):
    noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(keys)
    return grey(jnp.clip(images + 0.02 * noise, 0, 1))


@pytest.mark.thorough
def test_a_randomised_model_with_enough_draws_raises_no_flag():
    flags, said = by_name(noisy_grey, samples=8)
    assert suspicious(flags.values()) == set(), said
    random = flags["random gradients"]
    assert list(random.numbers["accuracy_by_draws"]) == [8, 32]
    assert random.numbers["agreement"] > 0.5


@pytest.mark.thorough
def test_a_randomised_model_with_too_few_draws_is_flagged():
    """One draw of this gradient is noise; its mean over many is right."""

    def steep(images, keys):
        noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(keys)
        true = grey(images)
        slope = jnp.sum(
            noise * (images - jax.lax.stop_gradient(images)), axis=(1, 2, 3)
        )
        return true + 1000 * slope[:, None] * jnp.array([1.0, 0.0, -1.0])

    flags, said = by_name(steep, samples=1)
    random = flags["random gradients"]
    assert random.suspicious, said
    assert abs(random.numbers["agreement"]) < 0.2
    assert "try next: more draws: samples=4" in said


@pytest.mark.thorough
def test_a_model_that_is_random_behind_the_callers_back_is_flagged():
    shape = jax.ShapeDtypeStruct((), jnp.float32)

    def shaken(images):
        count = jax.pure_callback(lambda: np.float32(next(COUNTER)), shape)
        return grey(images) * (1 + 0.1 * jax.lax.stop_gradient(jnp.sin(count)))

    flags, said = by_name(shaken)
    assert flags["random gradients"].suspicious, said
    assert flags["forward pass"].suspicious, said
    assert "write the model as a function of images and keys" in said
