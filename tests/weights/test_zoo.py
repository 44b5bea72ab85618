"""Models by name: the index, the cache folder, downloads and their checksums."""

import dataclasses
import functools
import hashlib
import http.server
import importlib.metadata
import logging
import re
import sys
import threading

import numpy as np
import pytest
import test_robustbench
from torch_states import wide_state

import freeadv_jax as fa
from freeadv_jax.errors import InputError
from freeadv_jax.export import main
from freeadv_jax.runs.load import saved_variables
from freeadv_jax.weights import zoo
from freeadv_jax.weights.tensors import read_tensors, write_tensors
from freeadv_jax.weights.transfer import flat_variables

NAME = "robustbench:Tiny2020Wide"
ENTRY = zoo.Entry(
    data="cifar10",
    threat="Linf",
    name="Tiny2020Wide",
    file="wide",
    model="wrn-10-1",
    mean=[0.5, 0.5, 0.5],
    std=[0.25, 0.25, 0.25],
    natural=80.0,
    robust=40.0,
    paper="https://example.org/paper",
)
# The name under which the server claims a longer file than it has.
CUT_OFF = "cut-off"


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        if self.path != f"/{CUT_OFF}":
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"half")

    def log_message(self, *_):
        pass


class Site:
    """A server on this machine, with an index of its own in place of the package's."""

    def __init__(self, folder, cache, monkeypatch):
        self.folder, self.cache, self._monkeypatch = folder, cache, monkeypatch
        self.server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Handler, directory=folder)
        )
        self.server.requests = []
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        write_tensors(folder / "wide", wide_state())
        self.sha256 = hashlib.sha256((folder / "wide").read_bytes()).hexdigest()
        self.file = cache / "robustbench/cifar10/Linf/Tiny2020Wide.pt"
        self.kept = self.file.with_name("Tiny2020Wide.pt.sha256")
        self.lists()

    def lists(self, **fields):
        """Put one entry into the index."""
        address = f"http://127.0.0.1:{self.server.server_port}/{{file}}"
        entries = (dataclasses.replace(ENTRY, **fields),)
        made = zoo.Index("a test", address, entries)
        self._monkeypatch.setattr(zoo, "index", lambda: made)

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setenv("FREEADV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    # The server's files are safetensors, so that these tests need no PyTorch.
    monkeypatch.setattr(
        "freeadv_jax.weights.from_torch.read_state",
        lambda path, key=None: read_tensors(path),
    )
    (tmp_path / "served").mkdir()
    site = Site(tmp_path / "served", tmp_path / "cache", monkeypatch)
    yield site
    site.stop()


def refused(name=NAME):
    with pytest.raises(InputError) as raised:
        fa.load(name)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_a_name_is_downloaded_once_and_loaded_with_what_the_index_says(site, caplog):
    classifier = fa.load(NAME)
    description = classifier.description
    assert description["model"] == "wrn-10-1"
    assert (description["mean"], description["std"]) == ([0.5] * 3, [0.25] * 3)
    assert description["threat"] == {"norm": "linf", "epsilon": 8 / 255}
    assert description["origin"] == {
        "name": "robustbench:cifar10/Linf/Tiny2020Wide",
        "sha256": site.sha256,
        "data": "cifar10",
        "published": {
            "natural": 80.0,
            "autoattack": 40.0,
            "paper": "https://example.org/paper",
            "source": "a test",
        },
    }
    site.stop()
    again = fa.load("robustbench:cifar10/Linf/Tiny2020Wide")
    assert site.server.requests == ["/wide"]
    images = np.random.default_rng(0).uniform(size=(2, 32, 32, 3)).astype(np.float32)
    plain = fa.load(site.file, mean=0.5, std=0.25, model="wrn-10-1")
    for other in (again, plain):
        np.testing.assert_array_equal(other(images), classifier(images))


def test_an_unpublished_checksum_is_told_once_and_kept_for_the_next_load(site, caplog):
    with caplog.at_level(logging.WARNING):
        fa.load(NAME)
    (record,) = caplog.records
    assert site.sha256 in record.getMessage()
    assert "\n" not in record.getMessage()
    assert site.kept.read_text() == f"{site.sha256}  Tiny2020Wide.pt\n"
    caplog.clear()
    fa.load(NAME)
    assert not caplog.records
    site.file.write_bytes(site.file.read_bytes()[:-4] + b"????")
    message = refused()
    assert f"{site.kept} says {site.sha256}: remove {site.file} to" in message


@pytest.mark.parametrize("published", [True, False])
def test_a_download_of_another_checksum_is_refused_and_not_kept(published, site):
    wrong = "0" * 64
    if published:
        site.lists(sha256=wrong)
    else:
        site.kept.parent.mkdir(parents=True)
        site.kept.write_text(f"{wrong}  Tiny2020Wide.pt\n")
    message = refused()
    source = "the index" if published else site.kept
    assert f"has the SHA-256 {site.sha256}, and {source} says {wrong}" in message
    kept = {path.name for path in site.kept.parent.iterdir()}
    assert kept == (set() if published else {site.kept.name})


def test_a_published_checksum_is_checked_at_every_load(site, caplog):
    site.lists(sha256=site.sha256)
    fa.load(NAME)
    assert not caplog.records
    assert not site.kept.exists()
    site.file.write_bytes(b"something else")
    assert f"the index says {site.sha256}" in refused()


def test_a_file_of_another_network_is_refused_and_its_checksum_is_not_kept(site):
    site.lists(model="wrn-10-2")
    assert "[16] instead of [32]" in refused()
    site.lists(data="cifar100")
    assert "fc.weight [10, 64] instead of [100, 64]" in refused()
    assert not list(site.cache.rglob("*.sha256"))


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("none", "404"),
        ("page.html", "a web page in place of the file"),
        (CUT_OFF, "4 of 1,000 bytes came"),
    ],
)
def test_without_the_file_the_message_says_which_to_put_where(file, reason, site):
    (site.folder / "page.html").write_text("<html>Too many downloads</html>")
    site.lists(file=file)
    address = zoo.index().address.format(file=file)
    message = refused()
    assert reason in message
    assert message.endswith(f"download {address} elsewhere and put it at {site.file}")
    assert not [path for path in site.cache.rglob("*") if path.is_file()]


