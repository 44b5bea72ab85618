import dataclasses
import functools
import itertools
import json

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.attacks.campaign import Campaign
from freeadv_jax.attacks.ensemble import warn_of_few_classes
from freeadv_jax.attacks.named import attack_by_name
from freeadv_jax.attacks.square import Square
from freeadv_jax.certify.named import NamedCertificate, certificate_by_name
from freeadv_jax.data.encoded import EncodedImages
from freeadv_jax.data.split import Split
from freeadv_jax.errors import InputError
from freeadv_jax.recipes import digits
from freeadv_jax.runs.folder import Run
from freeadv_jax.runs.outcomes import ArrayFile
from freeadv_jax.runs.results import (
    ResultsFolder,
    configured_attacks,
    evaluate_and_record,
    evaluate_run,
    logits_functions,
    record_red_flags,
    table,
)


class Brightness(nn.Module):
    """A model with known margins: class 1 for images whose mean pixel is above 0.5."""

    @nn.compact
    def __call__(self, images, *, train):
        steepness = self.param("steepness", nn.initializers.constant(20.0), ())
        excess = steepness * (images.mean((1, 2, 3)) - 0.5)
        return jnp.stack([-excess, excess], axis=-1)


RNG = np.random.default_rng(0)
LEVELS = RNG.integers(20, 236, 77)
# Rounding would decide about an image at a distance of exactly epsilon.
LEVELS[np.isin(LEVELS, [102, 153])] += 1
SPLIT = Split(
    np.tile(LEVELS[:, None, None, None], (1, 4, 4, 1)).astype(np.uint8),
    (LEVELS > 127).astype(np.int32),
)
WRONG = np.where(np.arange(77) < 5, 1 - SPLIT.labels, SPLIT.labels).astype(np.int32)
VARIABLES = {"params": {"steepness": jnp.float32(20.0)}}
LOGITS_FN = logits_functions(Brightness())(VARIABLES)
ROBUST = np.abs(LEVELS / 255 - 0.5) > 0.1


@pytest.fixture(autouse=True)
def fewer_queries(monkeypatch):
    """Give AutoAttack 60 queries of Square instead of 5,000."""
    shorter = functools.partial(Square, steps=60)
    monkeypatch.setattr("freeadv_jax.attacks.ensemble.Square", shorter)


def named(name, *, epsilon=0.1, step_size=0.05):
    return attack_by_name(
        name, norm="linf", epsilon=epsilon, step_size=step_size, num_classes=2
    )


def certificate(name, *, epsilon=0.1):
    return certificate_by_name(name, norm="linf", epsilon=epsilon)


def evaluated(
    folder,
    *names,
    logits_fn=LOGITS_FN,
    images=SPLIT.images,
    labels=SPLIT.labels,
    seed=0,
    **fields,
):
    attacks = [named(name) if isinstance(name, str) else name for name in names]
    into = ResultsFolder(folder, {"training": {"updates": 8}})
    return evaluate_and_record(
        logits_fn,
        images,
        labels,
        attacks,
        into=into,
        seed=seed,
        **{"batch_size": 32} | fields,
    )


def flagged(folder, *, examples=None, **fields):
    few = slice(examples)
    return record_red_flags(
        LOGITS_FN,
        SPLIT.images[few],
        SPLIT.labels[few],
        into=ResultsFolder(folder),
        batch_size=32,
        seed=0,
        **fields,
    )


def outcomes(folder, suffix=""):
    with np.load(folder / f"evaluation{suffix}.npz") as file:
        return dict(file)


@pytest.mark.parametrize("name", ["fgsm", "pgd-20", "cw-20", "pgd-10-x3", "autoattack"])
def test_exactly_the_images_within_epsilon_of_the_boundary_are_broken(name, tmp_path):
    results = evaluated(tmp_path, name)
    np.testing.assert_array_equal(outcomes(tmp_path)[name], ROBUST)
    assert 0 < results["evaluation"][name]["correct"] == ROBUST.sum() < 77


