"""The pictures and the report in docs/: their size, and the figures of the records."""

import json
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"
RECORD = json.loads((ROOT / "benchmarks" / "results" / "figures.json").read_text())


def test_examples_are_there_and_below_300_kilobytes():
    names = {path.name for path in DOCS.iterdir()}
    assert {
        "report.html",
        "loss_surface.png",
        "large_epsilon.png",
        "replays.png",
    } <= names
    for path in DOCS.iterdir():
        assert path.stat().st_size < 300_000, path


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_replaying_costs_images_and_larger_batches_give_them_back(name):
    record = ROOT / "benchmarks" / "results" / "replays.json"
    curves = json.loads(record.read_text())["results"][name]

    def at(curve, replays, attack="natural"):
        point = curves[curve][str(replays)][attack]
        assert len(point["values"]) == 3
        return point["mean"]

    assert at("natural, replayed", 1) > at("natural, replayed", 16)
    assert at("natural, larger batches", 16) > at("natural, replayed", 16)
    assert at("Free-m", 8, "pgd-20") > 2 * at("Free-m", 1, "pgd-20")


def test_page_shows_the_figures_of_the_record():
    page = (DOCS / "report.html").read_text()
    for result in RECORD["results"].values():
        for row in result["evaluation"].values():
            low, high = (f"{100 * bound:.1f}" for bound in row["interval"])
            assert f"{low} to {high}, of {row['examples']}" in page
        for share in result["under_attacks_made_on"].values():
            assert f"{100 * share:.1f}" in page


def test_free_and_pgd_training_flatten_the_loss():
    flat = {
        result["label"]: result["flatness"] for result in RECORD["results"].values()
    }
    for label in ("Free-8", "7-PGD"):
        for number in ("rise", "error"):
            here, natural = flat[label][number], flat["Natural"][number]
            gap = natural["mean"] - here["mean"]
            assert gap > 3 * (natural["standard error"] + here["standard error"])


def test_white_box_is_the_lowest_of_its_row():
    for result in RECORD["results"].values():
        row = result["under_attacks_made_on"]
        assert min(row, key=row.get) == result["label"]
