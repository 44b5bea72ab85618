"""A table of a report, and its form as Markdown and as CSV."""

import csv
import dataclasses
import io


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell: `text`, a smaller `note`, and the unrounded `numbers` for programs.

    `mark` is 'best', 'published', 'own', 'suspicious' or ''. `share` in [0, 1] is the
    strength of the cell's shade.
    """

    text: str
    note: str = ""
    mark: str = ""
    numbers: dict[str, float] = dataclasses.field(default_factory=dict)
    share: float | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells, each begun by its heading; `caption` says what to look for."""

    name: str
    title: str
    caption: str
    columns: tuple[str, ...]
    rows: list[list[Cell]]


# A cell without a value.
NONE = Cell("–")
_MARKS = {"best": "best", "own": "white box", "suspicious": "suspicious"}


def as_markdown(table: Table) -> str:
    """Return the title, the caption and the table in Markdown."""
    lines = [_markdown_row(table.columns), "|---" * len(table.columns) + "|"]
    lines += [_markdown_row(map(_markdown_cell, row)) for row in table.rows]
    return "\n".join([f"## {table.title}", "", table.caption, "", *lines, ""])


def _markdown_row(texts):
    return f"| {' | '.join(text.replace('|', '/') for text in texts)} |"


def _markdown_cell(cell):
    text = f"**{cell.text}**" if cell.mark == "best" else cell.text
    return f"{text} ({cell.note})" if cell.note else text


def as_csv(tables: list[Table]) -> str:
    """Return all tables as one CSV text with a line for each cell.

    The columns are table, row, column, text, note and mark, then the unrounded numbers
    by name.
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
            # The number keeps rows with the same heading apart.
            heading = f"{number + 1}: {row[0].text}"
            for column, cell in zip(table.columns[1:], row[1:], strict=True):
                numbers = [cell.numbers.get(name, "") for name in names]
                texts = [cell.text, cell.note, _MARKS.get(cell.mark, cell.mark)]
                writer.writerow([table.name, heading, column, *texts, *numbers])
    return out.getvalue()


def percent(share: float) -> str:
    """Return a share as percent with one digit: 55.3 for 0.5533."""
    return f"{100 * share:.1f}"


def interval_text(interval) -> str:
    """Return an interval of shares in percent: '50.7 to 59.9'."""
    return " to ".join(map(percent, interval))


def minutes_text(seconds: float, *, digits: int) -> str:
    """Return minutes with `digits` digits, 5.4, or whole ones if that long: 5,418."""
    minutes = seconds / 60
    whole = minutes >= 10 ** (digits - 1)
    return f"{minutes:,.0f}" if whole else f"{minutes:.{digits}g}"