def test_natural_is_the_accuracy_without_an_attack(tmp_path):
    results = evaluated(tmp_path, "natural", labels=WRONG)
    np.testing.assert_array_equal(outcomes(tmp_path)["natural"], np.arange(77) >= 5)
    assert results["evaluation"]["natural"]["accuracy"] == 72 / 77


def test_misclassified_image_never_counts_as_robust(tmp_path):
    evaluated(tmp_path, "pgd-20", labels=WRONG)
    assert not outcomes(tmp_path)["pgd-20"][:5].any()


def test_rows_have_the_wilson_interval_the_images_and_the_attack(tmp_path):
    results = evaluated(tmp_path, "cw-100-x7", seed=3)
    row = results["evaluation"]["cw-100-x7"]
    correct = int(ROBUST.sum())
    assert (row["correct"], row["examples"]) == (correct, 77)
    low, high = row["interval"]
    # The interval's ends solve |p - p0| = z sqrt(p0 (1 - p0) / n).
    for end in (low, high):
        distance = 1.959964 * np.sqrt(end * (1 - end) / 77)
        np.testing.assert_allclose(abs(correct / 77 - end), distance, rtol=1e-5)
    assert low < correct / 77 < high
    asked = {
        "norm": "linf",
        "epsilon": 0.1,
        "steps": 100,
        "step_size": 0.05,
        "restarts": 7,
        "loss": "margin",
        "seed": 3,
    }
    assert asked.items() <= row["attack"].items()
    assert f"{correct / 77:.2%}" in table(results)
    assert f"{low:.2%} - {high:.2%}" in table(results)
    assert json.loads((tmp_path / "results.json").read_text()) == results


def test_worst_case_counts_images_robust_to_every_attack_of_one_epsilon(tmp_path):
    weak, strong = named("pgd-1"), named("pgd-20")
    results = evaluated(tmp_path, "natural", weak, strong)
    arrays = outcomes(tmp_path)
    both = arrays["pgd-1"] & arrays["pgd-20"]
    row = results["evaluation"]["worst-case"]
    assert row["correct"] == both.sum() == ROBUST.sum() < arrays["pgd-1"].sum()
    assert row["attack"]["attacks"] == ["pgd-1", "pgd-20"]
    (tmp_path / "one").mkdir()
    assert "worst-case" not in evaluated(tmp_path / "one", "pgd-1")["evaluation"]


def test_cascade_counts_the_robust_images_after_each_of_its_attacks(tmp_path, caplog):
    """Two classes have no DLR loss, and a warning says so."""
    stages = evaluated(tmp_path, "autoattack")["evaluation"]["autoattack"]["stages"]
    assert list(stages) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert set(stages.values()) == {int(ROBUST.sum())}
    assert "on 2 classes the DLR loss" in caplog.text


@pytest.mark.parametrize("name", ["apgd-dlr", "apgd-t"])
def test_single_attack_warns_that_its_loss_was_replaced(name, tmp_path, caplog):
    evaluated(tmp_path, name, "pgd-5")
    assert caplog.text.count("the margin is attacked instead") == 1


def test_three_classes_replace_only_the_targeted_loss(caplog):
    warn_of_few_classes(3, ["natural", "apgd-ce", "apgd-dlr"])
    assert not caplog.records
    warn_of_few_classes(3, ["apgd-dlr", "apgd-t"])
    assert "on 3 classes the targeted DLR loss" in caplog.text


def test_finished_attacks_are_kept_unless_settings_or_model_change(
    tmp_path, monkeypatch
):
    made = []
    attack = Campaign.attack

    def recorded(self, stage, *rest, **fields):
        made.append((type(stage).__name__, stage.steps))
        return attack(self, stage, *rest, **fields)

    monkeypatch.setattr(Campaign, "attack", recorded)
    evaluated(tmp_path, "pgd-20", "pgd-30")
    assert made == [("PGD", 20), ("PGD", 30)]
    made.clear()
    evaluated(tmp_path, "pgd-20", "pgd-30")
    assert made == []
    evaluated(tmp_path, named("pgd-20", step_size=0.01), "pgd-30")
    assert made == [("PGD", 20)]
    other = {"params": {"steepness": jnp.float32(19.0)}}
    monkeypatch.setitem(VARIABLES, "params", other["params"])
    logits_fn = logits_functions(Brightness())(other)
    rows = evaluated(tmp_path, "pgd-30", logits_fn=logits_fn, labels=WRONG)[
        "evaluation"
    ]
    assert list(rows) == ["pgd-30"]
    assert made == [("PGD", 20), ("PGD", 30)]


