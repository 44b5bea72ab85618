"""The page of a gallery says what the rows say, and is readable in a browser."""

import re

import pytest
from browser import CHROMIUM, look
from fake_rows import ANSWER, fake_row

from freeadv_jax.gallery.defences import DEFENCES
from freeadv_jax.gallery.page import headline, render, results_table, sentences
from freeadv_jax.gallery.row import read_row, save_row

ROWS = [
    fake_row("bit-depth", flags=("gradients", "Square")),
    fake_row("jpeg", adaptive=0.05, flags=("gradients",), shown=False),
    fake_row("free-8", natural=0.7, naive=0.5, adaptive=0.45),
]


def test_every_defence_has_a_paper_and_what_broke_it():
    for name, defence in DEFENCES.items():
        assert defence.name == name
        assert re.search(r"et al\., |Ross & Doshi-Velez, ", defence.paper)
        assert defence.published is None or 0 <= defence.published <= 1
        assert (defence.kind != "none") >= defence.masks


def test_the_verdict_counts_flags_and_names_false_alarms():
    assert headline(ROWS) == (
        "2 of 2 defences that mask their gradients raise red flags; adaptive attacks "
        "leave them 2.0 to 5.0 percent"
    )
    assert sentences(ROWS)[0] == (
        "Among 1 defences that mask nothing, none raised a flag; adaptive attacks leave "
        "them 45.0 to 45.0 percent."
    )
    alarmed = [*ROWS[:1], fake_row("trades", flags=("losses",))]
    assert "trades raised a flag" in sentences(alarmed)[0]
    assert "No defence that masks" in headline(ROWS[2:])


def test_the_table_has_the_columns_of_the_slides():
    table = results_table(ROWS)
    assert table.columns[2:] == (
        "natural",
        "naive PGD-20",
        "red flags",
        "adaptive",
        "published",
    )
    texts = [[cell.text for cell in row] for row in table.rows]
    assert texts[0][2:] == ["90.0", "80.0", "gradients, Square", "2.0", "0"]
    assert texts[2][2:] == ["70.0", "50.0", "none", "45.0", "46.82"]
    fallen = [row[5].mark for row in table.rows]
    assert fallen == ["suspicious", "suspicious", ""]


def test_a_certificate_stands_below_the_adaptive_attacks():
    row = fake_row("certified", natural=0.7, naive=0.6, adaptive=0.5)
    row.record["certified"] = 0.42
    cell = results_table([row]).rows[0][5]
    assert (cell.text, cell.note) == ("50.0", "certified 42.0")


def test_the_page_shows_facts_flags_and_pictures():
    page = render(ROWS)
    for row in ROWS:
        assert f'id="{row.record["defence"]}"' in page
        assert DEFENCES[row.record["defence"]].title in page
    assert page.count("<img ") == 4 * 6 + 2 * 6 + 4 * 6
    assert "rejected" in page
    assert "it was seen &lt;here&gt;" in page
    assert page.count(f"Try next: {ANSWER['advice']}.") == 2
    assert page.count("No red flag was raised.") == 1
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]+"', "", page)


def test_a_row_that_was_saved_is_read_again(tmp_path):
    row = ROWS[0]
    assert read_row("bit-depth", tmp_path) is None
    save_row(row, tmp_path)
    found = read_row("bit-depth", tmp_path)
    assert found.record == row.record
    assert render([found]) == render([row])


def test_a_row_without_its_record_is_not_finished(tmp_path):
    save_row(ROWS[0], tmp_path)
    (tmp_path / "bit-depth.json").unlink()
    assert read_row("bit-depth", tmp_path) is None


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(width, tmp_path):
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    seen = look(render(ROWS), tmp_path, width)
    assert seen["scrolled"] == seen["width"] == width
    assert seen["wide"] == []
    assert seen["broken"] == 0
