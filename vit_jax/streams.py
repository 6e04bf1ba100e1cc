"""stdout and stderr that cannot be written: what is printed is lost, and nothing else.

The reader of a pipe ends (`| head`), a terminal is closed, a disk is full. None of that
is a reason to end a run, or to change its exit code. A command whose work is what it
prints ends with one message (`Checked`).
"""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

from vit_jax.errors import Unwritable

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


class Checked:
    """A stream of results: where it cannot be written, that is said in one message.

    A reader who has gone (BrokenPipeError) is the caller's to handle.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._explained():
            return self._stream.write(text)

    def writelines(self, lines: Any) -> None:
        with self._explained():
            self._stream.writelines(lines)

    def flush(self) -> None:
        with self._explained():
            self._stream.flush()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            raise Unwritable(
                f"stdout cannot be written ({error.strerror}), so the results are not "
                "complete: free space there, or send them elsewhere (> FILE)"
            ) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """Drops what stdout and stderr do not take, for work that has to go on."""
    stdout, stderr = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Lasting(stdout), Lasting(stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = stdout, stderr
        settle()


@contextlib.contextmanager
def checked() -> Iterator[None]:
    """Explains what stdout does not take; what stderr does not take is dropped.

    Raises:
      Unwritable: if stdout cannot be written, at the latest at the end.
    """
    stdout, stderr = sys.stdout, sys.stderr
    sys.stdout = None if stdout is None else Checked(stdout)
    sys.stderr = Lasting(stderr)
    try:
        try:
            yield
        except SystemExit:  # of argparse, after its help
            if sys.stdout is not None:
                sys.stdout.flush()
            raise
        if sys.stdout is not None:
            sys.stdout.flush()
    finally:
        sys.stdout, sys.stderr = stdout, stderr


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