def test_processes_that_read_other_results_evaluate_nothing(tmp_path, monkeypatch):
    evaluated(tmp_path, "natural")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shared = []
    monkeypatch.setattr(
        "freeadv_jax.devices.processes._from_all",
        lambda text: shared.append(text) or [text],
    )
    evaluated(tmp_path, "fgsm")
    evaluated(elsewhere, "fgsm")
    # The second process has the folder without the first row.
    monkeypatch.setattr("freeadv_jax.devices.processes._from_all", lambda text: shared)
    before = (tmp_path / "results.json").read_bytes()
    assert len(set(shared)) == 2
    message = (
        f"^the processes differ in what they read in {tmp_path}, which must be one"
    )
    with pytest.raises(InputError, match=message):
        evaluated(tmp_path, "pgd-20")
    assert (tmp_path / "results.json").read_bytes() == before


def test_rows_of_this_model_are_not_replaced_by_rows_on_other_images(tmp_path):
    evaluated(tmp_path, "pgd-20")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(
        InputError, match="evaluation.npz and the results beside it are of other"
    ):
        evaluated(tmp_path, "pgd-20", labels=WRONG)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.fixture
def encoded(monkeypatch):
    """Return the images of SPLIT in colour, one byte each, and the list of decoded
    bytes.
    """
    decoded = []

    def decoder(size):
        def decode(data):
            decoded.append(data[0])
            return np.full((size, size, 3), data[0], np.uint8)

        return decode

    monkeypatch.setattr("freeadv_jax.data.jpeg.center_decoder", decoder)
    return EncodedImages.of([bytes([level]) for level in LEVELS], size=4), decoded


@pytest.mark.thorough
def test_images_decoded_on_demand_give_the_results_of_their_pixels(tmp_path, encoded):
    images, decoded = encoded
    threat = {"norm": "linf", "epsilon": 0.1, "step_size": 0.05}
    found = []
    for name, of in (("encoded", images), ("pixels", np.asarray(images))):
        (tmp_path / name).mkdir()
        decoded.clear()
        evaluated(
            tmp_path / name,
            "natural",
            "pgd-10-x3",
            "cw-20",
            images=of,
            examples=50,
            keep_images=True,
        )
        results = record_red_flags(
            LOGITS_FN,
            of[:50],
            SPLIT.labels[:50],
            into=ResultsFolder(tmp_path / name),
            threat=threat,
            batch_size=32,
            seed=0,
        )
        assert bool(decoded) == (name == "encoded")
        assert set(decoded) <= set(LEVELS[:50].tolist())
        found.append((results, outcomes(tmp_path / name)))
    (one, its_arrays), (other, arrays) = found
    assert one["evaluation"] == other["evaluation"]
    assert one["red_flags"] == other["red_flags"]
    assert its_arrays.keys() == arrays.keys()
    for name in arrays.keys() - {"about"}:
        np.testing.assert_array_equal(its_arrays[name], arrays[name])


def test_at_most_one_batch_of_images_is_decoded_at_a_time(
    tmp_path, encoded, monkeypatch
):
    images, _ = encoded
    together = []
    array = EncodedImages.__array__

    def counted(self, *arguments, **fields):
        together.append(len(self))
        return array(self, *arguments, **fields)

    monkeypatch.setattr(EncodedImages, "__array__", counted)
    evaluated(tmp_path, "pgd-10-x3", images=images, batch_size=16)
    assert max(together) == 16
    together.clear()
    evaluated(tmp_path, "pgd-10-x3", images=images, batch_size=16)
    assert (
        sum(together) == 77
    )  # These are for the logits only, because the outcomes of the attack are known.
    other = EncodedImages.of([b"@", *images.items[1:]], size=4)
    with pytest.raises(InputError, match="are of other images"):
        evaluated(tmp_path, "pgd-10-x3", images=other, batch_size=16)
    assert sum(together) == 77  # The bytes distinguish the images without decoding.


