"""`robust_accuracy` takes any model and any arrays, and answers bad input in one line."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import freeadv_jax
from freeadv_jax.attacks.named import attack_by_name
from freeadv_jax.attacks.programs import forget_programs
from freeadv_jax.attacks.red_flags import Flag
from freeadv_jax.attacks.robustness import (
    AttackState,
    evaluate,
    is_worst_case,
    robust_accuracy,
    table_text,
)
from freeadv_jax.certify.named import NamedCertificate
from freeadv_jax.errors import InputError
from freeadv_jax.intervals import wilson
from freeadv_jax.models.user_model import arrays_as_leaves, check_model
from freeadv_jax.weights.classifier import as_classifier

# The models below choose class 1 if the mean pixel is above 0.5. All pixels of an image
# are equal, so epsilon 0.1 breaks exactly the images within 0.1 of 0.5.
LEVELS = np.random.default_rng(0).integers(20, 236, 40)
IMAGES = np.tile(LEVELS[:, None, None, None], (1, 4, 4, 1)).astype(np.uint8)
LABELS = (LEVELS > 127).astype(np.int32)
ROBUST = np.abs(LEVELS / 255 - 0.5) > 0.1
STEEPNESS = jnp.float32(20)


def brightness(images, steepness=STEEPNESS):
    excess = steepness * (images.mean((1, 2, 3)) - 0.5)
    return jnp.stack([-excess, excess], axis=-1)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, images, *, train):
        steepness = self.param("steepness", nn.initializers.constant(20.0), ())
        return brightness(nn.BatchNorm(not train, epsilon=0.0)(images), steepness)


class NNX(nnx.Module):
    def __init__(self):
        self.norm = nnx.BatchNorm(1, epsilon=0.0, rngs=nnx.Rngs(0))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(1))
        self.steepness = nnx.Param(STEEPNESS)

    def __call__(self, images):
        return brightness(self.dropout(self.norm(images)), self.steepness[...])


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Pytree:
    """A callable pytree with a function and a flag among its leaves, as in Equinox."""

    steepness: jax.Array
    activation: object = jax.nn.relu
    inference: bool = True
    name: str = dataclasses.field(default="", metadata={"static": True})

    def __call__(self, images):
        assert self.inference
        return brightness(images, self.activation(self.steepness))


def linen():
    model = Linen()
    return model, model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)), train=False)


def linen_partial():
    model, variables = linen()
    return functools.partial(model.apply, variables, train=False)


def linen_bound():
    model, variables = linen()
    return functools.partial(model.bind(variables), train=False)


def nnx_module():
    model = NNX()
    model.eval()
    return model


def haiku_like():
    """Return `apply(params, key, images)` with bound parameters, as Haiku's transform
    gives it.
    """
    params = {"linear": {"steepness": STEEPNESS}}

    def apply(params, key, images):
        return brightness(images, **params["linear"])

    return functools.partial(apply, params, None)


def classifier():
    model, variables = linen()
    return as_classifier(model, variables, num_classes=2, image_shape=(4, 4, 1))


def equinox_module():
    equinox = pytest.importorskip("equinox")

    class Module(equinox.Module):
        steepness: jax.Array
        function: object = brightness

        def __call__(self, images):
            return self.function(images, self.steepness)

    return Module(STEEPNESS)


def evaluated(model=brightness, *, images=IMAGES, labels=LABELS, **options):
    options = {
        "epsilon": 0.1,
        "attacks": ("natural", "pgd-10"),
        "step_size": 0.05,
        "batch_size": 16,
        "red_flags": False,
    } | options
    return robust_accuracy(model, images, labels, **options)


MODELS = {
    "plain function": lambda: brightness,
    "jitted function": lambda: jax.jit(brightness),
    "Linen, by partial": linen_partial,
    "Linen, bound": linen_bound,
    "NNX": nnx_module,
    "callable pytree": lambda: Pytree(STEEPNESS),
    "Haiku": haiku_like,
    "Classifier": classifier,
    "Equinox, without its layers": equinox_module,
}


@pytest.mark.parametrize("kind", MODELS)
def test_model_of_any_library_is_broken_exactly_within_epsilon_of_its_boundary(kind):
    result = evaluated(MODELS[kind]())
    np.testing.assert_array_equal(result.robust["pgd-10"], ROBUST)
    assert result.rows["natural"]["accuracy"] == 1


@pytest.mark.parametrize(
    "convert",
    [
        lambda images: images / np.float32(255),
        lambda images: images / np.float64(255),
        lambda images: jnp.asarray(images),
        lambda images: jnp.asarray(images / np.float32(255)),
        lambda images: (images / 255).tolist(),
    ],
    ids=["f32", "f64", "jax uint8", "jax f32", "list"],
)
def test_images_may_be_bytes_or_floats_of_numpy_or_jax(convert):
    found = evaluated(images=convert(IMAGES))
    np.testing.assert_array_equal(found.robust["pgd-10"], ROBUST)


@pytest.mark.parametrize("convert", [np.int64, np.uint8, jnp.asarray, list])
def test_labels_may_be_of_any_integer_type(convert):
    assert evaluated(labels=convert(LABELS)).rows["natural"]["correct"] == 40


def test_rows_have_the_figures_the_interval_and_the_settings():
    result = evaluated(attacks=("natural", "pgd-10-x2"), seed=3)
    assert list(result.rows) == ["natural", "pgd-10-x2"]
    row, correct = result.rows["pgd-10-x2"], int(ROBUST.sum())
    assert row.keys() == {"accuracy", "correct", "examples", "interval", "attack"}
    assert (row["correct"], row["examples"]) == (correct, 40)
    assert row["accuracy"] == correct / 40
    assert row["interval"] == list(wilson(correct, 40))
    settings = {"norm": "linf", "epsilon": 0.1, "step_size": 0.05, "seed": 3}
    assert settings.items() <= row["attack"].items()
    assert row["attack"]["restarts"] == 2


def test_step_size_is_a_quarter_of_epsilon_by_default():
    assert evaluated(step_size=None).rows["pgd-10"]["attack"]["step_size"] == 0.025


def test_worst_case_joins_the_attacks_and_comes_last():
    result = evaluated(attacks=["pgd-1", "natural", "pgd-10"])
    assert list(result.rows) == ["pgd-1", "natural", "pgd-10", "worst-case"]
    both = result.robust["pgd-1"] & result.robust["pgd-10"]
    np.testing.assert_array_equal(result.robust["worst-case"], both)
    assert result.rows["worst-case"]["correct"] == both.sum()
    assert result.rows["worst-case"]["attack"]["attacks"] == ["pgd-1", "pgd-10"]


def test_attacked_images_are_returned_when_asked_for():
    assert evaluated().images == {}
    images = evaluated(keep_images=True).images["pgd-10"]
    assert images.dtype == np.float32
    assert np.abs(images - IMAGES / np.float32(255)).max() <= 0.1 + 1e-6
    predicted = np.asarray(brightness(images)).argmax(axis=-1)
    np.testing.assert_array_equal(predicted == LABELS, ROBUST)


def test_names_may_be_one_string_with_commas():
    assert list(evaluated(attacks="natural, fgsm").rows) == ["natural", "fgsm"]


def test_image_that_is_misclassified_is_never_robust():
    result = evaluated(labels=1 - LABELS)
    assert not result.robust["natural"].any()
    assert not result.robust["pgd-10"].any()


def test_table_shows_norm_epsilon_percent_and_the_worst_case_last():
    lines = str(evaluated(epsilon=8 / 255, attacks=("pgd-1", "pgd-10"))).splitlines()
    assert lines[0].startswith("linf epsilon 8/255")
    assert lines[1].split() == ["attack", "accuracy", "95", "%", *lines[1].split()[4:]]
    assert [line.split()[0] for line in lines[2:]] == ["pgd-1", "pgd-10", "worst-case"]
    assert all(line.split()[1].endswith("%") for line in lines[2:])


def test_red_flags_of_the_first_images_are_below_the_table(monkeypatch):
    asked = []

    def red_flags(logits_fn, images, labels, **options):
        asked.append((len(images), options))
        return [Flag("random noise", True, "it broke 9", {"missed": 9}, "BPDA")]

    monkeypatch.setattr("freeadv_jax.attacks.robustness.find_red_flags", red_flags)
    images, labels = np.tile(IMAGES, (6, 1, 1, 1)), np.tile(LABELS, 6)
    result = evaluated(
        images=images, labels=labels, attacks=["natural"], red_flags=True
    )
    threat = {"norm": "linf", "epsilon": 0.1, "step_size": 0.05, "samples": None}
    how = {"batch_size": 16, "seed": 0, "convolutions": "auto"}
    assert asked == [(200, threat | how)]
    assert [flag.name for flag in result.red_flags] == ["random noise"]
    assert str(result).endswith(
        "red flags:\nsuspicious  random noise: it broke 9\ntry next    BPDA\n"
        "verdict     1 of 1 red flags are raised: the robust accuracy may be lower than "
        "measured"
    )


def test_worst_case_rows_are_last_in_every_table():
    row = evaluated(attacks=["pgd-1"]).rows["pgd-1"]
    rows = {"worst-case": row, "worst-case@l2-1": row, "pgd-1": row}
    names = [line.split()[0] for line in table_text(rows, {}).splitlines()[2:]]
    assert names == ["pgd-1", "worst-case", "worst-case@l2-1"]
    assert [is_worst_case(name) for name in names] == [False, True, True]


def test_nothing_is_written_unless_progress_is_asked_for(capfd):
    evaluated()
    assert capfd.readouterr() == ("", "")
    lines = []
    evaluated(progress=lines.append)
    assert lines[-1].startswith("pgd-10 40/40 attempts (100%)")
    assert capfd.readouterr() == ("", "")
    evaluated(progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "pgd-10 40/40 attempts (100%)" in err


@pytest.mark.parametrize("kind", ["Linen, by partial", "NNX"])
def test_programs_are_kept_for_other_weights_and_another_epsilon(kind, caplog):
    def compiled(model, **options):
        caplog.clear()
        with jax.log_compiles(True), caplog.at_level("WARNING", logger="jax"):
            evaluated(model, **options)
        return caplog.text.count("Finished XLA compilation of jit(whole)")

    forget_programs()
    assert compiled(MODELS[kind]()) > 0
    if kind == "NNX":
        other = nnx_module()
        other.norm.scale[...] = other.norm.scale[...] / 2
    else:
        model, variables = linen()
        halved = jax.tree.map(lambda array: array / 2, variables)
        other = functools.partial(model.apply, halved, train=False)
    assert compiled(other, epsilon=0.05) == 0


def test_outcomes_do_not_depend_on_the_batch_size():
    attacks = ("pgd-1-x3", "fgsm")
    small, large = (
        evaluated(attacks=attacks, batch_size=size).robust for size in (8, 64)
    )
    for name in attacks:
        np.testing.assert_array_equal(small[name], large[name])


class Cut(Exception):
    pass


def test_evaluation_continues_from_the_states_of_one_that_was_cut_off():
    threat = {"norm": "linf", "epsilon": 0.1, "step_size": 0.02}
    attacks = [
        attack_by_name(name, **threat, num_classes=2) for name in ("fgsm", "pgd-5-x4")
    ]
    calls = []

    def run(states, *, most):
        def watch(title, done, total, accuracy, work):
            calls.append(title)
            if len(calls) == most:
                raise Cut

        return evaluate(
            brightness,
            IMAGES,
            LABELS,
            attacks,
            batch_size=8,
            seed=0,
            keep_images=True,
            states=states,
            watch=watch,
        )

    whole = run({}, most=None)
    steps = calls.count("pgd-5-x4")
    calls.clear()
    states: dict[str, AttackState] = {}
    with pytest.raises(Cut):
        run(states, most=steps // 2)
    assert 0 < states["pgd-5-x4"].finished.mean() < 1
    calls.clear()
    resumed = run(states, most=None)
    assert set(calls) == {"pgd-5-x4"}
    assert len(calls) < 0.8 * steps
    for name, outcome in whole.items():
        np.testing.assert_array_equal(resumed[name].robust, outcome.robust)
        np.testing.assert_array_equal(resumed[name].images, outcome.images)
        assert resumed[name].stages == outcome.stages


def in_training_mode():
    model = nnx_module()
    model.norm.use_running_average = False
    return model


def with_random_dropout():
    model = nnx_module()
    model.dropout.deterministic = False
    return model


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": LABELS * 2}, "the model has 2 classes, 0 to 1"),
        ({"labels": LABELS - 1}, "labels range from -1"),
        ({"labels": LABELS.astype(np.float32)}, "float32: must be whole numbers"),
        ({"labels": LABELS[:5]}, "one label an image"),
        ({"images": IMAGES.astype(np.float32)}, "must be in [0, 1]"),
        ({"images": IMAGES / 255 - 0.5}, "must be in [0, 1]"),
        ({"images": IMAGES.astype(np.int32)}, "images of type int32"),
        ({"images": IMAGES[0]}, "[n, height, width, channels]"),
        (
            {"images": np.zeros((len(LABELS), 3, 8, 8), np.uint8)},
            "have the channels first: must be [n, height, width, channels]; np.moveaxis(",
        ),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "give at least one"),
        ({"attacks": ["pdg-20"]}, "did you mean 'pgd-20'"),
        ({"attacks": []}, "attacks is empty"),
        ({"norm": "l1.5"}, "norm 'l1.5' is unknown"),
        ({"epsilon": 8}, "8 / 255"),
        ({"step_size": -0.1}, "step size -0.1"),
        ({"audit": 0.1}, "audit is for autoattack-quick: it must be among the attacks"),
        ({"model": lambda images, key: None}, "the model needs key beside the images"),
        ({"model": lambda images, *, train: None}, "the model needs train beside"),
        ({"model": lambda images: (brightness(images), 0)}, "must be the logits alone"),
        (
            {"model": lambda images: images.mean((1, 2, 3))},
            "the model gives one output",
        ),
        (
            {"model": lambda images: jax.nn.softmax(brightness(images))},
            "the model returns probabilities",
        ),
        ({"model": lambda images: brightness(images) * jnp.nan}, "are not finite"),
        (
            {"model": lambda images: np.asarray(images).mean((1, 2))},
            "must be written in jax.numpy",
        ),
        ({"model": in_training_mode()}, "call model.eval() first"),
        ({"model": with_random_dropout()}, "Dropout has deterministic = False"),
    ],
)
def test_bad_input_is_answered_in_one_line(changed, message):
    with pytest.raises(InputError) as refused:
        evaluated(**changed)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_pytrees_of_one_structure_differ_only_in_their_arrays():
    one, other = (arrays_as_leaves(Pytree(jnp.float32(size))) for size in (20, 3))
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert jax.tree.leaves(one) == [20]
    assert jax.tree.leaves(other) == [3]
    images = IMAGES[:4] / np.float32(255)
    np.testing.assert_allclose(other(images), brightness(images, 3.0), rtol=1e-6)
    changed = arrays_as_leaves(Pytree(jnp.float32(20), activation=jnp.abs))
    assert jax.tree.structure(one) != jax.tree.structure(changed)


def test_model_that_is_no_function_is_refused():
    with pytest.raises(
        InputError, match="the model is a dict: must be a function from"
    ):
        check_model({"params": STEEPNESS}, IMAGES[:1])


def test_classifier_refuses_images_of_another_shape():
    with pytest.raises(InputError, match=r"this model takes \[b, 4, 4, 1\]"):
        evaluated(classifier(), images=IMAGES[:, :3])


def test_package_offers_it():
    assert freeadv_jax.robust_accuracy is robust_accuracy
    assert "robust_accuracy" in freeadv_jax.__all__


def test_quick_tells_in_its_row_and_below_the_table_what_it_may_have_missed():
    found = evaluated(attacks="natural,autoattack-quick", audit=0.5)
    row = found.rows["autoattack-quick"]
    np.testing.assert_array_equal(found.robust["autoattack-quick"], ROBUST)
    audit = row["audit"]
    assert 0 < audit["audited"] < ROBUST.sum()
    assert audit["broken"] == 0 < audit["missed_at_most"]
    left = ROBUST.sum() - audit["missed_at_most"]
    assert audit["accuracy_at_least"] == left / len(ROBUST)
    assert row["attack"]["audit"] == 0.5
    assert row["stages"]["audit square"] == row["correct"] == ROBUST.sum()
    said = (
        f"an audit of {audit['audited']} survivors broke 0; the standard version leaves"
    )
    assert f"{said} at least {audit['accuracy_at_least']:.2%} (95 %)" in str(found)


def test_quick_continues_its_audit_where_it_was_cut_off():
    threat = {"norm": "linf", "epsilon": 0.1, "step_size": 0.02}
    attack = attack_by_name("autoattack-quick", **threat, num_classes=2, audit=0.5)
    seen = []

    def run(states, *, until):
        def watch(title, done, total, accuracy, work):
            seen.append(title)
            if title == until:
                raise Cut

        how = {"batch_size": 8, "seed": 0, "states": states, "watch": watch}
        return evaluate(brightness, IMAGES, LABELS, [attack], **how)

    whole = run({}, until=None)
    seen.clear()
    states: dict[str, AttackState] = {}
    with pytest.raises(Cut):
        run(states, until="autoattack-quick: audit square")
    seen.clear()
    resumed = run(states, until=None)
    assert set(seen) == {"autoattack-quick: audit square"}
    name = attack.name
    np.testing.assert_array_equal(resumed[name].robust, whole[name].robust)
    assert resumed[name].stages == whole[name].stages


def test_certificates_stand_beside_attacks_and_both_agree_on_a_linear_model():
    result = evaluated(attacks="natural,pgd-10,ibp,crown")
    assert list(result.rows) == ["natural", "pgd-10"]
    for name in ("ibp", "crown"):
        np.testing.assert_array_equal(result.certified[name], ROBUST)
        row = result.certified_rows[name]
        assert (row["correct"], row["examples"]) == (ROBUST.sum(), 40)
        assert row["certificate"]["epsilon"] == 0.1
    assert result.sandwich["certified"] == ROBUST.sum()
    assert (result.sandwich["open"], result.sandwich["broken"]) == (0, (~ROBUST).sum())
    lines = str(result).splitlines()
    assert lines[4].startswith("certified by ibp") and "%" in lines[4]
    assert lines[-1].startswith(f"within linf epsilon 0.1, of 40 images {ROBUST.sum()}")
    assert result.red_flags == ()


def test_certificates_alone_make_a_table():
    result = evaluated(attacks="crown", labels=1 - LABELS)
    assert result.rows == {} and not result.certified["crown"].any()
    assert str(result).startswith("linf epsilon 0.1")
    assert result.sandwich["broken"] == 40


def test_an_image_that_is_certified_and_broken_is_a_red_flag(monkeypatch):
    def all_of_them(self, logits_fn, images, labels, chosen):
        yield chosen, np.ones(len(chosen), bool)

    monkeypatch.setattr(NamedCertificate, "certified", all_of_them)
    result = evaluated(attacks="pgd-10,crown")
    (flag,) = result.red_flags
    first = int(np.argmin(ROBUST))
    assert f"image {first} is certified by crown and broken by pgd-10" in flag.text
    named = [each["image"] for each in result.sandwich["violations"]]
    np.testing.assert_array_equal(named, np.flatnonzero(~ROBUST))
    assert "RED FLAG within linf epsilon 0.1" in str(result)


def test_progress_of_certificates_counts_images():
    lines = []
    evaluated(attacks="crown", progress=lines.append)
    assert lines[-1].startswith("crown 40/40 images (100%)  certified ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 5}, "crown is for models that draw nothing"),
        ({"model": lambda x: jnp.sin(brightness(x))}, "there is no rule for sin"),
    ],
)
def test_models_without_certificates_are_refused_before_an_attack(
    options, message, monkeypatch
):
    if "samples" in options:
        options |= {"model": lambda images, keys: brightness(images)}
    monkeypatch.setattr(
        "freeadv_jax.attacks.robustness.Evaluation.attack", lambda *a, **k: 1 / 0
    )
    with pytest.raises(InputError, match=message):
        evaluated(attacks="pgd-10,crown", **options)
