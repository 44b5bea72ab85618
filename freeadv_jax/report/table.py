"""A table as it is shown: cells with their numbers, as Markdown and as CSV."""

import csv
import dataclasses
import io


@dataclasses.dataclass(frozen=True)
class Cell:
    """`text` and, smaller, a `note`; the `numbers` behind them, for a program.

    `mark` is 'best', 'published', 'own', 'suspicious' or nothing; `share` in [0, 1]
    shades the cell.
    """

    text: str
    note: str = ""
    mark: str = ""
    numbers: dict[str, float] = dataclasses.field(default_factory=dict)
    share: float | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells, the first of each its heading; `caption` says what to look for."""

    name: str
    title: str
    caption: str
    columns: tuple[str, ...]
    rows: list[list[Cell]]


_MARKS = {"best": "best", "own": "white box", "suspicious": "suspicious"}


def as_markdown(table: Table) -> str:
    """A title, the caption and the table."""
    lines = [_markdown_row(table.columns), "|---" * len(table.columns) + "|"]
    lines += [_markdown_row(map(_markdown_cell, row)) for row in table.rows]
    return "\n".join([f"## {table.title}", "", table.caption, "", *lines, ""])


def _markdown_row(texts):
    return f"| {' | '.join(text.replace('|', '/') for text in texts)} |"


def _markdown_cell(cell):
    text = f"**{cell.text}**" if cell.mark == "best" else cell.text
    return f"{text} ({cell.note})" if cell.note else text


def as_csv(tables: list[Table]) -> str:
    """All tables as one, a line a cell: table, row, column, text, note, mark, numbers.

    The columns after these hold the numbers by name, unrounded.
    """
    names = dict.fromkeys(
        name
        for table in tables
        for row in table.rows
        for cell in row
        for name in cell.numbers
    )
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["table", "row", "column", "text", "note", "mark", *names])
    for table in tables:
        for number, row in enumerate(table.rows):
            # Published rows and the pairs of a class may share their heading.
            heading = f"{number + 1}: {row[0].text}"
            for column, cell in zip(table.columns[1:], row[1:], strict=True):
                numbers = [cell.numbers.get(name, "") for name in names]
                said = [cell.text, cell.note, _MARKS.get(cell.mark, cell.mark)]
                writer.writerow([table.name, heading, column, *said, *numbers])
    return out.getvalue()


def percent(share: float) -> str:
    """55.3, of 0.5533."""
    return f"{100 * share:.1f}"


def interval_text(interval) -> str:
    """50.7 to 59.9."""
    return " to ".join(map(percent, interval))


def minutes_text(seconds: float, *, digits: int) -> str:
    """Minutes with so many digits, 5.4, or whole ones that have as many: 5,418."""
    minutes = seconds / 60
    whole = minutes >= 10 ** (digits - 1)
    return f"{minutes:,.0f}" if whole else f"{minutes:.{digits}g}"
