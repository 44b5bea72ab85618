"""launch/colab.ipynb: its form in git, and the output of its cells."""

import base64
import json
import pathlib
import re

import pytest
import quick_compilation

nbformat = pytest.importorskip("nbformat")

ROOT = pathlib.Path(__file__).parents[2]
PATH = ROOT / "launch" / "colab.ipynb"
NOTEBOOK = nbformat.read(PATH, as_version=4)
CODE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
PNG = b"\x89PNG\r\n\x1a\n"


def test_notebook_in_git_is_valid_and_holds_no_outputs():
    nbformat.validate(NOTEBOOK)
    assert len(CODE) > 5
    for cell in CODE:
        assert cell.outputs == []
        assert cell.execution_count is None
    assert "widgets" not in NOTEBOOK.metadata


def test_every_configuration_named_exists():
    named = re.findall(r"configs/\w+\.py", "\n".join(cell.source for cell in CODE))
    assert len(named) == 3
    for path in named:
        assert (ROOT / path).exists(), path


def test_the_notebook_holds_no_algorithm():
    """The notebook uses neither JAX nor the package, except to read a run and its data."""
    imported = re.findall(
        r"^(?:import|from) (\S+)", "\n".join(cell.source for cell in CODE), re.MULTILINE
    )
    assert {name for name in imported if name.startswith("freeadv_jax")} == {
        "freeadv_jax.data.dataset",
        "freeadv_jax.runs.folder",
    }
    assert not {"jax", "flax", "optax"} & {name.split(".")[0] for name in imported}


@pytest.mark.thorough
def test_its_quick_path_shows_that_free_8_is_robust_and_natural_training_is_not(
    tmp_path, monkeypatch
):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    # The kernel and its commands use this package, on one device.
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XLA_FLAGS", quick_compilation.FLAGS)
    notebook = nbformat.read(PATH, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert "error" not in {output.output_type for output in outputs}
    shown = [output.data for output in outputs if "data" in output]
    pictures = [
        base64.b64decode(data["image/png"]) for data in shown if "image/png" in data
    ]
    assert len(pictures) == 3  # The curves, and the images of either network.
    assert all(picture.startswith(PNG) for picture in pictures)

    def evaluation(folder):
        return json.loads((tmp_path / folder / "results.json").read_text())[
            "evaluation"
        ]

    (table,) = [data["text/markdown"] for data in shown if "text/markdown" in data]
    rows = {}
    for name in ("digits_natural", "digits_free8"):
        rows[name] = evaluation(f"runs/{name}")
        for attack, row in rows[name].items():
            assert f" {attack} " in table
            assert f"**{100 * row['accuracy']:.1f}** " in table
        # The pictures show the images that the attack counted.
        said = evaluation(f"runs/{name}/attacked")["natural"]["correct"]
        assert said == rows[name]["pgd-20"]["correct"]
        assert rows[name]["natural"]["accuracy"] > 0.95
    assert rows["digits_natural"]["pgd-20"]["accuracy"] <= 0.25
    assert rows["digits_free8"]["pgd-20"]["accuracy"] >= 0.4
