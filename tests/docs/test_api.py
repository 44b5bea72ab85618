"""The public names: each has a docstring, an entry in docs/api and a use in a guide."""

import importlib
import importlib.util
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
API = "".join(path.read_text() for path in (ROOT / "docs" / "api").glob("*.md"))
GUIDES = "".join(
    block
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
    for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)
)
LISTED = re.findall(r"^::: (\S+)$", API, re.MULTILINE)


def public_names():
    for module in ("freeadv_jax", "freeadv_jax.attacks", "freeadv_jax.certify"):
        for name in importlib.import_module(module).__all__:
            if not name.startswith("__"):
                yield f"{module}.{name}"


def resolved(path):
    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("path", [*public_names()])
def test_every_public_name_is_listed_and_functions_are_used_in_a_guide(path):
    assert path in LISTED
    if not isinstance(resolved(path), type):
        assert re.search(rf"\b{path.rsplit('.', 1)[1]}\(", GUIDES)


@pytest.mark.parametrize("path", LISTED)
def test_every_listed_name_exists_and_has_a_docstring(path):
    found = resolved(path)
    assert callable(found)
    assert not found.__doc__.startswith(f"{found.__name__}(")  # A dataclass's own.


@pytest.mark.parametrize("path", [*public_names()])
def test_docstrings_of_public_functions_begin_with_a_verb(path):
    found = resolved(path)
    if not isinstance(found, type):
        first = found.__doc__.split()[0]
        assert first[0].isupper() and first[-1] not in "s.,:", first


def test_aligned_lists_of_docstrings_become_lists_of_markdown():
    pytest.importorskip("griffe")
    spec = importlib.util.spec_from_file_location("d", ROOT / "docs" / "docstrings.py")
    docstrings = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(docstrings)
    text = (
        "First line.\n\nrows    one row\n        more of it\nrobust  bool[n]\n\nLast."
    )
    assert docstrings.with_lists(text) == (
        "First line.\n\n- `rows`: one row\n    more of it\n- `robust`: bool[n]\n\nLast."
    )
    assert (
        docstrings.with_lists("a sentence\nof two lines") == "a sentence\nof two lines"
    )
