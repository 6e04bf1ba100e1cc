"""Errors for the person who typed the command, and their exit codes."""

import difflib
import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable
from typing import Self

# What Python's zipfile raises for an archive that is damaged, or of a kind that it does
# not read.
ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    ValueError,
    RuntimeError,
)

# What NumPy raises, besides, for an array whose header is no Python literal, is of
# another version, or claims to be larger than all memory.
NUMPY_ERRORS = (
    *ZIP_ERRORS,
    KeyError,
    MemoryError,
    OverflowError,
    SyntaxError,
    TypeError,
    tokenize.TokenError,
)


class Stop(Exception):
    """An end of the program that its user is told in one message, without a traceback.

    Anything else that is raised is a defect of ours and keeps its traceback.
    """

    exit_code: int
    label = "error"
    # Whether every process of the run raises the same: then one of them tells it.
    shared = False

    def _render_traceback_(self) -> list[str]:
        """What IPython and Jupyter show instead of a traceback."""
        return [f"{self.label}: {self}"]


class UserError(Stop, ValueError):
    """Bad input: what was given, what was expected, what to do."""

    exit_code = 2

    @classmethod
    def on_all(cls, message: str) -> Self:
        """One that every process of the run raises alike; see `shared`."""
        error = cls(message)
        error.shared = True
        return error


class BadExample(UserError):
    """One record that cannot be used, whoever reads it: config.data.on_bad_example.

    Only what the record's bytes alone decide is one. A file that is not there or not
    whole is a plain UserError: it would be bad on one host and good on another.
    """


class OutOfMemory(UserError):
    """What was asked for does not fit into the memory of the devices."""


class Unwritable(Stop, OSError):
    """stdout cannot be written; no fault of what was being read or checked."""

    exit_code = 2


class NonFiniteLossError(Stop):
    """The loss or the update became NaN or infinite."""

    exit_code = 70
    shared = True


class Preempted(Stop):
    """SIGTERM or Ctrl-C arrived; raised where it is safe to stop."""

    exit_code = 75
    label = "stopped"
    shared = True

    def __str__(self) -> str:
        return super().__str__() or "before it began: run the same command to start"


class WorkerLost(Stop):
    """A process that reads data was killed or has crashed."""

    exit_code = 71


class PeerLost(Stop):
    """Another process of the run died, hangs, or cannot be reached."""

    exit_code = 76


def did_you_mean(given: str, valid: Iterable[str]) -> str:
    """The end of a sentence that names the nearest valid name, else all of them.

    >>> did_you_mean("learning_rat", ["learning_rate", "name"])
    'did you mean "learning_rate"?'
    >>> did_you_mean("xyzzy", ["adamw", "sgd"])
    'valid names: adamw, sgd'
    >>> did_you_mean("x", [])
    'there are none'
    """
    valid = sorted(valid)
    if not valid:
        return "there are none"
    near = difflib.get_close_matches(given, valid, n=1)
    return f'did you mean "{near[0]}"?' if near else f"valid names: {', '.join(valid)}"
