"""Show the aligned lists of docstrings as lists: a griffe extension for mkdocstrings."""

import re

import griffe

_ITEM = re.compile(r"(\w+) {2,}(\S.*)")


def with_lists(text: str) -> str:
    """Return `text` with paragraphs such as `name   meaning` turned into Markdown lists.

    Lines that are indented below an item continue it.
    """
    return "\n\n".join(map(_as_list, text.split("\n\n")))


def _as_list(paragraph):
    lines = paragraph.splitlines()
    items = [_ITEM.fullmatch(line) for line in lines]
    if not items or not items[0]:
        return paragraph
    if any(not item and line[:2] != "  " for item, line in zip(items, lines)):
        return paragraph
    return "\n".join(
        f"- `{item[1]}`: {item[2]}" if item else f"    {line.strip()}"
        for item, line in zip(items, lines)
    )


class AlignedLists(griffe.Extension):
    """Rewrite each docstring before it is rendered."""

    def on_instance(self, *, obj, **_):
        """Rewrite the docstring of one module, class, function or attribute."""
        if obj.docstring:
            obj.docstring.value = with_lists(obj.docstring.value)
