"""Comments, docstrings and pages are plain sentences: subject, verb, object."""

import ast
import io
import pathlib
import re
import tokenize

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted(
    path
    for folder in ("freeadv_jax", "configs", "benchmarks", "tests", "docs")
    for path in (ROOT / folder).rglob("*.py")
)
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])

# These words postpone a sentence's subject or verb.
RIDDLE = re.compile(
    r"(?:^|[.!?:]\s+)(Of|So|Such|What|Which|Nor|Hardly|Whatever|Also)\s[^?]*?(?:[.]|$)"
)
# Docstrings that begin with one of these words begin with no imperative.
NO_VERBS = {"A", "An", "The", "This", "These", "Of", "Whether", "InputError", "Its"}


def comments(path):
    """Yield the comments of a file, those of adjacent lines joined."""
    source = io.StringIO(path.read_text())
    block, last = [], None
    for token in tokenize.generate_tokens(source.readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            if last != (row - 1, column):
                yield " ".join(block)
                block = []
            block.append(token.string.lstrip("# "))
            last = row, column
    yield " ".join(block)


def documented(path):
    """Yield (name, docstring, node) of the module and its definitions."""
    tree = ast.parse(path.read_text())
    kinds = ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | kinds) and ast.get_docstring(node):
            yield getattr(node, "name", path.stem), ast.get_docstring(node), node


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_sentence_postpones_its_subject(path):
    texts = [*comments(path), *(text for _, text, _ in documented(path))]
    found = [
        match[0].strip()
        for text in texts
        for part in text.split("\n\n")
        for match in RIDDLE.finditer(" ".join(part.split()))
    ]
    assert not found


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_sentence_of_a_page_postpones_its_subject(path):
    prose = re.sub(r"(?ms)^ *```.*?^ *```$", "\n", path.read_text())
    prose = re.sub(r"(?m)^(\||#|<!--).*$", "\n", prose)
    prose = re.sub(r"(?m)^ *(-|\d\.) ", "\n", prose)
    found = [
        match[0].strip()
        for part in prose.split("\n\n")
        for match in RIDDLE.finditer(" ".join(part.split()))
    ]
    assert not found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_docstrings_of_functions_begin_with_an_imperative(path):
    for name, text, node in documented(path):
        # A test's name is its statement, and its docstring adds to it.
        private = name.startswith(("_", "test_"))
        if not isinstance(node, ast.FunctionDef) or private:
            continue
        properties = {"property", "cached_property"}
        if any(
            getattr(d, "id", getattr(d, "attr", "")) in properties
            for d in node.decorator_list
        ):
            continue
        first = re.match(r"\W*([\w-]+)", text)[1]
        assert first[0].isupper(), (name, text)
        assert first not in NO_VERBS, (name, text)
        # The third person: Returns, Gives. An imperative in -ss is one: Pass.
        assert not re.fullmatch(r"[A-Z][a-z]+[^s]s", first), (name, text)


def test_a_riddle_is_found():
    assert RIDDLE.search("Of the training set.")
    assert RIDDLE.search("It is fast. So many the losses want.")
    assert RIDDLE.search("Nor where others are further on.")
    assert not RIDDLE.search("The losses of these need so many classes.")
