"""Eight simulated CPU devices, strict dtypes, and annotations checked at run time."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_dtype_promotion", "strict")
# Nothing from one test to the next; processes that tests start keep theirs.
jax.config.update("jax_enable_compilation_cache", False)
install_import_hook("freeadv_jax", "typecheck.check")


@pytest.fixture(scope="session")
def trained_pair(tmp_path_factory):
    """Run folders of natural and Free-2 on digits, trained and evaluated: copy them."""
    from tiny_run import train_and_evaluate

    folder = tmp_path_factory.mktemp("pair")
    sparing = {"validation__every_passes": 2.0}
    return [
        train_and_evaluate(folder / method, method=method, updates=128, **sparing)
        for method in ("natural", "free")
    ]