def test_attacks_of_a_later_evaluation_are_added(tmp_path):
    evaluated(tmp_path, "natural")
    assert list(evaluated(tmp_path, "fgsm")["evaluation"]) == ["natural", "fgsm"]


def test_kept_images_are_those_that_break_the_model(tmp_path):
    evaluated(tmp_path, "pgd-1", "autoattack", keep_images=True)
    arrays = outcomes(tmp_path)
    for name in ("pgd-1", "autoattack"):
        images = arrays[f"{name}/images"]
        wrong = (images.mean((1, 2, 3)) > 0.5) != SPLIT.labels
        np.testing.assert_array_equal(wrong, ~arrays[name])
        assert np.abs(images - SPLIT.images / 255).max() <= 0.1 + 1e-6
        assert images.min() >= 0
        assert images.max() <= 1


def test_first_images_of_a_known_attack_are_known(tmp_path):
    more = evaluated(tmp_path, "pgd-20", "pgd-1")["evaluation"]
    less = evaluated(tmp_path, "pgd-20", "fgsm", examples=30)["evaluation"]
    assert less["pgd-20"] == more["pgd-20"]
    assert less["fgsm"]["examples"] == less["worst-case"]["examples"] == 30
    assert less["worst-case"]["correct"] == ROBUST[:30].sum()


def test_worst_case_is_about_the_images_that_all_attacks_have(tmp_path):
    """The number of images of the last evaluation does not matter."""
    evaluated(tmp_path, "pgd-20", "pgd-1")
    rows = evaluated(tmp_path, "natural", examples=30)["evaluation"]
    assert rows["worst-case"]["examples"] == 77
    evaluated(tmp_path, "fgsm", examples=30)
    rows = evaluated(tmp_path, "pgd-20", "pgd-1")["evaluation"]
    assert rows["worst-case"]["examples"] == 30
    assert rows["worst-case"]["attack"]["attacks"] == ["pgd-20", "pgd-1", "fgsm"]
    assert list(rows)[-1] == "worst-case"


def test_rows_of_different_images_are_compared_on_those_that_all_have(tmp_path):
    evaluated(tmp_path, "natural", "pgd-20", labels=WRONG)
    results = evaluated(tmp_path, "pgd-1", labels=WRONG, examples=30)
    common = results["evaluation_on_common_images"]
    assert list(common) == ["natural", "pgd-20", "pgd-1", "worst-case"]
    arrays = outcomes(tmp_path)
    for name in ("natural", "pgd-20", "pgd-1"):
        assert (common[name]["examples"], common[name]["correct"]) == (
            30,
            arrays[name][:30].sum(),
        )
        assert common[name]["attack"] == results["evaluation"][name]["attack"]
    assert results["evaluation"]["pgd-20"]["examples"] == 77
    lines = table(results).splitlines()
    below = lines[lines.index("on the first 30 images, which all attacks have:") + 2 :]
    assert [line.split()[0] for line in below] == list(common)
    assert {line.split()[-1] for line in below} == {"30"}
    same = evaluated(tmp_path, "pgd-1", labels=WRONG)
    assert "evaluation_on_common_images" not in same
    assert "on the first" not in table(same)


def test_predicted_classes_of_more_images_are_kept(tmp_path):
    evaluated(tmp_path, "natural")
    evaluated(tmp_path, "natural", examples=30)
    assert len(outcomes(tmp_path)["prediction"]) == 77


class Cut(Exception):
    pass


def stop_when_used_up(looks, monkeypatch):
    """Save at each look at the batch, and stop when the list `looks` is empty."""
    attack = Campaign.attack

    def attack_and_cut(self, *arguments, watch, **fields):
        def watch_and_cut(*progress):
            watch(*progress)
            if not looks:
                raise Cut
            looks.pop()

        return attack(self, *arguments, watch=watch_and_cut, **fields)

    monkeypatch.setattr(Campaign, "attack", attack_and_cut)
    monkeypatch.setattr(
        "freeadv_jax.runs.outcomes.ArrayFile.save_sometimes", lambda self: self.save()
    )


