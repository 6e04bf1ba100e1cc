"""Random access to the records of array_record and tfrecord files."""

import bisect
import hashlib
import importlib
import itertools
import os
import struct
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from vit_jax.errors import BadExample, UserError

_HEADER = 12  # a tfrecord: length uint64, its CRC uint32, the data, its CRC uint32
_FOOTER = 4
_INDEX_THREADS = 16
_MAX_OPEN_FILES = 512  # of a usual limit of 1,024


class Shard(NamedTuple):
    """A file and the records of it that are used."""

    path: str
    size: int  # records in the file
    start: int  # the first that is used
    stop: int


class ArrayRecords:
    """Records of array_record files, whose chunks have checksums of their own."""

    def __init__(self, shards: Sequence[Shard]):
        with ThreadPoolExecutor(_INDEX_THREADS) as pool:
            list(pool.map(_check_array_record, shards))
        self._shards = shards
        self.files = [shard.path for shard in shards]
        self._ends = _ends(shards)
        self._readers: list[Any] = [None] * len(shards)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._ends[-1]

    def __getstate__(self) -> dict[str, Any]:
        readers = [None] * len(self._shards)
        return self.__dict__ | {"_readers": readers, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"_lock": threading.Lock()})

    def __getitem__(self, index: int) -> bytes:
        number, record = _find(self._ends, self._shards, index)
        reader = self._reader(number)
        try:
            return reader.read([record])[0]
        except (RuntimeError, IndexError, ValueError) as e:
            raise BadExample(
                f"{self._shards[number].path}, record {record} cannot be read: {e}; "
                "prepare or copy the dataset again."
            ) from e

    def describe(self, index: int) -> str:
        number, record = _find(self._ends, self._shards, index)
        return f"{self._shards[number].path}, record {record}"

    def _reader(self, number: int) -> Any:
        reader = self._readers[number]
        if reader is None:
            with self._lock:
                reader = self._readers[number] or _open_array_record(
                    self._shards[number]
                )
                self._readers[number] = reader
        return reader


def count_array_records(path: str) -> int:
    """How many records an array_record file has.

    Raises:
        UserError: if it is not one, or is cut short.
    """
    reader = _reader_of(path)
    if not reader.ok():  # it raises nothing, and would say 0
        raise UserError(
            f"{path} cannot be read: it is cut short or no array_record; copy it again."
        )
    return reader.num_records()


def _reader_of(path: str) -> Any:
    # A binary module, which type checkers cannot look into.
    module = importlib.import_module("array_record.python.array_record_module")
    return module.ArrayRecordReader(
        path, options="readahead_buffer_size:0,max_parallelism:0"
    )


def _open_array_record(shard: Shard) -> Any:
    try:
        reader = _reader_of(shard.path)
        found = reader.num_records()
    except RuntimeError as e:
        raise UserError(_unreadable(shard, e)) from e
    if found != shard.size:
        raise UserError(_wrong_count(shard, found))
    return reader


def _check_array_record(shard: Shard) -> None:
    """A file that is cut short has no records, since their index is at its end."""
    _open_array_record(shard).close()


class TfRecords:
    """Records of tfrecord files, read at offsets known beforehand.

    The offsets are found once, by hopping from header to header, and kept in
    $XDG_CACHE_HOME/vit_jax (~/.cache/vit_jax) under the files' names, sizes and times.

    The checksum of a record's data is not looked at, which would take longer than the
    rest of the reading: what is damaged is found where it does not decode.
    """

    def __init__(self, shards: Sequence[Shard]):
        self._shards = shards
        self.files = [shard.path for shard in shards]
        self._ends = _ends(shards)
        self._offsets, self._lengths = _index(shards)
        self._files: dict[int, int] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._ends[-1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"_lock": threading.Lock()})

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # A default, since modules may be gone when Python ends.
        for file in getattr(self, "_files", {}).values():
            close(file)

    def __getitem__(self, index: int) -> bytes:
        number, _ = _find(self._ends, self._shards, index)
        length, offset = int(self._lengths[index]), int(self._offsets[index])
        shard = self._shards[number]
        try:
            file = self._open(number)
            if file is not None:
                data = os.pread(file, length, offset)
            else:
                with open(shard.path, "rb", buffering=0) as unbuffered:
                    data = os.pread(unbuffered.fileno(), length, offset)
        except OSError as e:
            raise UserError(_unreadable(shard, e)) from e
        if len(data) != length:  # it has shrunk since it was indexed
            raise UserError(_unreadable(shard, f"it ends in {self.describe(index)}"))
        return data

    def describe(self, index: int) -> str:
        number, record = _find(self._ends, self._shards, index)
        return f"{self._shards[number].path}, record {record}"

    def _open(self, number: int) -> int | None:
        """The shard's file, kept open; None once too many are."""
        file = self._files.get(number)
        if file is None and len(self._files) < _MAX_OPEN_FILES:
            with self._lock:
                if number not in self._files:
                    self._files[number] = os.open(
                        self._shards[number].path, os.O_RDONLY
                    )
                file = self._files[number]
        return file


