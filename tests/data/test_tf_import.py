import os
import subprocess
import sys

import pytest

from freeadv_jax.config import base_config
from freeadv_jax.data.dataset import load_dataset
from freeadv_jax.data.tf_import import without_notes
from freeadv_jax.errors import InputError

NOTES = """\
WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1795996944.226219    8168 port.cc:153] oneDNN custom operations are on.
W0000 00:00:1795996944.226220    8168 cuda.cc:1] no driver
"""
OTHERS = "E0000 00:00:1795996944.226221    8168 port.cc:1] a fault\nwarning: mine\n"


@pytest.mark.parametrize(("level", "shown"), [("1", ""), ("0", NOTES)])
def test_only_notes_are_kept_from_standard_error(level, shown, monkeypatch, capfd):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", level)
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    with pytest.raises(ImportError), without_notes():
        os.write(2, (NOTES + OTHERS).encode())
        raise ImportError
    os.write(2, b"after\n")
    assert capfd.readouterr().err == shown + OTHERS + "after\n"


def standard_error_of(script):
    """Return what a program that must succeed writes there."""
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


@pytest.mark.tensorflow
def test_tensorflow_is_imported_and_used_without_a_note():
    pytest.importorskip("tensorflow_datasets")
    script = (
        "from freeadv_jax.data.tf_import import import_tensorflow\n"
        "tf, _ = import_tensorflow('folder:x', extra='imagenet')\n"
        "tf.constant([1.0]) + 1.0"
    )
    assert standard_error_of(script) == ""


@pytest.mark.tensorflow
def test_tensorboard_is_written_without_a_note(tmp_path):
    pytest.importorskip("tensorflow")
    pytest.importorskip("clu")
    script = (
        "import pathlib\n"
        "from freeadv_jax.runs.metrics import MetricsLog\n"
        f"log = MetricsLog(pathlib.Path({str(tmp_path)!r}))\n"
        "log.write('train', step=1, loss=0.5)\n"
        "log.close()"
    )
    assert standard_error_of(script) == ""
    assert list(tmp_path.glob("tensorboard/events.out.tfevents.*"))


@pytest.mark.parametrize(
    ("name", "reader"),
    [("imagenet", "tf.data"), ("imagenet", "grain"), ("tfds:mnist", "tf.data")],
)
def test_a_bucket_that_tensorflow_cannot_read_is_refused(name, reader):
    fields = dict(base_config().data) | {
        "name": name,
        "dir": "s3://b/sets",
        "reader": reader,
    }
    message = f"^data.dir = 's3://b/sets': '{name}' is read by TensorFlow, from gs://"
    with pytest.raises(InputError, match=message):
        load_dataset(**fields)