@pytest.mark.parametrize("name", ["natural", "pgd-1-x3", "autoattack"])
def test_known_attack_on_more_images_attacks_only_the_new_ones(
    name, tmp_path, monkeypatch
):
    """An interruption changes nothing, and the attacked images are the same."""
    for folder in ("whole", "grown"):
        (tmp_path / folder).mkdir()
    whole = evaluated(tmp_path / "whole", name, keep_images=True)["evaluation"]
    evaluated(tmp_path / "grown", name, keep_images=True, examples=30)
    attack = Campaign.attack

    def attack_on_the_added(self, *arguments, **fields):
        *_, standing = arguments
        assert not standing[:30].any()
        assert standing[30:].any()
        return attack(self, *arguments, **fields)

    monkeypatch.setattr(Campaign, "attack", attack_on_the_added)
    looks = [None] * 2
    stop_when_used_up(looks, monkeypatch)
    if name != "natural":
        with pytest.raises(Cut):
            evaluated(tmp_path / "grown", name, keep_images=True)
        looks += [None] * 1000
    grown = evaluated(tmp_path / "grown", name, keep_images=True)["evaluation"]
    assert grown == whole
    found, expected = outcomes(tmp_path / "grown"), outcomes(tmp_path / "whole")
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array)


def test_progress_ends_at_100_percent_with_the_accuracy_so_far(tmp_path, capsys):
    evaluated(tmp_path, "pgd-10-x3", examples=30)
    capsys.readouterr()
    evaluated(tmp_path, "pgd-10-x3")
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("pgd-10")]
    assert lines[-1].startswith(f"pgd-10-x3 {3 * 47}/{3 * 47} attempts (100%)")
    assert f"accuracy {ROBUST.mean():.2%}" in lines[-1]
    (tmp_path / "at once").mkdir()
    evaluated(tmp_path / "at once", "pgd-10-x3")
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("pgd-10")]
    assert lines[-1].startswith(f"pgd-10-x3 {3 * 77}/{3 * 77} attempts (100%)")
    assert f"accuracy {ROBUST.mean():.2%}" in lines[-1]


@pytest.mark.slow
def test_interrupted_evaluation_ends_with_the_same_results(tmp_path, monkeypatch):
    """Interrupt each attack again and again, after more and more looks at the batch."""
    names = ("natural", "pgd-1-x5", "autoattack")
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = evaluated(tmp_path / "whole", *names)
    expected = outcomes(tmp_path / "whole")
    looks = []
    stop_when_used_up(looks, monkeypatch)
    for cuts in itertools.count():
        looks[:] = [None] * 3 * 2**cuts
        try:
            results = evaluated(tmp_path / "cut", *names)
            break
        except Cut:
            assert cuts < 20
    assert cuts > 5
    assert results["evaluation"] == whole["evaluation"]
    found = outcomes(tmp_path / "cut")
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.fixture
def run(tmp_path, monkeypatch):
    config = digits()
    config.attack.epsilon = 0.1
    config.evaluation.attacks = ("natural", "pgd-20")
    config.evaluation.examples = 50
    monkeypatch.setattr("freeadv_jax.runs.results.model_of", lambda run: Brightness())
    return Run(tmp_path, config, num_classes=2, image_shape=(4, 4, 1))


def test_run_is_evaluated_with_its_configured_attacks_and_images(run):
    results = evaluate_run(run, VARIABLES, SPLIT, training={"updates": 8})
    assert results["training"] == {"updates": 8}
    assert results["config"]["method"] == "free"
    row = results["evaluation"]["pgd-20"]
    assert (row["correct"], row["examples"]) == (int(ROBUST[:50].sum()), 50)


def test_configured_attacks_take_threat_and_step_from_the_configuration():
    config = digits()
    config.attack.norm = "l2"
    (attack,) = configured_attacks(config, ("pgd-20",), num_classes=10)
    (stage,) = attack.stages.values()
    assert (stage.norm, stage.epsilon, stage.step_size) == ("l2", 0.2, 0.05)


