"""The C library's allocator, for programs that XLA runs on the CPU.

A training step allocates and frees the same large buffers each time. glibc takes such
buffers from the kernel and gives them back each time too, and the kernel then clears
every page again: a third of the processor time of a small ViT's step went there.
"""

import ctypes
import importlib.metadata
import os
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


def physical_bytes() -> int:
    """The memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cpu_alone() -> bool:
    """Whether JAX will run on the CPU; told without starting a backend."""
    if platforms := jax.config.values["jax_platforms"]:
        return platforms.split(",")[0] == "cpu"
    # Importing jax has named the platform where there is a TPU: libtpu alone, which
    # planning needs, says nothing.
    return not importlib.metadata.entry_points(group="jax_plugins")


def leave_libtpu_alone() -> None:
    """Keeps JAX from loading libtpu where it is installed for planning alone.

    It would find no TPU and complain. Call it before JAX's devices are touched.
    """
    if cpu_alone():
        jax.config.update("jax_platforms", "cpu")
