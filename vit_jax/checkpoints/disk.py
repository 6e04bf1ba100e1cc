"""A full disk, told once and in words."""

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from vit_jax.errors import UserError

_NUMBERS = (errno.ENOSPC, errno.EDQUOT)


def check_space(directory: epath.Path, state: Any) -> None:
    """Refuses to write a state that is larger than what is free.

    Looking first is kinder than failing in the middle, and leaves no half-written
    directory. Object stores have no end that one could look at.

    Raises:
      UserError: with both sizes.
    """
    if "://" in os.fspath(directory):
        return
    needed = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise UserError(
            f"no space left to write a checkpoint in {directory}: it needs up to "
            f"{needed / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free. The ones before "
            "it are whole: free some space and run the same command again"
        )


@contextlib.contextmanager
def space_needed(directory: epath.Path) -> Iterator[None]:
    """Turns the errors of a full disk into a UserError."""
    try:
        yield
    except (OSError, ValueError) as error:
        if not is_disk_full(error):
            raise
        raise UserError(
            f"no space left to write a checkpoint in {directory}. The ones before it "
            "are whole: free some space and run the same command again"
        ) from error


def is_disk_full(error: BaseException) -> bool:
    """Whether an error of Orbax or TensorStore means that there is no space left.

    >>> is_disk_full(ValueError("RESOURCE_EXHAUSTED: ... No space left on device"))
    True
    """
    if isinstance(error, OSError) and error.errno in _NUMBERS:
        return True
    return any(os.strerror(number) in str(error) for number in _NUMBERS)


class ToldOnce(logging.Filter):
    """Keeps each thread of a save from logging the full disk with a traceback.

    The save raises the same error in the end, and `space_needed` words it.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        told = is_disk_full(ValueError(record.getMessage()))
        return not told and (error is None or not is_disk_full(error))
