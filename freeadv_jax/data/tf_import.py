"""Import TensorFlow where it is needed, and keep it away from the accelerator."""

import importlib

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


def import_tensorflow(name: str, *, extra: str):
    """Return (tensorflow, tensorflow_datasets) for the data set `name`.

    Raise InputError naming `extra`, 'tfds' or 'imagenet', if one of its modules is
    missing. TensorFlow sees no GPU afterwards: it would claim the memory that belongs to
    JAX.
    """
    try:
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