def test_without_the_network_a_file_that_was_put_there_is_loaded(site):
    site.stop()
    assert f"put it at {site.file}" in refused()
    write_tensors(site.file, wide_state())
    assert fa.load(NAME).num_classes == 10


def test_the_normalisation_of_the_file_comes_before_that_of_the_index(site):
    buffers = {"mu": np.full(3, 0.25), "sigma": np.full(3, 0.125)}
    write_tensors(site.folder / "wide", wide_state() | buffers)
    description = fa.load(NAME).description
    assert (description["mean"], description["std"]) == ([0.25] * 3, [0.125] * 3)


def test_the_command_exports_an_entry_and_init_takes_its_weights(site, tmp_path):
    main(["export", f"--torch={NAME}", f"--out={tmp_path / 'out'}"])
    exported = fa.load(tmp_path / "out")
    assert exported.description["origin"]["sha256"] == site.sha256
    found, ours = saved_variables(NAME), flat_variables(exported.variables)
    assert found.keys() == ours.keys()
    for path, array in ours.items():
        np.testing.assert_array_equal(array, found[path])


@pytest.mark.torch
def test_a_file_of_pytorch_is_loaded_by_its_name(site, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.undo()
    monkeypatch.setenv("FREEADV_CACHE", str(site.cache))
    monkeypatch.setenv("no_proxy", "*")
    site.lists(key="last")
    states = [
        {f"module.{name}": torch.tensor(x * factor) for name, x in wide_state().items()}
        for factor in (1.0, 0.5)
    ]
    torch.save({"last": states[0], "best": states[1]}, site.folder / "wide")
    bias = fa.load(NAME).variables["params"]["network"]["Dense_0"]["bias"]
    np.testing.assert_array_equal(bias, states[0]["module.fc.bias"].numpy())


def test_a_name_alone_is_that_of_cifar10_and_linf():
    assert zoo.find_entry("robustbench:Wong2020Fast").path == (
        "cifar10/Linf/Wong2020Fast"
    )
    entry = zoo.find_entry("robustbench:imagenet/Linf/Wong2020Fast")
    assert entry.model == "resnet-50"
    assert entry.attack == {"norm": "linf", "epsilon": 4 / 255}
    assert zoo.find_entry("robustbench:Salman2020Do_R18").data == "imagenet"
    corruptions = "robustbench:cifar10/corruptions/Modas2021PRIMEResNet18"
    assert zoo.find_entry(corruptions).attack is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("robustbench:Wong2020Fst", "did you mean 'Wong2020Fast'? allowed: "),
        ("robustbench:", "allowed: cifar10/Linf/Andriushchenko2020Understanding, cif"),
        (
            "robustbench:Gowal2020Uncovering",
            (
                "more than once: give robustbench:cifar10/L2/Gowal2020Uncovering or "
                "robustbench:cifar100/Linf/Gowal2020Uncovering"
            ),
        ),
    ],
)
def test_a_name_that_is_unknown_or_of_several_is_refused(name, reason):
    assert reason in refused(name)


