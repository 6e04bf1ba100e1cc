"""A full disk and others that cannot be written, told once and in words."""

import contextlib
import errno
import logging
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from vit_jax.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)
# How Python's errors end that a thread of a failed save meets when the process ends.
_AFTER = ("after shutdown", "after interpreter shutdown", "Event loop is closed")
_FILES = 64  # of a small checkpoint, about
_UNDER_WAY = ".orbax-checkpoint-tmp"  # in the names of directories
_ORBAX = f"{os.sep}orbax{os.sep}checkpoint{os.sep}"
_WHOLE = "The ones before it are whole: "


def check_space(directory: epath.Path, state: Any) -> None:
    """Refuses to write a state where there is no room, or where nothing can be written.

    Looking first is kinder than failing in the middle, and leaves no half-written
    directory; and Orbax waits for minutes for a directory that cannot be made. Object
    stores have no end that one could look at.

    Raises:
      UserError: with both sizes, or what the system says.
    """
    if "://" in os.fspath(directory):
        return
    needed = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    with writing(directory):
        disk = os.statvfs(directory)
        probe = directory / f".{jax.process_index()}.{os.getpid()}.tmp"
        probe.touch(exist_ok=True)
        probe.unlink()
    free = disk.f_bavail * disk.f_frsize
    if free < needed:
        raise UserError(
            f"no space left to write a checkpoint in {directory}: it needs up to "
            f"{needed / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free. {_WHOLE}free some "
            "space and run the same command again"
        )
    if disk.f_files and disk.f_favail < _FILES:  # some file systems count none
        raise UserError(
            f"no space left to write a checkpoint in {directory}: it has more than "
            f"{_FILES} files, and {disk.f_favail} more can be made (df -i). {_WHOLE}"
            "remove some files and run the same command again"
        )


def identity(directory: epath.Path) -> tuple[int, int] | None:
    """What tells a local directory from another of its name; None if there is none."""
    if "://" in os.fspath(directory):
        return None
    with contextlib.suppress(OSError):
        found = os.stat(directory)
        return found.st_dev, found.st_ino
    return None


def refuse_another(directory: epath.Path, begun_in: tuple[int, int] | None) -> None:
    """Refuses a directory that is not the one in which a save began.

    TensorStore makes a directory again that was moved away, and goes on in it: then
    half of the files are here and half are there, and nothing of that fails.

    Raises:
      UserError: if it is another one, or gone.
    """
    if begun_in is not None and identity(directory) != begun_in:
        raise UserError(
            f"{directory} was moved, removed or replaced while a checkpoint was being "
            "written in it. Put it back in place of what is there now, and run the "
            "same command again"
        )


@contextlib.contextmanager
def writing(
    directory: epath.Path, begun_in: tuple[int, int] | None = None
) -> Iterator[None]:
    """Turns the errors of a disk that cannot be written into a UserError.

    Args:
      directory: of the checkpoints.
      begun_in: its `identity` when the save began, if one is under way.
    """
    try:
        yield
    except UserError:
        raise
    # Where files are missing that it has written, Orbax raises many types.
    except Exception as error:
        try:
            refuse_another(directory, begun_in)
        except UserError as moved:
            raise moved from error
        number = error_number(error)
        if number is None:
            raise
        if number in _FULL:
            raise UserError(
                f"no space left to write a checkpoint in {directory}. {_WHOLE}free "
                "some space and run the same command again"
            ) from error
        raise UserError(
            f"cannot write a checkpoint in {directory}: {os.strerror(number)}. See to "
            "that, and run the same command again"
        ) from error


def error_number(error: BaseException) -> int | None:
    """The number of the system's error that Orbax or TensorStore failed with, if any.

    >>> text = "RESOURCE_EXHAUSTED: ... No space left on device [os_error_code='28']"
    >>> error_number(ValueError(text)) == errno.ENOSPC
    True
    """
    if isinstance(error, OSError):
        return error.errno
    if found := re.search(r"os_error_code=\\?'(\d+)", str(error)):
        return int(found[1])
    named = (number for number in _FULL if os.strerror(number) in str(error))
    return next(named, None)


class _ToldOnce(logging.Filter):
    """Keeps each thread and task of a save from logging the error with a traceback.

    The save raises the same error in the end, and `writing` words it.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and _ORBAX in record.pathname:
            return False
        errors = [record.exc_info[1]] if record.exc_info else []
        errors.append(ValueError(record.getMessage()))
        # What it could not write or read again, whatever the reason.
        if record.name == "asyncio" and any(_UNDER_WAY in str(e) for e in errors):
            return False
        return not any(
            error is not None and (error_number(error) or str(error).endswith(_AFTER))
            for error in errors
        )


_TOLD_ONCE = _ToldOnce()


def tell_once() -> None:
    """Keeps Orbax and Python from printing what follows from an error that is raised.

    Where one array cannot be read or written, Orbax raises that and closes its event
    loop. TensorStore then calls the loop for every other array, which Python reports,
    with a traceback each, as an exception that nobody can catch.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_TOLD_ONCE)
    before = sys.unraisablehook
    if getattr(before, "tells_once", False):
        return

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    hook.tells_once = True  # type: ignore[attr-defined]
    sys.unraisablehook = hook
