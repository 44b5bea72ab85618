"""Published rows: the same as the configurations quote, and found for the right runs."""

import importlib
import pathlib
import re

import pytest

from freeadv_jax.report.published import ROWS, published_row

CONFIGS = pathlib.Path(__file__).parent.parent.parent / "configs"
QUOTED = {
    path.stem: " ".join(quoted[1].split())
    for path in sorted(CONFIGS.glob("*.py"))
    if (quoted := re.search(r"Published: (.*?)Ours:", path.read_text(), re.DOTALL))
    and not quoted[1].startswith("no figures")
    # The report's rows are accuracies under attacks, not certified ones.
    and "certified" not in quoted[1]
}


def config_of(name):
    return importlib.import_module(f"configs.{name}").get_config()


@pytest.mark.parametrize("name", QUOTED)
def test_each_configuration_finds_the_row_it_quotes(name):
    text = QUOTED[name]
    quoted = {
        "natural": r"natural ([\d.]+)",
        "pgd-10": r"PGD-10 ([\d.]+\b)",
        "pgd-50": r"PGD-50 ([\d.]+\b)",
        "pgd-20": r"PGD-20 ([\d.]+\b)",
        "pgd-100": r"PGD-100 ([\d.]+\b)",
        "cw-100": r"CW-100 ([\d.]+\b)",
        "pgd-20-x10": r"PGD-20 with 10 restarts ([\d.]+\b)",
        "pgd-50-x10": r"PGD-50 with 10 restarts ([\d.]+\b)",
    }
    expected = {
        attack: float(found[1].rstrip("."))
        for attack, pattern in quoted.items()
        if (found := re.search(pattern, text))
    }
    config = config_of(name)
    row = published_row(config)
    assert row.accuracy == expected
    minutes = re.search(r"(\d+) minutes", text)
    assert row.minutes == (float(minutes[1]) if minutes else None)
    assert row.same_recipe(config)


def test_every_row_is_quoted_by_one_configuration():
    assert len(ROWS) == len(QUOTED) == 20


def test_a_run_of_another_size_gets_the_row_as_another_recipe():
    config = config_of("cifar10_free8")
    config.model.name = "wrn-10-1"
    config.updates = 2000
    row = published_row(config)
    assert row.accuracy["natural"] == 85.96
    assert not row.same_recipe(config)


def test_the_modern_configuration_gets_a_row_of_another_recipe():
    config = config_of("cifar10_modern")
    row = published_row(config)
    assert (row.model, row.updates) == (config.model.name, config.updates)
    assert not row.same_recipe(config)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data.name", "digits"),
        ("attack.epsilon", 4 / 255),
        ("attack.norm", "l2"),
        ("attack.replays", 5),
        ("method", "trades"),
    ],
)
def test_a_run_that_nobody_published_has_no_row(field, value):
    config = config_of("cifar10_free8")
    config.update_from_flattened_dict({field: value})
    assert published_row(config) is None
