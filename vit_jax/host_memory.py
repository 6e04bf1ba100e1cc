"""The C library's allocator, for programs that XLA runs on the CPU.

A training step allocates and frees the same large buffers each time. glibc takes such
buffers from the kernel and gives them back each time too, and the kernel then clears
every page again: a third of the processor time of a small ViT's step went there.
"""

import ctypes
import importlib.metadata
import importlib.util
import sys

import jax

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> None:
    """Makes malloc keep what is freed, for the next step, where JAX runs on the CPU.

    One arena, because the heaps of others are too small for these buffers and mmap
    would serve them. Call it before JAX's devices are touched: that starts the threads
    that allocate. Does nothing where the C library is not glibc, or where JAX has an
    accelerator: one arena would slow down the many threads of a large input pipeline.
    """
    if not sys.platform.startswith("linux") or not cpu_alone():
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return
    libc.mallopt(M_ARENA_MAX, 1)
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, -1)  # unsigned: never give back
    libc.mallopt(M_TOP_PAD, 64 << 20)


def cpu_alone() -> bool:
    """Whether JAX will run on the CPU; told without starting a backend."""
    if platforms := jax.config.values["jax_platforms"]:
        return platforms.split(",")[0] == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and importlib.util.find_spec("libtpu") is None
