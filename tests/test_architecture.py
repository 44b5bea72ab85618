"""The package has two layers, and each fact lives in one module."""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "freeadv_jax"
MODULES = sorted(PACKAGE.rglob("*.py"))


def part_of(path):
    """Return the folder or module of the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


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
    assert importers("orbax") == {"runs/checkpoint.py"}


def _names_a_map(node):
    """Return whether this is JAX's pmap or shard_map, however it was imported."""
    if isinstance(node, ast.ImportFrom):
        module = (node.module or "").split(".")
        names = {alias.name for alias in node.names} | {module[-1]}
        return module[0] == "jax" and bool(names & {"pmap", "shard_map"})
    return (
        isinstance(node, ast.Attribute)
        and node.attr in ("pmap", "shard_map")
        and isinstance(node.value, ast.Name)
        and node.value.id == "jax"
    )


def test_only_parallel_maps_over_devices():
    callers = {
        str(path.relative_to(PACKAGE))
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if _names_a_map(node)
    }
    assert callers == {"devices/parallel.py"}


def test_only_one_module_parses_command_lines():
    assert not importers("absl")
    makers = {
        str(path.relative_to(PACKAGE))
        for path in MODULES
        if "argparse.ArgumentParser" in path.read_text()
    }
    assert makers == {"command.py"}


def test_only_one_module_knows_pytorch_and_one_safetensors():
    assert importers("torch") == {"weights/torch.py"}
    assert importers("safetensors") == {"weights/tensors.py"}


def test_only_one_module_knows_the_library_of_corruptions_and_one_the_hub():
    assert importers("imagecorruptions") == {"corrupted/images.py"}
    assert importers("huggingface_hub") == {"runs/hub.py"}


def test_only_one_module_knows_the_clients_of_buckets():
    assert importers("etils", "fsspec", "gcsfs", "s3fs") == {"files/buckets.py"}


def test_figures_and_pages_are_imported_only_when_made():
    late = {"matplotlib", "PIL", "jinja2"}
    assert importers(*late) == {
        "analysis/plotting.py",
        "data/grain_stream.py",  # It says what is missing.
        "data/pillow.py",
        "gallery/defences/jpeg.py",  # A codec of images is this defence.
        "report/page.py",
        "report/pictures.py",
    }
    for path in MODULES:
        top = {name.split(".")[0] for name in imports(path, top_level_only=True)}
        assert not top & late, path


def test_only_the_commands_that_look_need_the_analyses():
    for path in MODULES:
        if part_of(path) not in ("analysis", "report", "gallery"):
            used = set(imports(path))
            assert not any(
                name.startswith(("freeadv_jax.analysis", "freeadv_jax.report"))
                for name in used
            ), path


def test_only_what_reads_tensorflow_datasets_and_tensorboard_needs_tensorflow():
    tensorflow = ("tensorflow", "tensorflow_datasets", "clu", "tensorboard")
    encoded = {"jpeg", "stream", "imagenet", "imagenet_records", "folder", "tf_import"}
    assert importers(*tensorflow) == {
        "runs/metrics.py",
        *(f"data/{module}.py" for module in encoded),
    }
    for path in MODULES:
        top = {name.split(".")[0] for name in imports(path, top_level_only=True)}
        assert not top & set(tensorflow), path


# The library, from the bottom up, with the other parts that each part may import. None
# of them knows a configuration, run folder, report or command.
LIBRARY = {
    "version": set(),
    "errors": set(),
    "pickles": set(),
    "intervals": set(),
    "progress": set(),
    "pixels": {"errors"},
    "devices": {"errors"},
    "files": {"errors", "devices"},
    "models": {"errors", "devices"},
    "data": {"errors", "devices", "files", "pickles", "pixels", "progress"},
    "certify": {
        "errors",
        "files",
        "intervals",
        "pixels",
        "progress",
        "devices",
        "models",
    },
    # A table of attacks has rows of certificates beside them, and compares the two.
    "attacks": {
        "errors",
        "devices",
        "pixels",
        "progress",
        "intervals",
        "models",
        "certify",
    },
    "training": {"errors", "devices", "pixels", "models", "attacks", "certify"},
    "corrupted": {
        "errors",
        "intervals",
        "progress",
        "pixels",
        "devices",
        "files",
        "models",
        "attacks",
    },
    "weights": {
        "errors",
        "pickles",
        "progress",
        "devices",
        "files",
        "models",
        "version",
    },
}


@pytest.mark.parametrize("part", sorted(LIBRARY))
def test_the_library_imports_only_what_lies_below_it(part):
    for path in MODULES:
        if part_of(path) == part:
            used = {
                name.split(".")[1]
                for name in imports(path)
                if name.startswith("freeadv_jax.")
            }
            assert used <= LIBRARY[part] | {part}, path


def test_the_library_prints_nothing():
    for path in MODULES:
        if part_of(path) in LIBRARY:
            names = {
                node.id
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Name)
            }
            assert "print" not in names, path


def test_a_defence_knows_the_library_and_no_page_or_folder():
    """A user takes a defence without the gallery around it."""
    own = {
        f"freeadv_jax.gallery.{name}" for name in ("defence", "defences", "training")
    }
    for path in (PACKAGE / "gallery" / "defences").glob("*.py"):
        for name in imports(path):
            if name.startswith("freeadv_jax.gallery."):
                assert any(name.startswith(allowed) for allowed in own), (path, name)
            elif name.startswith("freeadv_jax."):
                part = name.split(".")[1]
                # The hint at the extra that holds Pillow.
                assert part in LIBRARY or name.startswith(
                    "freeadv_jax.analysis.plotting"
                ), (path, name)


def test_imports_form_no_circle():
    names = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(
            ".__init__"
        ): path
        for path in MODULES
    }
    # The package imports each name that it offers when somebody asks for it.
    face = "freeadv_jax"
    above = {
        name: {used for used in imports(path) if used in names} - {name, face}
        for name, path in names.items()
        if name != face
    }
    list(graphlib.TopologicalSorter(above).static_order())


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_module_has_a_docstring(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_importing_the_package_touches_no_device_and_no_tensorflow():
    program = (
        "import sys, freeadv_jax, freeadv_jax.config, freeadv_jax.runs.results;"
        "import freeadv_jax.runs.train;"
        "from jax._src import xla_bridge;"
        "assert not xla_bridge.backends_are_initialized();"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=PACKAGE.parent)
