"""The functions that freeadv_jax.attacks exports: names, signatures, results,
compilation.
"""

import inspect
import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import freeadv_jax.attacks
from freeadv_jax.attacks import Outcome, apgd, autoattack, fab, fgsm, pgd, square
from freeadv_jax.attacks.programs import forget_programs

NAMES = ("fgsm", "pgd", "apgd", "fab", "square", "autoattack", "red_flags")
FUNCTIONS = (*NAMES, "bpda", "verdict")
# The budgets are small; tests/attacks/test_ensemble.py runs autoattack.
CALLS = {
    fgsm: {},
    pgd: {"steps": 3, "restarts": 2},
    apgd: {"steps": 5},
    fab: {"steps": 3, "targets": 2},
    square: {"queries": 9},
}
EVERY = pytest.mark.parametrize("attack", CALLS, ids=lambda attack: attack.__name__)
RNG = np.random.default_rng(0)
IMAGES = RNG.random((21, 5, 4, 2), np.float32)
WEIGHTS = RNG.normal(size=(40, 3)).astype(np.float32)


def linear(weights, images):
    return (images - 0.5).reshape(len(images), -1) @ weights


MODEL = jax.tree_util.Partial(linear, WEIGHTS)
LABELS = np.asarray(MODEL(IMAGES)).argmax(axis=-1)
LABELS[:2] = (LABELS[:2] + 1) % 3


def found(attack, model=MODEL, images=IMAGES, labels=LABELS, **options):
    call = {"norm": "linf", "epsilon": 0.04} | CALLS[attack] | options
    return attack(model, images, labels, **call)


