"""The rules that keep each fact about the world in one module."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "freeadv_jax"
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(path, *, top_level_only=False):
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def importers(*packages):
    return {
        str(path.relative_to(PACKAGE))
        for path in MODULES
        for name in imports(path)
        if name.split(".")[0] in packages
    }


def test_only_checkpoint_knows_orbax():
    assert importers("orbax") == {"checkpoint.py"}


def test_only_parallel_calls_pmap():
    callers = {
        str(path.relative_to(PACKAGE))
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "pmap"
    }
    assert callers == {"parallel.py"}


def test_only_the_command_line_modules_read_flags():
    assert importers("absl") <= {"main.py", "export.py", "evaluate.py"}


def test_only_one_module_knows_pytorch_and_one_safetensors():
    assert importers("torch") == {"torch_weights.py"}
    assert importers("safetensors") == {"tensors.py"}


def test_figures_and_pages_are_imported_only_when_made():
    late = {"matplotlib", "PIL", "jinja2"}
    assert importers(*late) == {
        "analysis/plotting.py",
        "report/page.py",
        "report/pictures.py",
    }
    for path in MODULES:
        top = {name.split(".")[0] for name in imports(path, top_level_only=True)}
        assert not top & late, path


def test_only_the_commands_that_look_need_the_analyses():
    for path in MODULES:
        if path.parent.name not in ("analysis", "report"):
            used = set(imports(path))
            assert not any(
                name.startswith(("freeadv_jax.analysis", "freeadv_jax.report"))
                for name in used
            ), path


def test_only_what_reads_tensorflow_datasets_and_tensorboard_needs_tensorflow():
    tensorflow = ("tensorflow", "tensorflow_datasets", "clu", "tensorboard")
    encoded = {"jpeg", "stream", "imagenet", "folder", "tf_import"}
    assert importers(*tensorflow) == {
        "metrics.py",
        *(f"data/{module}.py" for module in encoded),
    }
    for path in MODULES:
        top = {name.split(".")[0] for name in imports(path, top_level_only=True)}
        assert not top & set(tensorflow), path


@pytest.mark.parametrize(
    ("folder", "allowed"),
    [
        ("attacks", {"attacks", "errors", "parallel"}),
        ("models", {"models", "errors"}),
        ("data", {"data", "errors", "metrics", "parallel"}),
        ("training", {"training", "attacks", "state"}),
    ],
)
def test_arrows_run_one_way(folder, allowed):
    for path in (PACKAGE / folder).rglob("*.py"):
        used = {
            name.split(".")[1]
            for name in imports(path)
            if name.startswith("freeadv_jax.")
        }
        assert used <= allowed, path


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_module_is_longer_than_three_hundred_lines_or_lacks_its_docstring(path):
    source = path.read_text()
    assert len(source.splitlines()) <= 300
    assert ast.get_docstring(ast.parse(source))


def test_importing_the_package_touches_no_device_and_no_tensorflow():
    program = (
        "import sys, freeadv_jax, freeadv_jax.config, freeadv_jax.evaluation;"
        "import freeadv_jax.train;"
        "from jax._src import xla_bridge;"
        "assert not xla_bridge.backends_are_initialized();"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=PACKAGE.parent)
