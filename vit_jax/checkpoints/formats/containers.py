"""Files of named arrays: .npz, .safetensors, and PyTorch's .pth and .bin.

What is in them is data and may be hostile. Nothing is executed, nothing is unpickled
into objects, names are never used as paths, and no more memory is taken than the file
truly holds. Opening a file reads its index alone; each array is read when asked for.
"""

import json
import math
import os
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax import limits
from vit_jax.checkpoints.formats.tensors import (
    BFLOAT16,
    Tensor,
    Tensors,
    broken,
    check_expansion,
    check_name,
    is_shape,
    open_zip,
    read_exactly,
)
from vit_jax.checkpoints.formats.torch_files import SavedDict, open_torch
from vit_jax.errors import NUMPY_ERRORS, ZIP_ERRORS, UserError

_TORCH_ENDINGS = (".pth", ".pt", ".bin", ".ckpt", ".pth.tar")


def open_dicts(path: Path) -> dict[str, SavedDict]:
    """The dicts of arrays in one file.

    Returns:
      By the keys that lead to them, joined by dots; "" is what is at the top. Only
      `torch.save` writes others.

    Raises:
      UserError: if it is none of the formats, or is broken.
    """
    readers: dict[str, Callable[[Path], Tensors]] = {
        ".npz": open_npz,
        ".safetensors": open_safetensors,
    }
    try:
        if path.name.endswith(_TORCH_ENDINGS):
            return open_torch(path)
        if path.suffix in readers:
            return {"": dict(readers[path.suffix](path))}
        path.stat()
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    raise UserError(
        f"{path}: expected a file that ends in "
        f"{', '.join((*readers, *_TORCH_ENDINGS))}, or a directory"
    )


# --- NumPy


def open_npz(path: Path) -> Tensors:
    """The arrays of a NumPy archive; pickled ones are refused."""
    with open_zip(path) as archive:
        check_expansion(path, archive)
        tensors = {}
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            check_name(path, name)
            if name == info.filename or name in tensors:
                raise broken(path, f"it holds {info.filename!r}, not arrays by name")
            tensors[name] = _npy(path, archive, info)
    return tensors


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
    except (*NUMPY_ERRORS, OSError) as error:
        raise broken(path, f"{info.filename}: {error}") from error
    if dtype.hasobject:
        raise UserError(
            f"{path}: {info.filename} holds pickled objects, which could run any code "
            "when read: ask for the file with plain arrays"
        )
    if dtype == np.dtype("V2"):  # NumPy does not know bfloat16 by name
        dtype = BFLOAT16
    if (
        not is_shape(shape)
        or start + math.prod(shape) * dtype.itemsize != info.file_size
    ):
        raise broken(path, f"{info.filename} is not as long as its shape {shape}")

    def read() -> np.ndarray:
        array = np.empty(shape[::-1] if fortran else shape, dtype)
        try:
            with open_zip(path) as archive, archive.open(info) as file:
                file.read(start)
                read_exactly(path, file, array)
                file.read(1)  # its end, where the checksum is compared
        except UserError:
            raise
        except (*ZIP_ERRORS, OSError) as error:
            raise broken(path, f"{info.filename}: {error}") from error
        return array.T if fortran else array

    return Tensor(tuple(shape), dtype, read)


# --- safetensors

_SAFETENSORS_TYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": BFLOAT16,
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
        if size < 8 or length > min(size - 8, limits.HEADER_BYTES):
            raise broken(path, f"{size:,} bytes claim a header of {length:,}")
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        entries = [
            (name, str(entry["dtype"]), tuple(entry["shape"]), first, last)
            for name, entry in header.items()
            for first, last in [entry["data_offsets"]]
        ]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise broken(path, "its header is no list of arrays") from error
    tensors, end = {}, 0
    for name, type_, shape, first, last in sorted(entries, key=lambda e: str(e[3])):
        check_name(path, name)
        whole = is_shape(shape) and is_shape((first,)) and is_shape((last,))
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
