"""A file of one JSON object a line, such as metrics.jsonl."""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from vit_jax import durable
from vit_jax.errors import UserError

_TAIL_BYTES = 1 << 20

Scalar = float | int | np.number | np.ndarray | jax.Array


class JsonLines:
    """A file of one JSON object a line, each with its step.

    On a local disk a line is appended when it is written, so that a kill of the
    process loses none, and `flush` makes the lines survive a crash of the machine.
    Object stores cannot append: there the lines are kept in memory and `flush` writes
    the whole file, in one piece; a kill loses the lines since the last flush.

    JSON has no NaN or infinity: they are written as the strings "NaN", "Infinity" and
    "-Infinity", which `float` reads back.
    """

    def __init__(self, path: epath.Path, *, restored_step: int | None):
        """Opens the file and drops the lines that the run is going to write again.

        Args:
            path: The file; it need not exist.
            restored_step: Lines of later steps are dropped, and so is what is not a
                whole line (a kill may leave half of one). None drops all lines.

        Raises:
            UserError: The file cannot be written.
        """
        self._path = path
        self._file: int | None = None  # A descriptor: unbuffered, one write a line.
        self._lines = self._kept(restored_step)
        self._write_whole()
        if not durable.is_remote(path):
            with user_errors(path):
                self._file = os.open(path, os.O_WRONLY | os.O_APPEND)

    def write(self, step: int, scalars: Mapping[str, Scalar]) -> None:
        """Appends `{"step": step, ...}`, names sorted after the step."""
        self.append(encode(step, scalars))

    def append(self, text: str) -> None:
        """Appends a JSON object that has a "step"."""
        line = text + "\n"
        if self._file is None:
            self._lines.append(line)
            return
        data = line.encode()
        with user_errors(self._path):
            while data:
                data = data[os.write(self._file, data) :]

    def flush(self) -> None:
        """Returns when all lines written are durable."""
        if self._file is None:
            self._write_whole()
            return
        with user_errors(self._path):
            os.fsync(self._file)

    def close(self) -> None:
        """Flushes and closes. Nothing may be called after it."""
        self.flush()
        if self._file is not None:
            os.close(self._file)

    def _kept(self, restored_step: int | None) -> list[str]:
        if restored_step is None or not self._path.exists():
            return []
        text = self._path.read_bytes().decode("utf-8", errors="replace")
        lines = text.splitlines(keepends=True)
        return [line for line in lines if _step_of(line) <= restored_step]

    def _write_whole(self) -> None:
        with user_errors(self._path):
            durable.write(self._path, "".join(self._lines).encode())
        if not durable.is_remote(self._path):
            self._lines = []


def encode(step: int, scalars: Mapping[str, Scalar]) -> str:
    """One line of metrics.jsonl, without its line break.

    Floats are written with all their digits, so that equal lines mean equal numbers.

    >>> encode(3, {"loss": np.float32(0.5), "examples": 96, "a": float("nan")})
    '{"step": 3, "a": "NaN", "examples": 96, "loss": 0.5}'
    """
    record: dict[str, Any] = {"step": int(step)}
    for name in sorted(scalars):
        value = as_number(scalars[name])
        record[name] = value if math.isfinite(value) else _NON_FINITE[str(value)]
    return json.dumps(record, allow_nan=False)


_NON_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def as_number(value: Scalar) -> float | int:
    """A scalar of any library as Python's int or float.

    >>> as_number(np.float32(0.25)), as_number(np.int64(3)), as_number(True)
    (0.25, 3, 1)
    """
    # Explicit, for a loop that forbids implicit transfers.
    array = np.asarray(jax.device_get(value))
    if array.size != 1:
        raise ValueError(f"expected a scalar, but the shape is {array.shape}")
    # bfloat16 is no subtype of np.floating: everything but integers becomes a float.
    integer = array.dtype == bool or np.issubdtype(array.dtype, np.integer)
    return int(array.reshape(())) if integer else float(array.reshape(()))


def last_value(path: epath.Path, name: str) -> float | None:
    """The newest number of this name in a file of lines; None if there is none.

    Only the end of the file is read.
    """
    if not path.is_file():
        return None
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _TAIL_BYTES))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    for line in reversed(lines):
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            return float(json.loads(line)[name])
    return None


def _step_of(line: str) -> float:
    """The step of a line of metrics.jsonl; infinity if it is not a whole line."""
    try:
        step = json.loads(line)["step"] if line.endswith("\n") else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf
    return step if isinstance(step, int) and step >= 0 else math.inf


@contextlib.contextmanager
def user_errors(path: epath.PathLike) -> Iterator[None]:
    """A file that cannot be written is not a defect of the program."""
    try:
        yield
    except OSError as e:
        raise UserError(f"Cannot write {path}: {durable.explained(e)}.") from e
