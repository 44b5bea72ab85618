"""Adversarial training at the price of natural training, in JAX and Flax."""

import importlib
from typing import TYPE_CHECKING

from freeadv_jax.version import __version__

# Type checkers and the documentation read these imports, and do not run the code below.
if TYPE_CHECKING:
    from freeadv_jax.attacks.robustness import robust_accuracy
    from freeadv_jax.corrupted.accuracy import corruptions
    from freeadv_jax.runs.fit import fit
    from freeadv_jax.runs.load import load

__all__ = ["__version__", "corruptions", "fit", "load", "robust_accuracy"]

# Imported when somebody asks for them: JAX, Flax and Orbax take seconds to import.
_MODULES = {
    "corruptions": "freeadv_jax.corrupted.accuracy",
    "fit": "freeadv_jax.runs.fit",
    "load": "freeadv_jax.runs.load",
    "robust_accuracy": "freeadv_jax.attacks.robustness",
}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
