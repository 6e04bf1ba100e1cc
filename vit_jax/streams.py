"""stdout and stderr that cannot be written: what is printed is lost, and nothing else.

The reader of a pipe ends (`| head`), a terminal is closed, a disk is full. None of that
is a reason to end a run, or to change its exit code.
"""

import contextlib
import io
import os
import sys
from typing import Any

# ValueError is what Python says of a file that was closed.
ERRORS = (OSError, ValueError)


class Nowhere(io.TextIOBase):
    """A file that keeps nothing, and needs no closing."""

    def write(self, text: str, /) -> int:
        return len(text)


class Lasting:
    """A stream whose errors are dropped, with the text that they are about.

    Each text is tried anew: a disk may have room again.
    """

    def __init__(self, stream: Any) -> None:
        # None is what Python has for a descriptor that is closed.
        self._stream = Nowhere() if stream is None else stream

    def write(self, text: str) -> int:
        with contextlib.suppress(*ERRORS):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(*ERRORS):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def say(line: str, *, error: bool = False) -> None:
    """Prints a whole line at once, to stdout or to stderr, if that can be."""
    stream = sys.stderr if error else sys.stdout
    if stream is not None:
        with contextlib.suppress(*ERRORS):
            print(line, file=stream, flush=True)


def settle() -> None:
    """Writes what is left; what cannot be written is dropped.

    Python would try again when the process ends, complain, and change its exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except ERRORS:
            with contextlib.suppress(*ERRORS):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def fill_closed() -> None:
    """Opens the descriptors 0 to 2 where they are closed (`>&-`), on nothing.

    The next file that is opened would take the number, and be written to by all that
    writes to stdout or stderr by number, as libraries in C do.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