def test_an_entry_takes_the_arguments_of_a_file_alone(site):
    with pytest.raises(InputError, match="is a file of weights; allowed: last"):
        fa.load(NAME, checkpoint="best")
    with pytest.raises(InputError, match="model 'wrn-1' has no PyTorch form"):
        fa.load(NAME, model="wrn-1")


def test_the_cache_folder_is_the_platforms_unless_one_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("FREEADV_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert zoo.cache_folder() == tmp_path / ".cache/freeadv_jax"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert zoo.cache_folder() == tmp_path / "Library/Caches/freeadv_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert zoo.cache_folder() == tmp_path / "xdg/freeadv_jax"
    monkeypatch.setenv("FREEADV_CACHE", "~/mine")
    assert zoo.cache_folder() == tmp_path / "mine"


def test_the_index_has_each_entry_once_and_agrees_with_the_table_of_the_guide():
    entries = zoo.index().entries
    assert len({entry.path for entry in entries}) == len(entries) >= 145
    table = {
        (row["data"], row["threat"], row["entry"]): row for row in test_robustbench.ROWS
    }
    for entry in entries:
        row = table[entry.data, entry.threat, entry.name]
        assert entry.model == row["model"]
        for listed, numbers in ((row["mean"], entry.mean), (row["std"], entry.std)):
            np.testing.assert_array_equal(np.broadcast_to(listed, 3), numbers)
        assert 0 <= entry.robust < entry.natural < 100
        assert re.fullmatch(r"https?://\S+", entry.paper)


@pytest.mark.slow
@pytest.mark.torch
def test_the_index_names_the_files_and_the_figures_of_the_package():
    test_robustbench.definitions()
    page = importlib.metadata.metadata("robustbench").get_payload()
    figures = re.findall(r"<sup>\*\*([\w.-]+)\*\*</sup>.*?([\d.]+)%.*?([\d.]+)%", page)
    figures = {(name, float(x), float(y)) for name, x, y in figures}
    dicts = sys.modules["robustbench.model_zoo"].model_dicts
    files = {
        (data.value, threat.value, name): entry["gdrive_id"]
        for data, threats in dicts.items()
        for threat, entries in threats.items()
        for name, entry in entries.items()
    }
    for entry in zoo.index().entries:
        assert files[entry.data, entry.threat, entry.name] == entry.file
        assert (entry.name, entry.natural, entry.robust) in figures