OTHER_FN = logits_functions(Brightness())({"params": {"steepness": jnp.float32(9.0)}})


def test_rows_of_another_model_are_removed_before_this_one_is_saved(
    tmp_path, monkeypatch
):
    evaluated(tmp_path, "natural", "pgd-20")
    stop_when_used_up([None], monkeypatch)
    with pytest.raises(Cut):
        evaluated(tmp_path, "pgd-10-x3", logits_fn=OTHER_FN)
    assert json.loads((tmp_path / "results.json").read_text())["evaluation"] == {}


def test_red_flags_are_kept_by_epsilon_and_not_replaced_by_fewer_images(
    tmp_path, monkeypatch
):
    asked = []

    def red_flags(logits_fn, images, labels, **threat):
        asked.append((threat["epsilon"], len(images)))
        return []

    monkeypatch.setattr("freeadv_jax.runs.results.red_flags", red_flags)
    ball = {"norm": "linf", "epsilon": 0.1, "step_size": 0.05}
    evaluated(tmp_path, "natural")
    flagged(tmp_path, threat=ball)
    other = ball | {"epsilon": 0.2}
    flagged(tmp_path, threat=other, name="red_flags@linf-0.2")
    results = flagged(tmp_path, threat=ball, examples=30)
    assert asked == [(0.1, 77), (0.2, 77)]
    assert results["red_flags"]["epsilon"] == 0.1
    assert results["red_flags"]["examples"] == 77
    assert results["red_flags@linf-0.2"]["epsilon"] == 0.2
    assert "red flags@linf-0.2:" in table(results)


def test_kept_images_are_never_those_of_other_settings(tmp_path):
    evaluated(tmp_path, "pgd-20", keep_images=True)
    evaluated(tmp_path, named("pgd-20", step_size=0.01))
    assert "pgd-20/images" not in outcomes(tmp_path)
    evaluated(tmp_path, "pgd-20", keep_images=True)
    assert len(outcomes(tmp_path)["pgd-20/images"]) == 77


def test_row_of_more_images_is_not_replaced_to_keep_attacked_images(tmp_path):
    evaluated(tmp_path, "pgd-20")
    before = (tmp_path / "results.json").read_bytes()
    with pytest.raises(InputError, match="pgd-20 was made on 77 images, with"):
        evaluated(tmp_path, "pgd-20", keep_images=True, examples=30)
    assert (tmp_path / "results.json").read_bytes() == before


def test_row_of_more_images_is_not_replaced_by_other_settings(tmp_path):
    evaluated(tmp_path, "natural", "pgd-20")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match="pgd-20 was made on 77 images, with other"):
        evaluated(tmp_path, "natural", named("pgd-20", step_size=0.01), examples=30)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_rows_of_later_attacks_survive_an_interruption(tmp_path, monkeypatch):
    evaluated(tmp_path, "pgd-20", "pgd-30")
    looks = [None]
    stop_when_used_up(looks, monkeypatch)
    with pytest.raises(Cut):
        evaluated(
            tmp_path,
            named("pgd-20", step_size=0.01),
            named("pgd-30", step_size=0.01),
        )
    rows = json.loads((tmp_path / "results.json").read_text())["evaluation"]
    assert "pgd-20" not in rows
    assert rows["pgd-30"]["attack"]["step_size"] == 0.05


def test_kill_between_the_two_files_leaves_no_row_of_old_settings(
    tmp_path, monkeypatch
):
    evaluated(tmp_path, "natural", "pgd-20")
    other = named("pgd-20", step_size=0.01)

    def save_and_die(self):
        save(self)
        raise Cut

    save = ArrayFile.save
    monkeypatch.setattr(ArrayFile, "save", save_and_die)
    with pytest.raises(Cut):
        evaluated(tmp_path, other)
    monkeypatch.undo()
    rows = json.loads((tmp_path / "results.json").read_text())["evaluation"]
    assert "pgd-20" not in rows
    row = evaluated(tmp_path, "pgd-20")["evaluation"]["pgd-20"]
    assert row["attack"]["step_size"] == 0.05


