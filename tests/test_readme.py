"""What the README says is so: its commands, its paths, and every figure."""

import importlib.util
import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "benchmarks" / "results"
COMMANDS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)


def results(name):
    return json.loads((RESULTS / f"{name}.json").read_text())["results"]


def test_quickstart_and_tests_are_one_command_each_and_what_ci_runs():
    ci = (ROOT / ".ci" / "run").read_text()
    quickstart, tests = COMMANDS[:2]
    assert quickstart.strip() == (
        "pip install . && python -m freeadv_jax.main --config=configs/digits_free8.py"
    )
    for part in quickstart.strip().split(" && "):
        assert part in ci
    assert tests.strip() in ci


def test_every_path_and_module_named_exists():
    paths = re.findall(r"\]\((?!https?:)([^)]+)\)", README)
    paths += re.findall(r"--config=(\S+?\.py)", README)
    assert len(paths) > 15
    for path in paths:
        assert (ROOT / path).exists(), path
    for module in re.findall(r"python -m ([\w.]+)", README):
        assert importlib.util.find_spec(module), module


def test_every_configuration_named_exists_and_none_is_left_out():
    table = README.split("| rows of |")[1].split("\n\n")[0]
    named = set()
    for line in table.splitlines()[2:]:
        base = ""
        for name in re.findall(r"`(\w+)`", line):
            base = base if name.startswith("_") else name
            prefix = base.rsplit("_", 1)[0] if name.startswith("_") else ""
            named.add(prefix + name)
    assert named == {path.stem for path in (ROOT / "configs").glob("*.py")}


@pytest.mark.parametrize(
    ("name", "title"),
    [("digits_natural", "natural"), ("digits_free8", "Free-8")],
)
def test_digits_figures_are_those_of_the_committed_runs(name, title):
    row = results("digits")[name]
    cells = [
        f"{100 * row['accuracy'][attack]['mean']:.1f} ± "
        f"{100 * row['accuracy'][attack]['deviation']:.1f}"
        for attack in ("natural", "fgsm", "pgd-20", "pgd-100", "cw-100")
    ]
    assert f"| {title} | {' | '.join(cells)} |" in README
    assert row["examples"] == 450


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("cifar10_natural", "natural"),
        ("cifar10_free8", "Free-8"),
        ("cifar10_pgd7", "7-PGD"),
    ],
)
def test_cifar10_figures_are_those_of_the_committed_runs(name, title):
    result = results("cifar10_cpu")[name]
    cells = [
        f"{100 * result['evaluation'][attack]['accuracy']:.1f}"
        for attack in ("natural", "fgsm", "pgd-20", "pgd-100")
    ]
    assert f"| {title} | {' | '.join(cells)} |" in README
    assert f"{result['evaluation']['pgd-20']['examples']:,} test images" in README


@pytest.mark.parametrize("network", ["preact-resnet-18", "wrn-16-4"])
def test_cost_figures_are_those_of_the_committed_benchmark(network):
    result = results("step_cost")[network]
    ratios = [result["ratios"][f"{m} / natural"] for m in ("free-2", "free-8", "7-pgd")]
    ratios.append(result["ratios"]["compilation free-8 / free-2"])
    cells = [f"{ratio:.2f}" for ratio in ratios]
    seconds = result["methods"]["natural"]["seconds_per_update"]
    assert f"| {network} | {seconds:.2f} s | {' | '.join(cells)} |" in README


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("digits_natural-0", "digits, natural"),
        ("digits_free8-0", "digits, Free-8"),
        ("cifar10_natural", "CIFAR-10, natural"),
        ("cifar10_free8", "CIFAR-10, Free-8"),
    ],
)
def test_autoattack_figures_are_those_of_the_committed_benchmark(name, title):
    result = results("robustness")[name]
    rows = result["evaluation"]
    attacks = ("natural", "pgd-20", "pgd-100", "cw-100", "pgd-20-x10", "autoattack")
    cells = [f"{100 * rows[attack]['accuracy']:.1f}" for attack in attacks]
    low, high = rows["autoattack"]["interval"]
    cells[-1] += f" ({100 * low:.1f} to {100 * high:.1f})"
    assert f"| {title} | {' | '.join(cells)} |" in README
    if name.startswith("cifar10"):
        assert f"the first {rows['autoattack']['examples']} test images" in README


