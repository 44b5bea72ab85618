"""benchmarks.frontier: every row spends the same, and is chosen on held-out images."""

import pathlib
from types import SimpleNamespace

import pytest
from PIL import Image

from benchmarks import frontier, readme
from benchmarks.frontier import (
    CHOICE_ATTACKS,
    RATE,
    ROWS,
    affordable,
    budgets,
    chosen,
    configured,
    existing,
    folder,
    front,
    main,
    minibatch_flop,
)
from freeadv_jax.config import replays, validate
from freeadv_jax.errors import InputError, TrainingStoppedError
from freeadv_jax.files import read_json, write_json
from freeadv_jax.training.methods import METHODS

EXISTING = [row for row in ROWS if ROWS[row].method in METHODS]
OPTIONS = {
    "set": "cifar10",
    "network": "wrn-10-1",
    "batch_size": 32,
    "data": "data",
    "runs": pathlib.Path("runs"),
    "flop": None,
    "updates": None,
}
# A forward pass of WRN-10-1 through one image, and an update of natural training.
FORWARD = 25_003_264
UPDATE = 3 * 32 * FORWARD


def options(**changed):
    return SimpleNamespace(**OPTIONS | changed)


def configuration(row, fields=None, flop=6000 * UPDATE, seed=0, **changed):
    return configured(row, fields or {}, seed, options(**changed), flop)


def test_the_smallest_budget_comes_first_and_updates_are_those_of_natural_training():
    assert budgets(options()) == [2000 * UPDATE, 6000 * UPDATE]
    assert budgets(options(updates=[7, 5, 7])) == [5 * UPDATE, 7 * UPDATE]
    assert budgets(options(flop=[2e12, 1e12])) == [1e12, 2e12]