def test_attack_interrupted_without_keeping_images_restarts_to_keep_them(
    tmp_path, monkeypatch
):
    looks = [None] * 2
    stop_when_used_up(looks, monkeypatch)
    with pytest.raises(Cut):
        evaluated(tmp_path, "pgd-10-x3")
    looks += [None] * 1000
    evaluated(tmp_path, "pgd-10-x3", keep_images=True)
    assert len(outcomes(tmp_path)["pgd-10-x3/images"]) == 77


def test_certificates_add_rows_outcomes_and_the_sandwich(tmp_path):
    results = evaluated(tmp_path, "natural", "pgd-20", certificate("crown"))
    assert list(results["evaluation"]) == ["natural", "pgd-20"]
    row = results["certified"]["crown"]
    assert (row["correct"], row["examples"]) == (ROBUST.sum(), 77)
    assert row["certificate"]["bound"] == "crown"
    np.testing.assert_array_equal(outcomes(tmp_path)["certified/crown"], ROBUST)
    both = results["sandwich"]
    assert (both["certified"], both["open"]) == (ROBUST.sum(), 0)
    assert (both["attacks"], both["violations"]) == (["pgd-20"], [])
    assert json.loads((tmp_path / "results.json").read_text()) == results
    shown = table(results)
    assert "certified by crown" in shown
    assert f"of 77 images {ROBUST.sum()} certified" in shown


def test_certified_images_are_kept_and_more_are_added(tmp_path, monkeypatch):
    bounded = []
    made = NamedCertificate.certified

    def recorded(self, logits_fn, images, labels, chosen):
        bounded.append(chosen.tolist())
        return made(self, logits_fn, images, labels, chosen)

    monkeypatch.setattr(NamedCertificate, "certified", recorded)
    evaluated(tmp_path, certificate("ibp"), examples=30, labels=WRONG)
    whole = evaluated(tmp_path, certificate("ibp"), labels=WRONG)
    evaluated(tmp_path, certificate("ibp"), examples=20, labels=WRONG)
    # The first five images are misclassified.
    assert bounded == [list(range(5, 30)), list(range(30, 77))]
    assert whole["certified"]["ibp"]["correct"] == ROBUST[5:].sum()
    with pytest.raises(InputError, match="ibp was made on 77 images"):
        other = certificate("ibp", epsilon=0.2)
        evaluated(tmp_path, other, examples=20, labels=WRONG)
    other = evaluated(tmp_path, certificate("ibp", epsilon=0.2), labels=WRONG)
    assert other["certified"]["ibp"]["correct"] < whole["certified"]["ibp"]["correct"]
    assert other["sandwich"]["epsilon"] == 0.2


def test_an_interrupted_certificate_goes_on_with_the_next_chunk(tmp_path, monkeypatch):
    few = dataclasses.replace(certificate("crown"), batch_size=8)
    bounded, made = [], NamedCertificate.certified

    def cut(self, *arguments):
        for chunk, certain in made(self, *arguments):
            if len(bounded) == 3:
                bounded.append("cut")
                raise Cut
            bounded.append(chunk.tolist())
            yield chunk, certain

    monkeypatch.setattr(NamedCertificate, "certified", cut)
    monkeypatch.setattr(ArrayFile, "save_sometimes", lambda self: self.save())
    with pytest.raises(Cut):
        evaluated(tmp_path, few)
    assert "certified" not in json.loads((tmp_path / "results.json").read_text())
    results = evaluated(tmp_path, few)
    images = [image for chunk in bounded if chunk != "cut" for image in chunk]
    assert images == list(range(77))
    assert bounded.index("cut") == 3
    assert results["certified"]["crown"]["correct"] == ROBUST.sum()
    np.testing.assert_array_equal(outcomes(tmp_path)["certified/crown"], ROBUST)


def test_a_model_without_certificates_is_refused_before_anything_is_written(tmp_path):
    def model(images):
        return jnp.sin(LOGITS_FN(images))

    with pytest.raises(InputError, match="no rule for sin"):
        evaluated(tmp_path, "pgd-20", certificate("crown"), logits_fn=model)
    assert not list(tmp_path.iterdir())
