"""What `torch.save` writes, read without PyTorch: archives, and its older format.

An archive has a pickle, data.pkl, and a file of bytes for each storage, which one or
several tensors are views of. Before PyTorch 1.6 it was one stream: a few pickles, then
the storages one after the other.
"""

import contextlib
import dataclasses
import functools
import io
import math
import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

import numpy as np

from vit_jax import limits
from vit_jax.checkpoints.formats import torch_pickle
from vit_jax.checkpoints.formats.tensors import (
    BFLOAT16,
    CHUNK,
    Tensor,
    broken,
    check_expansion,
    is_shape,
    open_zip,
    read_exactly,
)
from vit_jax.checkpoints.formats.torch_pickle import Named
from vit_jax.errors import ZIP_ERRORS, UserError

# A dict of tensors by name; where one cannot be read, a text that says why.
SavedDict = dict[str, Tensor | str]

_TYPES: dict[str, np.dtype] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": BFLOAT16,
    **{f"int{n}": np.dtype(f"int{n}") for n in (8, 16, 32, 64)},
    **{f"uint{n}": np.dtype(f"uint{n}") for n in (8, 16, 32, 64)},
    "bool": np.dtype(np.bool_),
}
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
# Dicts may stand in dicts so deep, and so many things are looked at to find them.
_MAX_DEPTH, _MAX_ITEMS = 4, 200_000
# The first pickle of a file of before PyTorch 1.6, and what is before the object.
_OLD_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_KNOWN_STARTS = {
    b"version https://git-lfs": "it is a pointer of Git LFS: run `git lfs pull`",
    b"<": "it is a web page: download the file itself",
    b"\x89HDF": "it is an HDF5 file",
}


@dataclasses.dataclass(frozen=True)
class _Storage:
    """Bytes that tensors are views of.

    Attributes:
      key: its name.
      type: of its numbers, as in `_STORAGES`; another's is not known here.
      first: number of `key`'s that is its own first.
    """

    key: str
    type: str
    first: int = 0


@dataclasses.dataclass(frozen=True)
class _View:
    """A tensor, as the pickle says it; nothing of it is checked yet."""

    storage: Any
    offset: Any
    shape: Any
    stride: Any
    type: str | None = None


@dataclasses.dataclass(frozen=True)
class _Unreadable:
    """A tensor of a kind that is not read, and why."""

    why: str


def open_torch(path: Path) -> dict[str, SavedDict]:
    """All dicts of tensors in a file that `torch.save` wrote.

    Returns:
      By the keys that lead to them, joined by dots; "" is the object that was saved.

    Raises:
      UserError: if it is broken, or holds no dict of tensors.
    """
    try:
        if zipfile.is_zipfile(path):
            tree, tensor = _open_archive(path)
        else:
            tree, tensor = _open_old(path)
    except UserError:
        raise
    except (*torch_pickle.GARBLED, *ZIP_ERRORS) as error:
        raise broken(path, f"{type(error).__name__}: {error}"[:200]) from error
    found = dict(_dicts(path, tree, tensor))
    if not found:
        raise UserError(f"{path} holds no dict of tensors: {_describe(tree)}")
    return found


# --- The object