@pytest.mark.parametrize(
    "first",
    [
        "import freeadv_jax.attacks.ensemble",
        "import freeadv_jax.attacks.pgd, freeadv_jax.attacks.apgd",
        "import freeadv_jax.attacks.red_flags",
        "from freeadv_jax.attacks.square import Square",
        "import freeadv_jax.runs.results",
    ],
)
def test_names_are_functions_whatever_was_imported_first(first):
    program = (
        f"{first}\nimport inspect\nfrom freeadv_jax.attacks import {', '.join(FUNCTIONS)}\n"
        "import freeadv_jax.attacks.pgd, freeadv_jax.attacks.fab\n"
        "import freeadv_jax.attacks as attacks\n"
        f"assert all(inspect.isfunction(f) for f in ({', '.join(FUNCTIONS)}))\n"
        f"assert all(inspect.isfunction(getattr(attacks, n)) for n in {FUNCTIONS})"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("name", NAMES)
def test_signatures_are_written_out_and_options_are_keywords(name):
    function = getattr(freeadv_jax.attacks, name)
    assert name in freeadv_jax.attacks.__all__
    parameters = list(inspect.signature(function).parameters.values())
    assert [p.name for p in parameters[:3]] == ["logits_fn", "images", "labels"]
    assert {p.kind for p in parameters[3:]} == {inspect.Parameter.KEYWORD_ONLY}
    assert {"norm", "epsilon", "batch_size"} <= {p.name for p in parameters}
    documented = inspect.getdoc(function)
    for parameter in parameters:
        assert name == "fgsm" or f"{parameter.name}:" in documented


@EVERY
def test_every_attack_returns_the_same_kind_of_result(attack):
    outcome = found(attack)
    assert isinstance(outcome, Outcome)
    assert list(outcome.standing) == ["natural", attack.__name__]
    assert outcome.standing["natural"] == 19
    assert outcome.standing[attack.__name__] == (~outcome.success).sum()
    assert outcome.images.shape == IMAGES.shape
    wrong = np.asarray(MODEL(outcome.images)).argmax(axis=-1) != LABELS
    np.testing.assert_array_equal(outcome.success, wrong)
    assert 2 < outcome.success.sum() < 21


@EVERY
def test_batch_size_bounds_what_the_model_sees_and_changes_no_success(attack):
    sizes = []

    def model(images):
        sizes.append(len(images))
        return linear(WEIGHTS, images)

    small = found(attack, model, batch_size=8)
    # Each of the eight devices has one image.
    assert max(sizes) <= 8
    np.testing.assert_array_equal(small.success, found(attack).success)


@EVERY
def test_attacks_can_be_traced_with_the_same_success(attack):
    def jitted(weights, images, labels, epsilon):
        model = jax.tree_util.Partial(linear, weights)
        return found(attack, model, images, labels, epsilon=epsilon)

    traced = jax.jit(jitted)(WEIGHTS, IMAGES, jnp.asarray(LABELS), 0.04)
    np.testing.assert_array_equal(traced.success, found(attack).success)
    assert traced.standing[attack.__name__] == (~traced.success).sum()

    # A plain function may capture traced weights.
    captured = jax.jit(lambda w: found(attack, lambda x: linear(w, x)).success)(WEIGHTS)
    np.testing.assert_array_equal(captured, traced.success)


@EVERY
@pytest.mark.parametrize("kind", [list, np.uint8, np.int64, jnp.int16])
def test_labels_may_be_a_list_or_of_any_integer_type(attack, kind):
    labels = LABELS.tolist() if kind is list else kind(LABELS)
    success = found(attack, labels=labels).success
    np.testing.assert_array_equal(success, found(attack).success)


@EVERY
@pytest.mark.parametrize("kind", [np.float16, jnp.bfloat16, np.float64])
def test_images_of_other_floats_are_attacked_as_float32(attack, kind):
    images = IMAGES.astype(kind)
    outcome = found(attack, images=images)
    assert outcome.images.dtype == np.float32
    wanted = found(attack, images=images.astype(np.float32))
    np.testing.assert_array_equal(outcome.success, wanted.success)


@EVERY
@pytest.mark.parametrize("kind", [jnp.float16, jnp.bfloat16])
def test_logits_of_half_precision_are_attacked(attack, kind):
    outcome = found(attack, lambda images: MODEL(images).astype(kind))
    assert 2 < outcome.success.sum() < 21


@EVERY
@pytest.mark.torch
def test_images_and_labels_may_be_tensors_of_pytorch(attack):
    torch = pytest.importorskip("torch")
    images = torch.tensor(IMAGES, requires_grad=True)
    outcome = found(attack, images=images, labels=torch.tensor(LABELS))
    np.testing.assert_array_equal(outcome.images, found(attack).images)


@EVERY
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_attacks_and_models_may_insist_on_the_rank_of_images(attack, norm):
    def model(images):
        def logits(image):
            assert image.shape == (5, 4, 2)
            return (image - 0.5).ravel() @ WEIGHTS

        assert images.ndim == 4
        return jax.vmap(logits)(images)

    with jax.numpy_rank_promotion("raise"):
        traced = jax.eval_shape(
            lambda images: found(attack, model, images, norm=norm), IMAGES
        )
    assert traced.images.shape == IMAGES.shape


def with_masked_classes(images):
    """Return the logits of MODEL and of two classes that no image gets."""
    masked = jnp.full((len(images), 1), -jnp.inf)
    first, others = jnp.split(MODEL(images), [1], axis=-1)
    return jnp.concatenate([first, masked, others, masked], axis=-1)


@pytest.mark.parametrize(
    ("attack", "options"),
    [
        (pgd, {}),
        (pgd, {"goal": "least-likely"}),
        (apgd, {"goal": "multi-target", "targets": 2}),
        (fab, {"goal": "untargeted"}),
        (square, {}),
    ],
)
def test_masked_classes_change_no_success(attack, options):
    labels = np.where(LABELS > 0, LABELS + 1, 0)
    masked = found(attack, with_masked_classes, labels=labels, **options)
    np.testing.assert_array_equal(masked.success, found(attack, **options).success)
    assert np.isfinite(masked.images).all()


def compilations(attack, model, **options):
    return found(attack, model, batch_size=8, **options).compilations


@EVERY
def test_a_second_model_of_the_same_structure_compiles_nothing(attack):
    forget_programs()
    assert compilations(attack, MODEL) >= 3
    other = jax.tree_util.Partial(linear, WEIGHTS[:, [1, 2, 0]] * 2)
    assert compilations(attack, other, epsilon=0.02) == 0


def test_a_plain_function_is_traced_again_and_compiles_nothing():
    """The weights that the function captured may have changed since the last call.

    A new function is traced too.
    """
    weights = {"current": WEIGHTS}

    def model(images):
        return linear(weights["current"], images)

    forget_programs()
    before = found(pgd, model, batch_size=8)
    assert before.compilations >= 3
    weights["current"] = WEIGHTS[:, [1, 2, 0]]
    after = found(pgd, model, batch_size=8)
    assert after.compilations == 0
    fresh = found(pgd, lambda x: linear(weights["current"], x), batch_size=8)
    assert fresh.compilations == 0
    assert (before.success != after.success).any()
    np.testing.assert_array_equal(after.images, fresh.images)
    wrong = np.asarray(model(after.images)).argmax(axis=-1) != LABELS
    np.testing.assert_array_equal(after.success, wrong)


def test_a_plain_function_never_uses_numbers_of_an_earlier_call():
    forget_programs()
    outcomes = []
    for sign in (1.0, -1.0):
        model = lambda images, sign=sign: sign * linear(WEIGHTS, images)
        outcomes.append(found(pgd, model).standing["natural"])
    assert outcomes[0] == 19
    assert outcomes[1] < 10


def test_models_that_use_different_ones_of_their_weights_share_no_program():
    def first(used, unused, images):
        return linear(used, images)

    def second(unused, used, images):
        return linear(used, images)

    forget_programs()
    weights = WEIGHTS, -WEIGHTS
    counts = [
        found(fgsm, jax.tree_util.Partial(model, *weights)).standing["natural"]
        for model in (first, second)
    ]
    assert counts[0] == 19
    assert counts[1] < 10


def test_a_start_that_needs_no_model_is_shared_by_no_other_number_of_weights():
    """The start of untargeted FAB does not evaluate the model."""
    forget_programs()
    plain = found(fab, lambda images: MODEL(images), goal="untargeted")
    handed_over = found(fab, MODEL, goal="untargeted")
    np.testing.assert_array_equal(plain.success, handed_over.success)


def test_python_callbacks_are_never_confused():
    """Two callbacks have the same compiled code, which does not name the Python
    function.
    """
    shape = jax.ShapeDtypeStruct((), jnp.float32)

    def model(factor):
        def logits_fn(images):
            scale = jax.pure_callback(lambda: np.float32(factor), shape)
            return jax.lax.stop_gradient(scale) * linear(WEIGHTS, images)

        return logits_fn

    counts = [found(fgsm, model(factor)).standing["natural"] for factor in (1, -1)]
    assert counts[0] == 19
    assert counts[1] < 10


@pytest.mark.thorough
def test_autoattack_compiles_nothing_twice():
    forget_programs()
    call = {"norm": "linf", "batch_size": 8}
    counts = [
        autoattack(MODEL, IMAGES[:8], LABELS[:8], epsilon=epsilon, **call).compilations
        for epsilon in itertools.chain([0.02] * 2, [0.05])
    ]
    assert counts[0] >= 9
    assert counts[1:] == [0, 0]
