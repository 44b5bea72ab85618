"""Import TensorFlow where it is needed, and keep it away from the accelerator."""

import contextlib
import importlib
import os
import re
import sys
import tempfile

from freeadv_jax.errors import InputError, one_line

# The modules of each extra of setup.py, in the order of the message that names them.
# tensorflow-datasets needs importlib_resources and does not declare it.
_MODULES = {
    "tfds": ("importlib_resources", "tensorflow", "tensorflow_datasets"),
    "imagenet": ("importlib_resources", "tensorflow", "tensorflow_datasets", "PIL"),
}
_NEEDED = {
    "tfds": "TensorFlow and tensorflow-datasets",
    "imagenet": "TensorFlow, tensorflow-datasets and Pillow",
}

_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
# "I0000 00:00:1795996944.226219    8168 port.cc:153] oneDNN custom operations are on. ..."
_NOTE = re.compile(
    rb"[IW]\d{4} \d\d:\d\d:[\d.]+ |WARNING: All log messages before absl"
)


def import_tensorflow(name: str, *, extra: str):
    """Return (tensorflow, tensorflow_datasets) for the data set `name`.

    Raise InputError naming `extra`, 'tfds' or 'imagenet', if one of its modules is
    missing. TensorFlow sees no GPU afterwards: it would claim the memory that belongs to
    JAX.
    """
    try:
        with without_notes():
            for module in _MODULES[extra]:
                importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"{name!r} needs {_NEEDED[extra]} ({one_line(error)}); "
            f"pip install 'freeadv_jax[{extra}]'"
        ) from error
    import tensorflow as tf
    import tensorflow_datasets as tfds

    tf.config.set_visible_devices([], "GPU")
    return tf, tfds


@contextlib.contextmanager
def without_notes():
    """Import TensorFlow without its notes about itself, from I0000 to W0000.

    They are shown where the environment has TF_CPP_MIN_LOG_LEVEL=0. The other lines of
    standard error follow at the end.
    """
    level = os.environ.get(_LEVEL)
    if level == "0" or "tensorflow" in sys.modules:
        yield
        return
    # JAX sets it to 1, which shows warnings.
    if level in (None, "1"):
        os.environ[_LEVEL] = "2"
    # While TensorFlow's libraries are loaded they write whatever that level is.
    sys.stderr.flush()
    with tempfile.TemporaryFile() as written:
        shown = os.dup(2)
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(shown, 2)
            os.close(shown)
            written.seek(0)
            for line in written:
                if not _NOTE.match(line):
                    os.write(2, line)


def check_bucket(directory: str, name: str) -> None:
    """Raise InputError for the data set `name` in a bucket that TensorFlow cannot read."""
    scheme, found, _ = directory.partition("://")
    if found and scheme != "gs":
        raise InputError(
            f"data.dir = '{directory}': '{name}' is read by TensorFlow, from gs://... or a "
            "folder: mount or copy it"
        )
