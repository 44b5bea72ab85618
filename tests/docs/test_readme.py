"""The README and docs/ against the repository: links, configurations and every figure."""

import json
import pathlib
import re

import pytest

from benchmarks.readme import BLOCKS, DOCUMENTS, rendered, results

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "benchmarks" / "results"
COMMANDS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)


def test_ci_runs_the_quickstart_and_the_test_command_as_written():
    ci = (ROOT / ".ci" / "run").read_text()
    quickstart, tests = COMMANDS[:2]
    assert quickstart.strip() == (
        "pip install . && python -m freeadv_jax.main --config=configs/digits_free8.py"
    )
    for part in quickstart.strip().split(" && "):
        assert part in ci
    assert tests.strip() in ci


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_linked_file_exists(document):
    for path in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
        assert (document.parent / path).exists(), path


def test_the_readme_has_at_most_200_lines_and_leads_to_every_page():
    assert len(README.splitlines()) <= 200
    for path in (ROOT / "docs").glob("*.md"):
        if path.stem != "index":  # The site's own first page.
            assert f"(docs/{path.name})" in README, path


def test_every_configuration_named_exists_and_none_is_left_out():
    page = (ROOT / "docs" / "train.md").read_text()
    table = page.split("| rows of |")[1].split("\n\n")[0]
    named = set()
    for line in table.splitlines()[2:]:
        base = ""
        for name in re.findall(r"`(\w+)`", line):
            base = base if name.startswith("_") else name
            prefix = base.rsplit("_", 1)[0] if name.startswith("_") else ""
            named.add(prefix + name)
    assert named == {path.stem for path in (ROOT / "configs").glob("*.py")}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_figures_are_those_of_the_committed_records(path):
    text = path.read_text()
    assert rendered(text) == text, "run python -m benchmarks.readme"


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_every_block_has_its_place_and_is_filled(name):
    texts = "".join(path.read_text() for path in DOCUMENTS)
    (block,) = re.findall(rf"<!-- {name} -->(.*?)<!-- end -->", texts, re.DOTALL)
    assert re.search(r"\d|not yet run", block)


def test_a_block_within_a_sentence_begins_no_line():
    """Markdown takes the rest of such a line for HTML."""
    for line in "".join(path.read_text() for path in DOCUMENTS).splitlines():
        if line.startswith("<!--"):
            assert re.fullmatch(r"<!-- \w+ -->", line), line


def test_a_figure_typed_by_hand_does_not_last():
    page = (ROOT / "docs" / "results.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| Free-8 |"))
    typed = page.replace(row, row.replace("±", "+-"))
    assert typed != page
    assert rendered(typed) == page


def test_records_were_made_as_the_text_says():
    digits = results("digits")["digits_free8"]
    assert (digits["examples"], len(digits["training_seconds"])) == (450, 5)
    for row in results("reproduce_cifar10_scaled_down").values():
        assert row["evaluation"]["pgd-20"]["examples"] == 1000
        assert (row["model"], row["updates"]) == ("wrn-10-1", 2000)
    assert results("quickstart")["median"] < 30
    for result in results("robustness").values():
        flags = result["red_flags"]["flags"].values()
        assert not any(flag["suspicious"] for flag in flags)


def test_no_attack_is_weaker_than_the_reference():
    for result in results("attack_parity").values():
        assert result["examples"] == 500
        assert result["largest_logit_difference"] < 1e-4
        for name, row in result["attacks"].items():
            assert row["points_above"] <= (0.2 if name == "autoattack" else 0.5)


def test_a_second_start_skips_most_of_the_compilation():
    """The second start still traces, which no cache saves."""
    starts = results("start_up")
    assert starts.pop("import") < 1.5
    for row in starts.values():
        assert row["second / first"] <= 0.25


def test_every_record_names_its_command_and_environment():
    records = sorted(RESULTS.glob("*.json"))
    assert records
    for path in records:
        record = json.loads(path.read_text())
        command = r"([A-Z_]+=.+ )*python -m benchmarks\..+"
        assert re.fullmatch(command, record["command"]), path
        environment = record["environment"]
        assert environment["commit"], path
        assert {"versions", "device_kind", "processor"} <= environment.keys(), path
