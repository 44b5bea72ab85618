"""TensorFlow, imported where it is needed and kept away from the accelerator."""

from freeadv_jax.errors import InputError


def import_tensorflow(name: str, *, extra: str):
    """(tensorflow, tensorflow_datasets), for the data set `name`.

    InputError naming the `extra` that brings them, where one is missing.
    """
    try:
        # tensorflow-datasets needs importlib_resources and does not declare it.
        import importlib_resources  # noqa: F401
        import tensorflow as tf
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise InputError(
            f"{name!r} needs TensorFlow and tensorflow-datasets "
            f"({first_line(error)}); pip install 'freeadv_jax[{extra}]'"
        ) from error
    # TensorFlow would claim the accelerator's memory, which belongs to JAX.
    tf.config.set_visible_devices([], "GPU")
    return tf, tfds


def first_line(error: Exception) -> str:
    """The first line of what an error says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else "no reason given"
