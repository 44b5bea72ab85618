"""Compiled programs kept on disk, so that a second start need not compile again."""

import pathlib

import jax

FOLDER = ".compiled"


def keep_compiled(workdir: pathlib.Path) -> None:
    """Keeps what this process compiles in `.compiled` beside the run folder `workdir`.

    JAX's own settings come first: JAX_COMPILATION_CACHE_DIR names another folder,
    JAX_ENABLE_COMPILATION_CACHE=false keeps nothing. The folder may be deleted at any
    time; a program in it that cannot be read is compiled again.
    """
    if jax.config.jax_compilation_cache_dir is None:
        folder = pathlib.Path(workdir).absolute().parent / FOLDER
        jax.config.update("jax_compilation_cache_dir", str(folder))
    # Small programs too: there are dozens before the first step.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
