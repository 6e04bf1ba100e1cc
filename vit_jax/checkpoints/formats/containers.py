"""Files of named arrays: .npz, .safetensors, and PyTorch's .pth and .bin.

What is in them is data and may be hostile. Nothing is executed, nothing is unpickled
into objects, names are never used as paths, and no more memory is taken than the file
truly holds. Opening a file reads its index alone; each array is read when asked for.
"""

import dataclasses
import json
import math
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import jax.numpy as jnp
import numpy as np

from vit_jax.errors import UserError

# A header larger than this is refused: the largest published model has some 2,000
# arrays, 200 kB of header.
MAX_HEADER = 16 * 2**20
# Of arrays that were compressed: weights hardly shrink, zeros do. An archive may hold
# this many times its size, and this many bytes beside it.
MAX_RATIO, SLACK = 20, 64 * 2**20
_CHUNK = 2**20
_BFLOAT16 = np.dtype(jnp.bfloat16)


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


def open_tensors(path: Path) -> Tensors:
    """The arrays of one file, by name.

    Raises:
      UserError: if it is none of the formats, or is broken.
    """
    readers = {
        ".npz": open_npz,
        ".safetensors": open_safetensors,
        ".pth": open_torch,
        ".pt": open_torch,
        ".bin": open_torch,
    }
    if path.suffix not in readers:
        raise UserError(
            f"{path}: expected a file that ends in {', '.join(readers)}, or a directory"
        )
    try:
        return readers[path.suffix](path)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


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
    for start in range(0, len(view), _CHUNK):
        wanted = view[start : start + _CHUNK]
        piece = file.read(len(wanted))
        if len(piece) != len(wanted):
            raise broken(path, "it ends in the middle of an array")
        wanted[:] = np.frombuffer(piece, np.uint8)


# --- NumPy


def open_npz(path: Path) -> Tensors:
    """The arrays of a NumPy archive; pickled ones are refused."""
    with _open_zip(path) as archive:
        _check_expansion(path, archive)
        tensors = {}
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            check_name(path, name)
            if name == info.filename or name in tensors:
                raise broken(path, f"it holds {info.filename!r}, not arrays by name")
            tensors[name] = _npy(path, archive, info)
    return tensors


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise broken(path, f"{error}") from error


def _check_expansion(path: Path, archive: zipfile.ZipFile) -> None:
    size = os.path.getsize(path)
    total = sum(info.file_size for info in archive.infolist())
    if total > MAX_RATIO * size + SLACK:
        raise broken(path, f"{size:,} bytes claim to hold {total:,}")


