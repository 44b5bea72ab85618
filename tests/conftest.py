"""Eight simulated CPU devices, strict dtypes, and annotations checked at run time."""

import logging
import os
import tempfile

import quick_compilation

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Flags given in the environment stay: the last stage of .ci/run compiles as users do.
given = os.environ.get("XLA_FLAGS", "")
if "xla_backend_optimization_level" not in given:
    given = f"{quick_compilation.FLAGS} {given}"
os.environ["XLA_FLAGS"] = f"{given} --xla_force_host_platform_device_count=8"

import bucket_servers
import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_dtype_promotion", "strict")
install_import_hook("freeadv_jax", "typecheck.check")


def pytest_configure(config):
    """Compile a program once for all tests, the processes they start and later runs.

    Half the time of the tests is compilation. `pytest --cache-clear` deletes what was
    kept, and `pytest -p no:cacheprovider` keeps nothing after the run.
    """
    if config.pluginmanager.hasplugin("cacheprovider"):
        folder = str(config.cache.mkdir("compiled"))
    else:
        temporary = tempfile.TemporaryDirectory(prefix="compiled-")
        config.add_cleanup(temporary.cleanup)
        folder = temporary.name
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(autouse=True)
def silent_library():
    """Undo what a command of another test, or of a fixture, did to the library's logger.

    Its handlers hold standard output as it was then, and keep messages from `caplog`.
    """
    logger = logging.getLogger("freeadv_jax")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


@pytest.fixture(scope="session")
def running_buckets():
    """Hold the servers of buckets and their ports, from the first use of each to the end.

    The clients are kept by their libraries and go on with the port that they began with.
    """
    servers = {}
    yield servers
    for process, _ in servers.values():
        process.kill()
        process.wait()


@pytest.fixture(scope="session", params=bucket_servers.BUCKETS)
def store(request, running_buckets):
    """Return the address of an empty bucket of S3, or of Google's storage, served here."""
    pytest.importorskip({"s3": "s3fs", "gs": "gcsfs"}[request.param])
    pytest.importorskip({"s3": "moto", "gs": "gcp_storage_emulator"}[request.param])
    if request.param not in running_buckets:
        running_buckets[request.param] = bucket_servers.start(request.param)
    _, port = running_buckets[request.param]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in bucket_servers.variables(request.param, port).items():
            patch.setenv(name, value)
        yield f"{request.param}://bucket"


@pytest.fixture
def bucket(store, request):
    """Return the path of an empty folder in a bucket."""
    from freeadv_jax.files import as_path

    return as_path(f"{store}/{abs(hash(request.node.nodeid)):x}")


@pytest.fixture(scope="session")
def trained_pair(tmp_path_factory):
    """Return run folders of natural and Free-2 on digits; a test that writes copies them."""
    from tiny_run import train_and_evaluate

    folder = tmp_path_factory.mktemp("pair")
    sparing = {"validation__every_passes": 2.0}
    return [
        train_and_evaluate(folder / method, method=method, updates=128, **sparing)
        for method in ("natural", "free")
    ]