def _functions() -> dict[str, Callable[..., Any]]:
    """What a pickle may call; all of it bears any arguments."""

    def view(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> Any:
        # Conjugates and negatives are views too, with other numbers than are stored.
        if any(isinstance(x, dict) and (x.get("neg") or x.get("conj")) for x in rest):
            return _Unreadable("is a negated or conjugated view")
        return _View(storage, offset, shape, stride)

    def typed(*arguments: Any) -> Any:
        storage, offset, shape, stride, _, _, dtype, *_ = arguments
        type_ = dtype.name if isinstance(dtype, Named) else ""
        return _View(storage, offset, shape, stride, type_.removeprefix("torch."))

    def derived(function: Any, class_: Any, arguments: Any, *_: Any) -> Any:
        """A tensor with attributes of its own, or of a class of its own."""
        plain = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch._tensor.Tensor")
        if isinstance(class_, Named) and class_.name in plain:
            return functions[function.name](*arguments)
        name = class_.name if isinstance(class_, Named) else "?"
        return _Unreadable(f"is a tensor of its own kind, {name}")

    def unreadable(kind: str) -> Callable[..., _Unreadable]:
        return lambda *_: _Unreadable(f"is a {kind} tensor")

    functions: dict[str, Callable[..., Any]] = {
        "collections.OrderedDict": _ordered_dict,
        "collections.defaultdict": lambda *_: {},
        "torch._utils._rebuild_tensor": view,
        "torch._utils._rebuild_tensor_v2": view,
        "torch._utils._rebuild_tensor_v3": typed,
        "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
        "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
        "torch._tensor._rebuild_from_type_v2": derived,
        "torch._utils._rebuild_qtensor": unreadable("quantised"),
        "torch._utils._rebuild_sparse_tensor": unreadable("sparse"),
        "torch._utils._rebuild_nested_tensor": unreadable("nested"),
        "torch._utils._rebuild_wrapper_subclass": unreadable("wrapped"),
    }
    for name in ("_rebuild_meta_tensor_no_storage", "_rebuild_device_tensor_from_cpu"):
        functions[f"torch._utils.{name}"] = unreadable("meta or foreign device's")
    return functions


def _ordered_dict(pairs: Any = (), *_: Any) -> dict[str, Any]:
    return {k: v for k, v in pairs if type(k) is str}


def _storage(name: Any) -> _Storage:
    """What stands in the pickle for a storage: ("storage", type, key, device, size)."""
    kind, type_, key, _, _, *view = name
    if kind != "storage" or not isinstance(type_, Named):
        raise ValueError("its pickle names something outside of it that is no storage")
    class_ = type_.name.rpartition(".")[2]
    type_ = _STORAGES[class_] if class_ in _STORAGES else class_
    first = 0
    if view and view[0] is not None:  # a part of it; before PyTorch 1.6
        _, first, _ = view[0]
    return _Storage(str(key), type_, first)


def _dicts(
    path: Path, tree: Any, tensor: Callable[[_View], Tensor | str]
) -> Iterator[tuple[str, SavedDict]]:
    """The dicts with tensors in an object, the outermost first."""
    level, looked_at = [("", tree)], 0
    for _ in range(_MAX_DEPTH):
        deeper = []
        for label, node in level:
            looked_at += len(node) if isinstance(node, dict | list | tuple) else 0
            if looked_at > _MAX_ITEMS:
                raise broken(path, f"it has more than {_MAX_ITEMS:,} entries")
            if isinstance(node, dict):
                saved = {k: _saved(v, tensor) for k, v in node.items()}
                if own := {k: v for k, v in saved.items() if v is not None}:
                    yield label, own
            deeper += [(f"{label}.{k}".lstrip("."), v) for k, v in _children(node)]
        level = deeper


def _children(node: Any) -> list[tuple[str, Any]]:
    if isinstance(node, dict):
        items = list(node.items())
    elif isinstance(node, list | tuple) and len(node) <= 8:
        items = [(str(i), value) for i, value in enumerate(node)]
    else:
        return []
    return [(k, v) for k, v in items if isinstance(v, dict | list | tuple)]


def _saved(value: Any, tensor: Callable[[_View], Tensor | str]) -> Tensor | str | None:
    """A tensor, why it cannot be read, or None for what is none."""
    if isinstance(value, _View):
        return tensor(value)
    if isinstance(value, _Unreadable):
        return value.why
    packed = isinstance(value, list | tuple) and len(value) <= 8
    if packed and any(isinstance(part, _Unreadable) for part in value):
        return "holds a quantised tensor"
    return None


def _describe(tree: Any) -> str:
    """What was saved instead, for the error."""
    advice = "save `model.state_dict()` instead, with torch.save"
    if isinstance(tree, Named):
        return f"it is an object of {tree.name}; {advice}"
    if not isinstance(tree, dict):
        return f"it is of Python's type {type(tree).__name__}; {advice}"
    kinds = [f"{k[:80]!r} is of {_kind(v)}" for k, v in list(tree.items())[:5]]
    return f"{', '.join(kinds) or 'it is empty'}; {advice}"


def _kind(value: Any) -> str:
    return value.name if isinstance(value, Named) else type(value).__name__


# --- The bytes


@dataclasses.dataclass(frozen=True)
class _Bytes:
    """Where a storage's bytes are.

    Attributes:
      size: of them.
      open: a stream that begins with them.
    """

    size: int
    open: Callable[[], AbstractContextManager[IO[bytes]]]


_ToTensor = Callable[[_View], Tensor | str]


def _open_archive(path: Path) -> tuple[Any, _ToTensor]:
    """The object and what makes its tensors, of PyTorch 1.6 and later."""
    with open_zip(path) as archive:
        check_expansion(path, archive)
        infos = {info.filename: info for info in archive.infolist()}
        found = [name for name in infos if name.endswith("/data.pkl")]
        if len(found) != 1 or infos[found[0]].file_size > limits.HEADER_BYTES:
            raise broken(path, "it has no data.pkl of a reasonable size")
        folder = found[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in infos:
            raise UserError(
                f"{path} is a TorchScript program: with PyTorch, save "
                "`torch.jit.load(path).state_dict()` by torch.save"
            )
        order = f"{folder}byteorder"
        if order in infos and archive.open(order).read(6) != b"little":
            raise UserError(f"{path} was written on a machine with big-endian numbers")
        with archive.open(found[0]) as file:
            tree = _load(io.BytesIO(file.read(limits.HEADER_BYTES)), _storage)

    def place(key: str) -> _Bytes | None:
        info = infos.get(f"{folder}data/{key}")
        if info is None:
            return None

        @contextlib.contextmanager
        def open_() -> Iterator[IO[bytes]]:
            with open_zip(path) as archive, archive.open(info) as file:
                yield file

        return _Bytes(info.file_size, open_)

    return tree, lambda view: _tensor(path, view, place)


def _load(file: IO[bytes], persistent: Callable[[Any], Any]) -> Any:
    return torch_pickle.load(file, functions=_functions(), persistent=persistent)


def _open_old(path: Path) -> tuple[Any, _ToTensor]:
    """The same of before PyTorch 1.6, or of `_use_new_zipfile_serialization=False`."""
    storages: dict[str, _Storage] = {}

    def persistent(name: Any) -> _Storage:
        storage = _storage(name)
        return storages.setdefault(storage.key, storage) and storage

    with open(path, "rb") as file:
        start = file.read(len(_OLD_MAGIC))
        if start != _OLD_MAGIC:
            raise _no_archive(path, start)
        version, about = _load(file, _storage), _load(file, _storage)
        if version != 1001 or not isinstance(about, dict) or not about["little_endian"]:
            raise UserError(f"{path} was written by a PyTorch that is not known here")
        tree, keys = _load(file, persistent), _load(file, _storage)
        places, end = {}, os.fstat(file.fileno()).st_size
        for key in keys:
            (count,) = struct.unpack("<q", file.read(8))
            size = count * _TYPES[storages[key].type].itemsize
            if count < 0 or file.tell() + size > end:
                raise ValueError(f"storage {key} is not whole")
            places[key] = _Bytes(size, functools.partial(_open_at, path, file.tell()))
            file.seek(size, os.SEEK_CUR)
    return tree, lambda view: _tensor(path, view, places.get)


@contextlib.contextmanager
def _open_at(path: Path, position: int) -> Iterator[IO[bytes]]:
    with open(path, "rb") as file:
        file.seek(position)
        yield file


def _no_archive(path: Path, start: bytes) -> UserError:
    """The error for what `torch.save` did not write, or not wholly."""
    for beginning, what in _KNOWN_STARTS.items():
        if start.startswith(beginning[: len(_OLD_MAGIC)]):
            return UserError(f"{path} is no file of torch.save: {what}")
    return broken(path, "it is no archive as torch.save writes it, or was cut short")


def _tensor(
    path: Path, view: _View, place: Callable[[str], _Bytes | None]
) -> Tensor | str:
    """A tensor as a strided view of its storage, or why it cannot be one."""
    storage, shape, stride = view.storage, view.shape, view.stride
    if not isinstance(storage, _Storage) or (data := place(storage.key)) is None:
        return "has no storage in the file"
    type_ = storage.type if view.type is None else view.type
    if type_ not in _TYPES:
        return f"is of {type_}, which is not read"
    if not isinstance(shape, tuple) or not isinstance(stride, tuple):
        return "has no shape"
    possible = is_shape(shape) and len(shape) == len(stride)
    if not possible or not all(map(_is_number, (view.offset, storage.first, *stride))):
        return "has no shape that can be"
    dtype, size = _TYPES[type_], math.prod(shape)
    first = (view.offset + storage.first) * dtype.itemsize
    reach = sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) + 1
    reach = reach * dtype.itemsize if size else 0
    if first + reach > data.size:
        return f"has shape {shape} and reaches past its storage"
    if size * dtype.itemsize > data.size:  # a stride of 0 makes much of little
        return f"has shape {shape} and repeats its storage"

    def read() -> np.ndarray:
        # Only its own part: thousands may be views of one storage.
        flat = np.empty(reach // dtype.itemsize, dtype)
        try:
            with data.open() as file:
                _skip(file, first)
                read_exactly(path, file, flat)
                # To its end, where the checksum is compared.
                _skip(file, data.size - first - reach + 1)
        except UserError:
            raise
        except (*ZIP_ERRORS, OSError) as error:
            raise broken(path, f"{error}"[:200]) from error
        strides = tuple(s * dtype.itemsize for s in stride)
        return np.lib.stride_tricks.as_strided(flat, shape, strides)

    return Tensor(shape, dtype, read)


def _is_number(value: Any) -> bool:
    return is_shape((value,))


def _skip(file: IO[bytes], size: int) -> None:
    """Reads and forgets; past the end of a storage it finds nothing."""
    while size > 0 and (piece := file.read(min(size, CHUNK))):
        size -= len(piece)