def _ends(shards: Sequence[Shard]) -> list[int]:
    return list(itertools.accumulate(s.stop - s.start for s in shards))


def _find(ends: list[int], shards: Sequence[Shard], index: int) -> tuple[int, int]:
    """(shard, record in its file) of record `index`."""
    number = bisect.bisect_right(ends, index)
    return number, index - ends[number] + shards[number].stop


def _unreadable(shard: Shard, why: object) -> str:
    return f"{shard.path} cannot be read: {why}; prepare or copy the dataset again."


def _wrong_count(shard: Shard, found: int) -> str:
    return (
        f"{shard.path} has {found} records, but dataset_info.json says {shard.size}; "
        "it is incomplete: prepare or copy the dataset again."
    )


def _index(shards: Sequence[Shard]) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and lengths, int64 [n], of the used records' data."""
    cache = _cache_file(shards)
    try:
        index = np.load(cache)
        if index.shape == (2, _ends(shards)[-1]):
            return index[0], index[1]
    except (OSError, ValueError, EOFError):
        pass  # not there yet, or damaged
    with ThreadPoolExecutor(_INDEX_THREADS) as pool:
        parts = list(pool.map(_index_shard, shards))
    index = np.concatenate(parts, axis=1)
    _save(index, cache)
    return index[0], index[1]


def _index_shard(shard: Shard) -> np.ndarray:
    """int64 [2, n]: offset and length of each used record."""
    index, position = [], 0
    try:
        file = os.open(shard.path, os.O_RDONLY)
    except OSError as e:
        raise UserError(_unreadable(shard, e.strerror)) from e
    try:
        end = os.fstat(file).st_size
        while position < end and len(index) <= shard.size:
            header = os.pread(file, _HEADER, position)
            length = int.from_bytes(header[:8], "little")
            after = position + _HEADER + length + _FOOTER
            if len(header) < _HEADER or after > end or not _header_is_good(header):
                raise UserError(
                    f"{shard.path}: record {len(index)}, at byte {position}, is cut "
                    "short or damaged; prepare or copy the dataset again."
                )
            index.append((position + _HEADER, length))
            position = after
    finally:
        os.close(file)
    if len(index) != shard.size:
        raise UserError(_wrong_count(shard, len(index)))
    return np.array(index, np.int64).T[:, shard.start : shard.stop]


def _header_is_good(header: bytes) -> bool:
    """Whether the length's CRC-32C, masked as TensorFlow does, is the one stored."""
    crc = crc32c(header[:8])
    masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    return masked == struct.unpack("<I", header[8:])[0]


def crc32c(data: bytes) -> int:
    """The Castagnoli CRC (RFC 3720, appendix B.4).

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _crc_table() -> list[int]:
    table = []
    for crc in range(256):
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table


_CRC_TABLE = _crc_table()


def _cache_file(shards: Sequence[Shard]) -> str:
    digest = hashlib.sha256()
    for shard in shards:
        stat = os.stat(shard.path)
        digest.update(
            repr((os.path.abspath(shard.path), shard[1:], stat.st_size)).encode()
        )
        digest.update(str(stat.st_mtime_ns).encode())
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(root, "vit_jax", f"tfrecord-{digest.hexdigest()[:24]}.npy")


def _save(index: np.ndarray, path: str) -> None:
    """Writes whole or not at all; a cache that cannot be written is no error."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=os.path.dirname(path), suffix=".npy", delete=False
        ) as file:
            np.save(file, index)
        os.replace(file.name, path)
    except OSError:
        pass
