"""The rows of a CSV file, as people's programs write them.

Commas, semicolons (spreadsheets of many countries) or tabs; UTF-8, with or without a
byte order mark, or UTF-16 with one; plain or compressed by gzip.
"""

import codecs
import contextlib
import csv
import difflib
import gzip
import os
import stat
import zlib
from collections.abc import Iterator, Sequence
from typing import IO, NamedTuple

from vit_jax import limits
from vit_jax.errors import UserError

ENDINGS = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
_SEPARATORS = (",", ";", "\t")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_NAMED = 10  # columns that a message lists
_AT_A_TIME = 1 << 20  # bytes, when one that is no UTF-8 is looked for


class Row(NamedTuple):
    """One row: the number of its line in the file, and its cells by column."""

    line: int
    cells: dict[str, str]


def read(path: str, columns: Sequence[tuple[str, str]]) -> Iterator[Row]:
    """Yields the rows.

    Args:
        path: of the file.
        columns: that it has to have: (the flag that names it, its name).

    Raises:
        UserError: a column that is not there, a row with too few cells, text in another
            encoding; with the line.
    """
    check_regular(path)
    with _errors(path), _open(path) as file:
        first = next(_lines(file, path), "")
        separator = _separator(first, [name for _, name in columns])
        file.seek(0)
        reader = csv.reader(_lines(file, path), delimiter=separator, strict=True)
        try:
            names = [name.strip() for name in next(reader, [])]
            for flag, name in columns:
                check_column(path, flag, name, names)
            for cells in reader:
                if not cells:  # an empty line
                    continue
                if len(cells) < len(names):
                    raise UserError(
                        f"{path}, line {reader.line_num}: {len(cells)} cells, but the "
                        f"first line names {len(names)} columns."
                    )
                yield Row(reader.line_num, dict(zip(names, cells, strict=False)))
        except csv.Error as error:
            line = reader.line_num
            raise UserError(f"{path}, line {line}: {error}.") from error


def _lines(file: IO[str], path: str) -> Iterator[str]:
    """The lines of a file, none of them longer than there is memory for."""
    size, read = os.path.getsize(path), 0
    for number, line in enumerate(iter(lambda: file.readline(limits.LINE), ""), 1):
        if len(line) == limits.LINE:
            raise UserError(
                f"{path}, line {number} has {limits.LINE:,} characters or more: it is "
                "no table."
            )
        read += len(line)
        limits.check_unpacked(path, size, read)
        yield line


def check_regular(path: str) -> None:
    """Refuses a pipe or a device, of which there may be no end.

    Raises:
        UserError: it is none of a file's kind, or not there.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        raise UserError(f"{path!r} cannot be read: {error}.") from error
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is no regular file: copy what it gives into one.")


def check_column(path: str, flag: str, name: str, header: Sequence[str]) -> None:
    """Refuses a column that a table does not have."""
    if name in header:
        return
    shown, more = ", ".join(header[:_NAMED]), ""
    if len(header) > _NAMED:
        more = f" and {len(header) - _NAMED:,} more"
    near = difflib.get_close_matches(name, header, n=1)
    hint = f'did you mean "{near[0]}"? ' if near else ""
    raise UserError(
        f'{path} has no column "{name}"; name it with --{flag}_column. {hint}It has: '
        f"{shown}{more}."
    )


def _open(path: str) -> IO[str]:
    """The text, decoded; an error of decoding is raised while it is read."""
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rb") as file:
        start = file.read(4)
    encoding = "utf-16" if start.startswith(_UTF16) else "utf-8-sig"
    return opener(path, "rt", encoding=encoding, newline="")


def _separator(line: str, wanted: Sequence[str]) -> str:
    r"""What separates the cells of a header, by which the wanted columns are there.

    >>> _separator("path;label\n", ["path", "label"]), _separator("a,b", ["c"])
    (';', ',')
    """
    for separator in _SEPARATORS:
        try:
            names = next(csv.reader([line], delimiter=separator), [])
        except csv.Error:  # told with its line, by whoever reads the file
            continue
        if all(name in (n.strip() for n in names) for name in wanted):
            return separator
    return ","


@contextlib.contextmanager
def _errors(path: str) -> Iterator[None]:
    try:
        yield
    except UnicodeError as error:
        raise UserError(
            f"{path}{_undecodable_line(path)} is not UTF-8: save it as UTF-8, for "
            f"example with: iconv -f latin1 -t utf-8 FILE"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error


def _undecodable_line(path: str) -> str:
    """Where the first bytes are that are no UTF-8; "" if no line can be named."""
    if path.endswith(".gz"):
        return ""
    with open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(_AT_A_TIME), b""), 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f", line {number} (byte {line[error.start]:#04x})"
    return ""
