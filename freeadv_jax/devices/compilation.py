"""Compiled programs on disk, which a second start need not compile again."""

import pathlib

import jax

FOLDER = ".compiled"


def keep_compiled(workdir: pathlib.Path) -> None:
    """Keep the programs of this process in `.compiled` beside the run folder `workdir`.

    JAX's own settings come first: JAX_COMPILATION_CACHE_DIR names another folder, and
    JAX_ENABLE_COMPILATION_CACHE=false keeps nothing. The folder may be deleted at any
    time; a program that cannot be read is compiled again.
    """
    if jax.config.jax_compilation_cache_dir is None:
        folder = pathlib.Path(workdir).absolute().parent / FOLDER
        jax.config.update("jax_compilation_cache_dir", str(folder))
    # Small programs are kept too: dozens of them run before the first step.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
