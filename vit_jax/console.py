"""What a run prints, kept in `workdir/log.txt` too."""

import contextlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any

from vit_jax import streams
from vit_jax.errors import Stop

LOG = "log.txt"
# For what only a progress bar shows: the lines of training on a terminal.
lines = logging.getLogger("vit_jax.console")
lines.setLevel(logging.INFO)
lines.propagate = False
lines.addHandler(logging.NullHandler())


class Log:
    """Text that is kept in memory until it has a file."""

    def __init__(self) -> None:
        self._file: io.TextIOBase = io.StringIO()

    def open(self, path: str | os.PathLike[str]) -> None:
        """Appends what was written, and what will be, to a file.

        A log that cannot be written never ends a run: it is left out.
        """
        before = self._file
        assert isinstance(before, io.StringIO)
        with contextlib.suppress(OSError):
            self._file = open(  # noqa: SIM115 (closed by `close`)
                path, "a", buffering=1, encoding="utf-8", errors="backslashreplace"
            )
            self.write(before.getvalue())

    def write(self, text: str) -> None:
        try:
            self._file.write(text)
        except OSError:  # the disk is full
            self._file = streams.Nowhere()

    def flush(self) -> None:
        """For `logging`: lines are written at once."""

    def close(self) -> None:
        """Nothing is kept any more; a thread may still write."""
        before, self._file = self._file, streams.Nowhere()
        with contextlib.suppress(OSError):
            before.close()


class _Tee(streams.Lasting):
    """A stream whose text goes into a log too."""

    def __init__(self, stream: Any, log: Log) -> None:
        super().__init__(stream)
        self._log = log

    def write(self, text: str) -> int:
        self._log.write(text)
        return super().write(text)


@contextlib.contextmanager
def recorded() -> Iterator[Log]:
    """Copies what is printed and warned of meanwhile, and the error at the end.

    Where stdout or stderr cannot be written, that is no error.

    Yields:
      The log, which needs an `open` to become a file.
    """
    log, stdout, stderr = Log(), sys.stdout, sys.stderr
    handler = logging.StreamHandler(log)
    root = logging.getLogger()
    handlers: list[logging.Handler] = [handler]
    if not root.handlers:  # a handler would silence Python's last resort
        handlers.append(logging.StreamHandler())
    for each in handlers:
        root.addHandler(each)
    lines.addHandler(handler)
    sys.stdout, sys.stderr = _Tee(stdout, log), streams.Lasting(stderr)
    try:
        yield log
    except BaseException as error:
        if isinstance(error, Stop):
            log.write(f"{error.label}: {error}\n")
        else:
            log.write("".join(traceback.format_exception(error)))
        raise
    finally:
        sys.stdout, sys.stderr = stdout, stderr
        streams.settle()
        lines.removeHandler(handler)
        for each in handlers:
            root.removeHandler(each)
        log.close()
