"""The site of docs/, as mkdocs builds it, where the extra `docs` is installed."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"


def test_every_page_is_in_the_navigation():
    # The theme's own tags are Python names, which are not needed here.
    text = re.sub(r"!!python\S+", "", (ROOT / "mkdocs.yml").read_text())
    nav = str(yaml.safe_load(text)["nav"])
    for path in DOCS.rglob("*.md"):
        assert f"'{path.relative_to(DOCS)}'" in nav, path


def test_links_out_of_docs_lead_to_the_repository_and_marks_are_left_out():
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)

    class File:
        src_uri = "results.md"

    class Page:
        file = File

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    address = project["urls"]["Repository"]
    text = "[a](../configs/digits_free8.py) [b](../none.py) [c](train.md)\n<!-- cost -->\n|x"
    assert hooks.on_page_markdown(text, page=Page) == (
        f"[a]({address}/blob/main/configs/digits_free8.py) [b](../none.py) [c](train.md)"
        "\n|x"
    )


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        check=True,
    )
    assert "Free-m" in (tmp_path / "index.html").read_text()
    assert (tmp_path / "api" / "index.html").exists()
    assert not (tmp_path / "hooks.py").exists()
