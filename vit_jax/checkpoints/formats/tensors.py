"""Named arrays of a file that is read only where it is asked for."""

import dataclasses
import math
import os
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import jax.numpy as jnp
import numpy as np

from vit_jax import limits
from vit_jax.errors import ZIP_ERRORS, UserError

CHUNK = 2**20
# More than any array in memory.
_MAX_SIZE, _MAX_AXES = 2**48, 32
BFLOAT16 = np.dtype(jnp.bfloat16)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An array of a file that has not been read yet.

    Attributes:
      shape: of the array.
      dtype: a NumPy type, or bfloat16.
      read: reads it; raises UserError if the file is broken.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


Tensors = dict[str, Tensor]


def check_name(path: Path, name: str) -> None:
    """Refuses names that no library writes and that could be taken for paths."""
    parts = re.split(r"[/\\]", name)
    if not name or ".." in parts or name[0] in "/\\" or not name.isprintable():
        raise broken(path, f"it names an array {name[:80]!r}")


def broken(path: Path, what: str) -> UserError:
    """The error for a file that is not what its name says."""
    return UserError(f"{path} is broken or was not made by a known library: {what}")


def read_exactly(path: Path, file: IO[bytes], array: np.ndarray) -> None:
    """Fills an array from a file, a piece at a time."""
    view = array.reshape(-1).view(np.uint8)
    for start in range(0, len(view), CHUNK):
        wanted = view[start : start + CHUNK]
        piece = file.read(len(wanted))
        if len(piece) != len(wanted):
            raise broken(path, "it ends in the middle of an array")
        wanted[:] = np.frombuffer(piece, np.uint8)


def open_zip(path: Path) -> zipfile.ZipFile:
    """An archive; it is not unpacked.

    Raises:
      UserError: if it is none.
    """
    try:
        return zipfile.ZipFile(path)
    except ZIP_ERRORS as error:
        raise broken(path, f"{error}") from error


def check_expansion(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuses an archive that would take far more memory than its file has bytes."""
    size = os.path.getsize(path)
    total = sum(info.file_size for info in archive.infolist())
    if total > limits.WEIGHTS_RATIO * size + limits.ARCHIVE_SLACK:
        raise broken(path, f"{size:,} bytes claim to hold {total:,}")


def is_shape(numbers: Sequence[Any]) -> bool:
    """Whether an array can have this shape; files may say anything.

    >>> is_shape((3, 2)), is_shape((3, -2)), is_shape((0, 2**80)), is_shape(("3",))
    (True, False, False, False)
    """
    whole = all(type(n) is int and 0 <= n < _MAX_SIZE for n in numbers)
    return (
        whole
        and len(numbers) <= _MAX_AXES
        and math.prod(max(n, 1) for n in numbers) < _MAX_SIZE
    )
