"""Prepare the pages of docs/ for the site: mkdocs calls these functions."""

import pathlib
import posixpath
import re
import tomllib

ROOT = pathlib.Path(__file__).parent.parent
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"][
    "Repository"
]
# Marks of the figures that `python -m benchmarks.readme` writes.
_MARK = re.compile(r"<!-- \w+ -->\n?")
_LINK = re.compile(r"\]\((\.\./[^)#\s]+)([^)\s]*)\)")


def on_page_markdown(markdown: str, page, **_) -> str:
    """Return the page without marks, its links out of docs/ led to the repository."""
    folder = posixpath.join("docs", posixpath.dirname(page.file.src_uri))

    def outside(link):
        path = posixpath.normpath(posixpath.join(folder, link[1]))
        # A missing file stays as it is: mkdocs then names it and fails.
        if path.startswith("docs/") or not (ROOT / path).exists():
            return link[0]
        return f"]({REPOSITORY}/blob/main/{path}{link[2]})"

    return _LINK.sub(outside, _MARK.sub("", markdown))