@pytest.mark.parametrize(
    ("setting", "title"),
    [
        ("cifar10_free8 linf 0.0314", "Free-8, 8/255"),
        ("cifar10_natural linf 0.0314", "natural, 8/255"),
        ("cifar10_natural linf 0.0039", "natural, 1/255"),
    ],
)
def test_parity_figures_are_those_of_the_committed_benchmark(setting, title):
    result = results("attack_parity")[setting]
    attacks = [
        "pgd-20",
        "apgd-ce",
        "apgd-dlr",
        "apgd-t",
        "fab-t",
        "square",
        "autoattack",
    ]
    cells = [
        f"{row['ours']:.1f} / {row['reference']:.1f}" if row else "not yet run"
        for row in map(result["attacks"].get, attacks)
    ]
    assert f"| {title} | {' | '.join(cells)} |" in README
    assert result["examples"] == 500
    assert result["largest_logit_difference"] < 1e-4
    for name, row in result["attacks"].items():
        assert row["points_above"] <= (0.2 if name == "autoattack" else 0.5)


def test_speed_figures_are_those_of_the_committed_benchmark():
    result = results("attack_speed")
    for name in ("pgd-100", "autoattack"):
        row = result[name]
        ours, theirs = row["seconds"]["ours"], row["seconds"]["reference"]
        text = (
            f"{ours:.0f} s against {theirs:.0f} s ({row['reference / ours']:.2f} times"
        )
        assert text in README
    assert f"{result['network']} on {result['examples']} images" in README


def test_quickstart_takes_the_seconds_that_were_measured():
    seconds = results("quickstart")["median"]
    assert f"how robust it is, in {seconds:.0f} s" in README
    assert seconds < 30


def test_every_result_says_how_it_came_about():
    records = sorted(RESULTS.glob("*.json"))
    assert records
    for path in records:
        record = json.loads(path.read_text())
        assert record["command"].startswith("python -m benchmarks."), path
        environment = record["environment"]
        assert environment["commit"], path
        assert {"versions", "device_kind", "processor"} <= environment.keys(), path


def test_flatness_figures_are_those_of_the_committed_record():
    section = " ".join(README.split("## Look at it")[1].split("\n## ")[0].split())
    for figure, name in (("rise", "largest rise"), ("error", "local linearity error")):
        said = section.split(name)[1]
        for row in results("figures").values():
            mean = row["flatness"][figure]["mean"]
            digits = 1 if mean >= 1 else 2
            assert f"{mean:.{digits}f}" in said[:300], (name, mean)


@pytest.mark.parametrize(
    ("name", "title"), [("natural", "natural"), ("free4", "Free-4")]
)
def test_folder_figures_are_those_of_the_committed_runs(name, title):
    rows = results("imagenet_folder_cpu")[name]["evaluation"]
    cells = []
    for attack in ("natural", "pgd-10"):
        low, high = (100 * bound for bound in rows[attack]["interval"])
        cells.append(f"{100 * rows[attack]['accuracy']:.1f} ({low:.1f} to {high:.1f})")
    assert f"| {title} | {' | '.join(cells)} |" in README


def test_decoded_images_are_those_of_the_committed_count():
    counts = [
        row["images_decoded"] for row in results("input_rate")["methods"].values()
    ]
    first, *others, last = (f"{count:,}" for count in counts)
    said = f"{first} for natural training, {', '.join(others)} and {last} for Free-2"
    assert said in " ".join(README.split())
