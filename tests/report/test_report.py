"""The report command: a complete page, the same figures in every format, bad input."""

import csv
import html.parser
import io
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from tiny_run import ROOT, environment

from freeadv_jax import evaluate
from freeadv_jax.analysis import measurement
from freeadv_jax.analysis.comparison import first_examples, open_models
from freeadv_jax.attacks.campaign import Campaign
from freeadv_jax.errors import InputError
from freeadv_jax.export import export_run
from freeadv_jax.files import read_json
from freeadv_jax.report.__main__ import main
from freeadv_jax.runs.metrics import read_lines

VOID = {"meta", "link", "img", "br"}


class Page(html.parser.HTMLParser):
    """The elements in order with their attributes, and the tags that are still open."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.faults = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append((tag, self.getpos()))

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def call(*arguments):
    main(["report", *map(str, arguments)])


@pytest.fixture(scope="module")
def pair(trained_pair, tmp_path_factory):
    """Return copies of the trained pair, measured at fewer points than the command
    would.
    """
    folder = tmp_path_factory.mktemp("report")
    runs = [shutil.copytree(run, folder / run.name) for run in trained_pair]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measurement, "RADII", (0.5, 1, 2))
        patch.setattr(measurement, "STEP_COUNTS", (1, 20))
        call(*runs, f"--out={folder / 'report.html'}", "--examples=64")
        yield runs


@pytest.fixture
def page(pair):
    return (pair[0].parent / "report.html").read_text()


def render(pair, out, *arguments):
    call(*pair, f"--out={out}", "--examples=64", *arguments)
    return out.read_text()


def test_the_page_is_well_formed_and_every_picture_has_a_text(page):
    parsed = Page(page)
    assert parsed.faults == []
    assert parsed.open == []
    assert len(parsed.of("svg")) == 12
    assert len(parsed.of("img")) == 2 * 3 * 6
    for attributes in parsed.of("svg"):
        assert attributes["role"] == "img"
        assert len(attributes["aria-label"]) > 40
    for attributes in parsed.of("img"):
        assert len(attributes["alt"]) > 20
    identities = [given["id"] for _, given in parsed.elements if "id" in given]
    assert len(set(identities)) == len(identities)
    for link in re.findall(r'(?:url\(#|href="#)([^")]+)', page):
        assert link in identities


def test_the_page_is_small_and_refers_to_no_other_file(page):
    assert len(page.encode()) < 1_000_000
    assert not re.search(r"https?:", page)
    parsed = Page(page)
    assert not parsed.of("script")
    for _, attributes in parsed.elements:
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "data:").startswith(("data:", "#"))
    assert "@import" not in page
    assert set(re.findall(r"url\((.)", page)) <= {"#"}


def test_the_page_names_the_better_model_and_shows_both(page):
    assert "Free-2 is the most robust of these models." in page
    assert "Natural, Free-2 on digits" in page
    for section in (
        "Results",
        "Accuracy by the strength of the attack",
        "Attacked images",
        "Class by class",
        "Most confused",
        "Transferred attacks",
        "Training curves",
        "Cost of the training",
        "Can the figures be believed?",
        "Environment",
    ):
        assert f">{section}</h2>" in page


def test_every_format_has_the_figures_of_results_json(pair, page, tmp_path):
    markdown = render(pair, tmp_path / "report.md", "--format=markdown")
    cells = list(
        csv.DictReader(
            io.StringIO(render(pair, tmp_path / "report.csv", "--format=csv"))
        )
    )
    for number, (run, label) in enumerate(zip(pair, ("Natural", "Free-2")), start=1):
        rows = json.loads((run / "results.json").read_text())["evaluation"]
        line = next(
            line for line in markdown.splitlines() if line.startswith(f"| {label} |")
        )
        assert len(rows) == 2
        for name, row in rows.items():
            text = f"{100 * row['accuracy']:.1f}"
            low, high = (f"{100 * bound:.1f}" for bound in row["interval"])
            note = f"{low} to {high}, of {row['examples']}"
            assert re.search(rf"\| (\*\*)?{text}(\*\*)? \({note}\) \|", line)
            assert note in page
            (cell,) = (
                cell
                for cell in cells
                if (cell["table"], cell["row"], cell["column"])
                == ("results", f"{number}: {label}", name)
            )
            assert float(cell["accuracy"]) == row["accuracy"]
            assert float(cell["low"]) == row["interval"][0]
    titles = re.findall(r"^## (.*)", markdown, re.MULTILINE)
    assert len(titles) == len({cell["table"] for cell in cells}) == 9


def test_a_second_call_measures_nothing_and_writes_the_same(
    pair, page, tmp_path, monkeypatch
):
    def forbidden(*_, **__):
        raise AssertionError("measured again")

    monkeypatch.setattr(Campaign, "attack", forbidden)
    monkeypatch.setattr(Campaign, "logits", forbidden)
    assert render(pair, tmp_path / "again.html") == page


def test_without_measuring_the_evaluation_is_shown(trained_pair, tmp_path):
    run = shutil.copytree(trained_pair[1], tmp_path / "run")
    text = render([run], tmp_path / "report.html", "--no-measure")
    parsed = Page(text)
    assert not parsed.of("img")
    # Eight training curves, and one plot of the classes.
    assert len(parsed.of("svg")) == 9
    assert "were not measured" in text
    assert not (run / "report.npz").exists()


def test_an_exported_model_with_an_evaluation_is_reported(pair, tmp_path, capsys):
    exported, images = tmp_path / "exported", tmp_path / "test.npz"
    export_run(pair[1], exported)
    # The whole test set: evaluations of other files are not compared.
    examples = first_examples(open_models(pair), data="", examples=1000)
    np.savez(images, images=examples.images, labels=examples.labels)
    given = [f"--workdir={exported}", f"--images={images}", "--examples=64"]
    evaluate.main(["", *given, "--attacks=natural,pgd-20", "--no-red_flags"])
    text = render([exported], tmp_path / "report.html")
    assert "nothing is measured: exported models name no data set" in (
        capsys.readouterr().out
    )
    assert Page(text).faults == []
    assert "small-cnn-bn (exported) classifies" in text
    robust = read_json(exported / "test" / "results.json")["evaluation"]["pgd-20"]
    assert f"{100 * robust['accuracy']:.1f} %" in text
    # Beside a run of the same data set both are measured and compared.
    both = render([pair[0], exported], tmp_path / "both.html", "--format=markdown")
    assert "small-cnn-bn (exported) is the most robust" in both
    assert "## Transferred attacks" in both


def test_curves_end_at_the_last_validation(pair, page):
    *_, last = (
        line for line in read_lines(pair[1] / "metrics.jsonl") if "pgd-10" in line
    )
    (text,) = re.findall(
        r'aria-label="Robust accuracy against updates\. ([^"]*)"', page
    )
    assert f"Free-2 {100 * last['pgd-10']:.3g}" in text


def test_every_colour_of_a_plot_has_a_light_and_a_dark_value(page):
    plots = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert plots
    for plot in plots:
        colours = set(re.findall(r"#[0-9a-f]{6}\b", plot))
        assert colours <= {"#ffffff"}, colours
        assert "var(--ink)" in plot


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda run: (run / "results.json").unlink(),
            "holds no evaluation, there is no",
        ),
        (lambda run: (run / "run.json").unlink(), "holds no run"),
        (lambda run: (run / "results.json").write_text("{"), "results.json is damaged"),
        (
            lambda run: (run / "results.json").write_text("{}"),
            "was not evaluated both without an attack and under one",
        ),
        (lambda run: (run / "report.npz").write_text("x"), "report.npz is damaged"),
        (lambda run: _other_weights(run), "was evaluated with other weights"),
    ],
)
def test_an_unusable_run_is_reported_in_one_line(pair, tmp_path, damage, message):
    runs = [shutil.copytree(run, tmp_path / run.name) for run in pair]
    damage(runs[1])
    with pytest.raises(InputError, match=message) as caught:
        render(runs, tmp_path / "report.html")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def _other_weights(run):
    with np.load(run / "evaluation.npz") as file:
        arrays = dict(file)
    arrays["about"] = np.array('{"model": 1, "images": 2}')
    np.savez(run / "evaluation.npz", **arrays)


def test_the_command_prints_one_line_and_exits_with_status_1(tmp_path):
    found = subprocess.run(
        [sys.executable, "-m", "freeadv_jax.report", str(tmp_path), "--out=a.html"],
        cwd=ROOT,
        env=environment(devices=1),
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 1
    assert found.stderr.startswith(f"error: {tmp_path} holds no run")
    assert found.stderr.count("\n") == 1
