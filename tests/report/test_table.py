"""A table as Markdown and as CSV, and figures as text."""

import csv
import io

from freeadv_jax.report.table import (
    Cell,
    Table,
    as_csv,
    as_markdown,
    interval_text,
    minutes_text,
    percent,
)

TABLE = Table(
    "results",
    "Results",
    "Look here.",
    ("model", "pgd-20"),
    [
        [
            Cell("Free-8"),
            Cell("55.8", "51.2 to 60.3", "best", {"accuracy": 0.5577, "low": 0.512}),
        ],
        [Cell("a|b"), Cell("–")],
    ],
)


def test_markdown_has_the_title_the_caption_and_a_line_for_each_row():
    assert as_markdown(TABLE).splitlines() == [
        "## Results",
        "",
        "Look here.",
        "",
        "| model | pgd-20 |",
        "|---|---|",
        "| Free-8 | **55.8** (51.2 to 60.3) |",
        "| a/b | – |",
    ]


def test_csv_has_a_line_for_each_cell_with_unrounded_numbers():
    other = Table("cost", "Cost", "", ("model", "minutes"), [[Cell("x"), Cell("2")]])
    lines = list(csv.DictReader(io.StringIO(as_csv([TABLE, other]))))
    assert lines == [
        {
            "table": "results",
            "row": "1: Free-8",
            "column": "pgd-20",
            "text": "55.8",
            "note": "51.2 to 60.3",
            "mark": "best",
            "accuracy": "0.5577",
            "low": "0.512",
        },
        {
            "table": "results",
            "row": "2: a|b",
            "column": "pgd-20",
            "text": "–",
            "note": "",
            "mark": "",
            "accuracy": "",
            "low": "",
        },
        {
            "table": "cost",
            "row": "1: x",
            "column": "minutes",
            "text": "2",
            "note": "",
            "mark": "",
            "accuracy": "",
            "low": "",
        },
    ]


def test_shares_are_percent_with_one_digit():
    assert percent(0.55333) == "55.3"
    assert interval_text((0.0, 1.0)) == "0.0 to 100.0"


def test_minutes_are_rounded_and_long_ones_are_whole():
    minutes = (0.5333, 5.418, 12.34, 785.2, 5418)
    texts = [
        [minutes_text(60 * m, digits=digits) for m in minutes] for digits in (2, 3)
    ]
    assert texts == [
        ["0.53", "5.4", "12", "785", "5,418"],
        ["0.533", "5.42", "12.3", "785", "5,418"],
    ]