@pytest.mark.parametrize(
    ("row", "updates"),
    [
        ("natural", 6000),
        ("free-2", 6000),
        ("free-8", 6000),
        ("modern", 6000),
        # Two gradients of images for each step, three passes for the update.
        ("7-pgd", 6000 * 3 // 17),
        ("2-pgd", 6000 * 3 // 7),
        ("fgsm-rs", 3600),
        ("n-fgsm", 3600),
        ("grad-align", 6000 * 3 // 17),
        ("trades", 6000 * 3 // 27),
    ],
)
def test_a_row_makes_the_updates_that_its_budget_pays_for(row, updates):
    first = ROWS[row].choices[0]
    assert configuration(row, first).updates == updates


def test_a_choice_with_fewer_steps_makes_more_updates():
    assert configuration("trades", ROWS["trades"].choices[1]).updates == 6000 * 3 // 11


def test_free_m_makes_whole_minibatches():
    assert configuration("free-8", flop=2007 * UPDATE).updates == 2000


@pytest.mark.parametrize("row", EXISTING)
def test_every_row_spends_its_budget_but_for_a_part_of_a_minibatch(row):
    flop = 1000 * UPDATE
    for choice in ROWS[row].choices:
        config = configuration(row, choice, flop)
        spent = config.updates // replays(config) * minibatch_flop(config)
        assert flop - minibatch_flop(config) < spent <= flop


@pytest.mark.parametrize("row", EXISTING)
def test_a_row_differs_from_natural_training_only_in_its_method(row):
    config = configuration(row, {RATE: 0.05}, seed=3)
    validate(config)
    expected = configuration("natural", {RATE: 0.05}, seed=3)
    expected.update_from_flattened_dict({"method": config.method, **ROWS[row].fields})
    expected.updates = config.updates
    if row == "modern":
        expected.attack.replays, expected.attack.start = 4, "random"
    assert config.to_dict() == expected.to_dict()


def test_each_set_is_standardised_by_its_own_pixels():
    assert configuration("modern").model.mean == (0.4914, 0.4822, 0.4465)
    other = configuration("modern", set="cifar100")
    assert (other.data.name, other.model.mean) == ("cifar100", (0.5071, 0.4865, 0.4409))
    # Ninety more classes behind 64 features.
    assert minibatch_flop(other) == 3 * 32 * 4 * (FORWARD + 2 * 64 * 90)


def test_no_two_trainings_share_a_folder():
    folders = {
        folder(row, {RATE: rate, **choice}, seed, options(set=images), flop, part)
        for row in ROWS
        for choice in ROWS[row].choices
        for rate in (0.1, 0.2)
        for seed in (0, 1)
        for images in ("cifar10", "cifar100")
        for flop in (1e12, 2e12)
        for part in ("validation", "test")
    }
    assert len(folders) == len(ROWS) * 2**6


def test_a_budget_below_one_minibatch_is_refused_with_the_least_one():
    config = configuration("7-pgd")
    with pytest.raises(InputError, match="1e.09 FLOP pay for no minibatch of 7-PGD"):
        affordable(config, 1e9)
    with pytest.raises(InputError, match="-1 FLOP .* must be at least 1.36e.10"):
        affordable(config, -1.0)


def test_a_row_without_a_method_is_left_out_with_a_line(monkeypatch, capsys):
    monkeypatch.delitem(METHODS, "n-fgsm")
    assert existing(["free-8", "n-fgsm"]) == ["free-8"]
    said = "n-fgsm: there is no training method 'n-fgsm'; left out\n"
    assert capsys.readouterr().out == said
    with pytest.raises(InputError, match="--rows n-fgsm: no row is left"):
        existing(["n-fgsm"])


class Trainings:
    """Give the accuracies of `by_fields`, a function of the fields, without training."""

    def __init__(self, by_fields):
        self.by_fields, self.asked = by_fields, []

    def finish(self, row, fields, seed, flop, part, attacks):
        self.asked.append((seed, part, attacks))
        natural, robust = self.by_fields(fields)
        rows = {"natural": natural, "pgd-20": 0.9, "worst-case": robust}
        evaluation = {name: {"accuracy": value} for name, value in rows.items()}
        return configuration(row, fields, flop), {"evaluation": evaluation}


def test_the_rate_is_chosen_with_the_best_attack():
    robust = {(10, 0.1): 0.2, (8, 0.1): 0.25, (8, 0.05): 0.22, (8, 0.2): 0.3}

    def accuracies(fields):
        step = round(255 * fields["attack.step_size"])
        return 0.0, robust[step, fields[RATE]]

    trainings = Trainings(accuracies)
    best, tried = chosen("fgsm-rs", 1e12, trainings)
    assert best == {RATE: 0.2, "attack.step_size": 8 / 255}
    assert [each["accuracy"] for each in tried] == [0.2, 0.25, 0.22, 0.3]
    assert set(trainings.asked) == {(0, "validation", CHOICE_ATTACKS)}


@pytest.mark.parametrize("row", ROWS)
def test_every_row_has_as_many_candidates(row, monkeypatch):
    monkeypatch.setitem(METHODS, ROWS[row].method, METHODS["pgd"])
    _, tried = chosen(row, 1e13, Trainings(lambda fields: (0.5, 0.1)))
    assert len(tried) == 4


def test_natural_training_is_chosen_by_natural_accuracy():
    best, _ = chosen("natural", 1e12, Trainings(lambda f: (f[RATE], 1 - f[RATE])))
    assert best == {RATE: 0.2}


def test_a_candidate_whose_training_stops_is_not_chosen():
    def accuracies(fields):
        if fields[RATE] == 0.2:
            raise TrainingStoppedError("the loss is nan")
        return 0.0, 0.3 - fields[RATE]

    best, tried = chosen("fgsm-pgi", 1e12, Trainings(accuracies))
    assert best[RATE] == 0.05
    stopped = {"accuracy": 0.0, "stopped": "the loss is nan"}
    assert tried[-1] == {"fields": tried[-1]["fields"], **stopped}
    assert tried[-1]["fields"][RATE] == 0.2


def test_the_front_has_the_points_that_no_cheaper_one_surpasses():
    points = [(3, 40), (1, 20), (1, 30), (2, 25), (3, 40), (4, 41)]
    assert front(points) == [(1, 30), (3, 40), (4, 41)]


@pytest.fixture
def finishes(monkeypatch):
    """Replace trainings by accuracies that depend on method, seed and budget."""
    made = []

    def finish(config, workdir, *, part, validates):
        assert not validates  # No held-out image is looked at in vain.
        made.append((config, workdir, part))
        robust = 0.0
        if METHODS[config.method].adversarial:
            robust = 0.2 + 0.01 * config.seed + 1e-4 * config.updates
        figures = dict.fromkeys(config.evaluation.attacks, robust)
        figures |= {"natural": 0.5, "worst-case": robust}
        return {
            "training": {"seconds": 60.0 * config.seed, "compile_seconds": 5.0},
            "evaluation": {
                name: {"accuracy": share} for name, share in figures.items()
            },
        }

    monkeypatch.setattr(frontier, "finish", finish)
    return made


def command(tmp_path, *flags):
    out, figure = tmp_path / "frontier.json", tmp_path / "frontier.png"
    rows = ["--rows", "natural", "fgsm-rs", "--updates", "200", "100", "--seeds=2"]
    main(
        ["frontier", "--data=data", *rows, f"--out={out}", f"--figure={figure}", *flags]
    )
    return read_json(out)["results"], figure


def test_the_record_and_the_picture_have_every_budget(finishes, tmp_path, capsys):
    results, figure = command(tmp_path, "--autoattack", "--examples=50")
    small, large = results["budgets"]
    assert (small["flop"], large["flop"]) == (100 * UPDATE, 200 * UPDATE)
    row = large["rows"]["fgsm-rs"]
    assert (row["title"], row["updates"], row["seconds"]) == ("FGSM-RS", 120, [60, 120])
    assert row["flop"] == 200 * UPDATE
    robust = row["accuracy"]["autoattack"]
    assert robust["values"] == pytest.approx([0.222, 0.232])
    assert robust["mean"] == pytest.approx(0.227)
    assert robust["deviation"] == pytest.approx(0.01 / 2**0.5)
    assert "autoattack" not in small["rows"]["fgsm-rs"]["accuracy"]
    assert Image.open(figure).width > 800
    lines = capsys.readouterr().out.splitlines()
    (line,) = (
        line for line in lines if line.startswith("FGSM-RS") and "120 up" in line
    )
    assert "1.5 min  natural  50.0 ± 0.0  apgd-t  22.7 ± 0.7" in line
    assert any(line.startswith("frontier 24/24 runs (100%)") for line in lines)


def test_the_seeds_on_test_images_decided_nothing(finishes, tmp_path):
    command(tmp_path, "--examples=50")
    seeds = {"validation": set(), "test": set()}
    for config, workdir, part in finishes:
        seeds[part].add(config.seed)
        assert workdir.parent.name == part
        assert config.evaluation.examples == (50 if part == "test" else 0)
        assert "autoattack" not in config.evaluation.attacks
    assert seeds == {"validation": {0}, "test": {1, 2}}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rows", "vat"], "--rows vat: must be one of natural, free-2, "),
        (["--flop", "1"], "1 FLOP pay for no minibatch of Natural"),
        (["--flop", "1", "--updates", "1"], "--updates: not allowed with argument"),
        (["--seeds=1"], "--seeds: '1': must be a whole number, 2 or more"),
        (["--network=wrn-9-1"], "wrn-9-1: the depth must be 6n . 4"),
        (["--figure=f.gif"], "f.gif: a figure ends in one of .png"),
    ],
)
def test_unusable_options_are_refused_before_any_training(flags, message, finishes):
    with pytest.raises(InputError, match=message):
        main(["frontier", "--data=data", *flags])
    assert not finishes


def test_the_table_of_the_page_ranks_rows_by_robust_accuracy(monkeypatch, tmp_path):
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    assert readme.BLOCKS["frontier"]() == "\nnot yet run\n"

    def row(title, robust):
        share = {"mean": robust, "deviation": 0.01}
        accuracy = {"natural": {"mean": 0.5, "deviation": 0.02}, "apgd-t": share}
        return {
            "title": title,
            "updates": 1200,
            "seconds": [60, 90],
            "accuracy": accuracy,
        }

    rows = {"a": row("FGSM-RS", 0.2), "b": row("Free-8", 0.25)}
    rows["b"]["accuracy"]["autoattack"] = {"mean": 0.24, "deviation": 0.0}
    budget = {"flop": 4.8e12, "rows": rows}
    write_json(tmp_path / "frontier.json", {"results": {"budgets": [budget]}})
    assert readme.BLOCKS["frontier"]().splitlines()[3:] == [
        "| 4.8 | Free-8 | 1,200 | 1.2 | 50.0 ± 2.0 | 25.0 ± 1.0 | 24.0 ± 0.0 |",
        "| 4.8 | FGSM-RS | 1,200 | 1.2 | 50.0 ± 2.0 | 20.0 ± 1.0 |  |",
    ]