def _npy(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Tensor:
    formats = np.lib.format
    try:
        with archive.open(info) as file:
            version = formats.read_magic(file)
            header = {
                (1, 0): formats.read_array_header_1_0,
                (2, 0): formats.read_array_header_2_0,
            }[version]
            shape, fortran, dtype = header(file)
            start = file.tell()
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise broken(path, f"{info.filename}: {error}") from error
    except (RuntimeError, NotImplementedError) as error:  # encrypted; other zips
        raise broken(path, f"{info.filename}: {error}") from error
    if dtype.hasobject:
        raise UserError(
            f"{path}: {info.filename} holds pickled objects, which could run any code "
            "when read: ask for the file with plain arrays"
        )
    if dtype == np.dtype("V2"):  # NumPy does not know bfloat16 by name
        dtype = _BFLOAT16
    if start + math.prod(shape) * dtype.itemsize != info.file_size:
        raise broken(path, f"{info.filename} is not as long as its shape {shape}")

    def read() -> np.ndarray:
        array = np.empty(shape[::-1] if fortran else shape, dtype)
        try:
            with _open_zip(path) as archive, archive.open(info) as file:
                file.read(start)
                read_exactly(path, file, array)
                file.read(1)  # its end, where the checksum is compared
        except (zipfile.BadZipFile, EOFError, ValueError, OSError) as error:
            raise broken(path, f"{info.filename}: {error}") from error
        except Exception as error:
            if type(error).__module__ == "zlib":
                raise broken(path, f"{info.filename}: {error}") from error
            raise
        return array.T if fortran else array

    return Tensor(tuple(shape), dtype, read)


# --- safetensors

_SAFETENSORS_TYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": _BFLOAT16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def open_safetensors(path: Path) -> Tensors:
    """The arrays of a safetensors file.

    Its format: https://huggingface.co/docs/safetensors. Eight bytes with the length of
    a JSON header, the header, then the arrays; offsets count from the header's end.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER):
            raise broken(path, f"{size:,} bytes claim a header of {length:,}")
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        entries = [
            (name, entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"])
            for name, entry in header.items()
        ]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise broken(path, "its header is no list of arrays") from error
    tensors, end = {}, 0
    for name, type_, shape, first, last in sorted(entries, key=lambda e: str(e[3])):
        check_name(path, name)
        whole = all(type(n) is int and n >= 0 for n in (*shape, first, last))
        if not whole or type_ not in _SAFETENSORS_TYPES:
            raise broken(path, f"{name} has type {type_!r} and shape {shape}")
        dtype = np.dtype(_SAFETENSORS_TYPES[type_])
        if (
            last - first != math.prod(shape) * dtype.itemsize
            or last > size - 8 - length
        ):
            raise broken(path, f"{name} is not as long as its shape {list(shape)}")
        end += last - first
        tensors[name] = _raw(path, 8 + length + first, shape, dtype)
    if end > size - 8 - length:
        raise broken(path, "its arrays overlap")
    return tensors


def _raw(path: Path, start: int, shape: tuple[int, ...], dtype: np.dtype) -> Tensor:
    def read() -> np.ndarray:
        array = np.empty(shape, dtype)
        with open(path, "rb") as file:
            file.seek(start)
            read_exactly(path, file, array)
        return array

    return Tensor(shape, dtype, read)


def write_safetensors(
    path: Path,
    arrays: Mapping[str, Callable[[], np.ndarray]],
    shapes: Mapping[str, Any],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes float32 arrays, made one after the other, in the order of their names.

    Args:
      path: a new file.
      arrays: makes each array.
      shapes: of each.
      metadata: what the file says beside them.
    """
    header, end = {}, 0
    names = sorted(arrays)
    for name in names:
        size = 4 * math.prod(shapes[name])
        header[name] = {
            "dtype": "F32",
            "shape": list(shapes[name]),
            "data_offsets": [end, end + size],
        }
        end += size
    about = {"format": "pt", **(metadata or {})}
    text = json.dumps({"__metadata__": about, **header}).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            file.write(np.ascontiguousarray(arrays[name](), "<f4").data)


# --- PyTorch

_TORCH_TYPES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": _BFLOAT16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class _Forbidden(Exception):
    """The pickle names something that weights do not need."""


@dataclasses.dataclass(frozen=True)
class _Storage:
    """The bytes that a tensor is a view of: a file of the archive."""

    key: str
    dtype: np.dtype


def _no_hooks(*_: Any) -> None:
    """Stands for what PyTorch keeps beside a tensor and weights do not need."""


class _Unpickler(pickle.Unpickler):
    """Understands dicts, lists, numbers, strings and tensors; nothing else by name."""

    def __init__(self, file: IO[bytes], rebuild: Callable[..., Tensor]) -> None:
        super().__init__(file)
        self._known = {
            ("collections", "OrderedDict"): dict,
            ("torch._utils", "_rebuild_tensor_v2"): rebuild,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _TORCH_TYPES:
            return np.dtype(_TORCH_TYPES[name])
        if (module, name) not in self._known:
            raise _Forbidden(f"{module}.{name}")
        return self._known[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, *_ = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise _Forbidden(f"a persistent {kind!r}")
        return _Storage(str(key), dtype)


def open_torch(path: Path) -> Tensors:
    """The tensors of a file that `torch.save` wrote, without PyTorch.

    Its pickle may name tensors, their storages and dicts; whatever else it names is
    refused before it is looked up.
    """
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"{path} is broken, or in PyTorch's format of before 2020; with PyTorch, "
            "load it with weights_only=True and save it again, better as .safetensors"
        )
    with _open_zip(path) as archive:
        _check_expansion(path, archive)
        found = [i for i in archive.infolist() if i.filename.endswith("/data.pkl")]
        if len(found) != 1 or found[0].file_size > MAX_HEADER:
            raise broken(path, "it has no data.pkl of a reasonable size")
        folder = found[0].filename.removesuffix("data.pkl")
        sizes = {info.filename: info for info in archive.infolist()}

        def rebuild(
            storage: Any, offset: Any, shape: Any, stride: Any, *_: Any
        ) -> Tensor:
            return _view(path, sizes, folder, storage, offset, shape, stride)

        try:
            with archive.open(found[0]) as file:
                tree = _Unpickler(file, rebuild).load()
        except _Forbidden as error:
            raise UserError(
                f"{path} names {error}, which could run code when read: it holds more "
                "than weights. Ask for a .safetensors file"
            ) from error
        except UserError:
            raise
        except Exception as error:
            # A pickle that was cut short or garbled can fail in any way.
            raise broken(path, f"{type(error).__name__}: {error}"[:200]) from error
    return _state_dict(path, tree)


def _view(
    path: Path,
    sizes: Mapping[str, zipfile.ZipInfo],
    folder: str,
    storage: Any,
    offset: Any,
    shape: Any,
    stride: Any,
) -> Tensor:
    """A tensor as a strided view of its storage."""
    if not isinstance(storage, _Storage) or f"{folder}data/{storage.key}" not in sizes:
        raise broken(path, "a tensor without its storage")
    info = sizes[f"{folder}data/{storage.key}"]
    numbers = (offset, *shape, *stride)
    if len(shape) != len(stride) or not all(type(n) is int and n >= 0 for n in numbers):
        raise broken(path, f"a tensor of shape {shape} and strides {stride}")
    itemsize, size = storage.dtype.itemsize, math.prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    if size and (last + 1) * itemsize > info.file_size:
        raise broken(path, f"a tensor of shape {shape} reaches past its storage")
    if size > info.file_size // itemsize:  # a stride of 0 would make much of little
        raise broken(path, f"a tensor of shape {shape} repeats its storage")

    def read() -> np.ndarray:
        flat = np.empty(info.file_size // itemsize, storage.dtype)
        try:
            with _open_zip(path) as archive, archive.open(info) as file:
                read_exactly(path, file, flat)
        except (zipfile.BadZipFile, EOFError, OSError) as error:
            raise broken(path, f"{info.filename}: {error}") from error
        strides = tuple(s * itemsize for s in stride)
        return np.lib.stride_tricks.as_strided(flat[offset:], shape, strides)

    return Tensor(tuple(shape), storage.dtype, read)


def _state_dict(path: Path, tree: Any) -> Tensors:
    """The dict of tensors in what a training script saved, often one level down."""
    for key in ("state_dict", "model", "teacher", "model_state_dict"):
        if isinstance(tree, dict) and isinstance(tree.get(key), dict):
            tree = tree[key]
    if not isinstance(tree, dict):
        raise broken(path, "it holds no dict of tensors")
    tensors = {k: v for k, v in tree.items() if isinstance(v, Tensor)}
    for name in tensors:
        if not isinstance(name, str):
            raise broken(path, f"it names an array {name!r}")
        check_name(path, name)
    return {name.removeprefix("module."): v for name, v in tensors.items()}
