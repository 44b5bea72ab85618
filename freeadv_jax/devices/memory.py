"""The C library's memory: kept from one call of a program to the next."""

import ctypes
import platform

# The options of glibc's `mallopt` (malloc.h), in the order in which they are set.
_ONE_ARENA, _NO_MAPPED_BLOCKS, _TRIM_FROM = (-8, 1), (-4, 0), (-1, 2**31 - 1)


def keep_memory() -> bool:
    """Keep freed memory of this process for later calls, up to 2 GB; return whether.

    XLA's CPU backend requests the memory of a program at each call. By default glibc takes
    large blocks from the system each time, whose pages are slow at first access: a fifth of
    the time of attacks, whose calls are short (docs/performance.md). Call this before JAX's
    first computation, because a thread keeps the memory pool that it began with. It does
    nothing where the C library is another one.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(
        mallopt(*setting) for setting in (_ONE_ARENA, _NO_MAPPED_BLOCKS, _TRIM_FROM)
    )
