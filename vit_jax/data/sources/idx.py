"""IDX files, the format of MNIST (yann.lecun.com/exdb/mnist), gzipped or not.

A big-endian header (two zero bytes, a type, the number of dimensions, then each
dimension as 4 bytes) and the numbers.
"""

import gzip
import math
import os
import struct
import zlib

import numpy as np

from vit_jax import limits
from vit_jax.data import splits
from vit_jax.data.sources.arrays import ArraySource, Loaded, open_arrays
from vit_jax.errors import UserError

_PREFIXES = {"train": "train", "test": "t10k"}
_UINT8 = 0x08

_FASHION_MNIST_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_MINI_TRAIN, _MINI_TOTAL = 8_000, 10_000


def open_fashion_mnist_mini(split: str) -> ArraySource:
    """The 10,000 test images of Fashion-MNIST: 8,000 to train on, 2,000 to test.

    28 x 28 grey images of 10 balanced classes of clothes (Xiao, Rasul, Vollgraf 2017;
    (c) Zalando SE, MIT licence, in the package beside the data). The first 8,000 are
    "train", the last 2,000 "test". Not the usual benchmark: that is name="idx" on the
    full 70,000.
    """
    folder = os.path.join(os.path.dirname(__file__), "..", "fashion_mnist_mini")
    images = read_idx(os.path.join(folder, "t10k-images-idx3-ubyte.gz"), ndim=3)
    labels = read_idx(os.path.join(folder, "t10k-labels-idx1-ubyte.gz"), ndim=1)
    bounds = {"train": (0, _MINI_TRAIN), "test": (_MINI_TRAIN, _MINI_TOTAL)}
    name = "fashion_mnist_mini"
    ranges = splits.resolve(
        split, {k: stop - start for k, (start, stop) in bounds.items()}, where=name
    )
    return ArraySource(
        [images[slice(*bounds[r.name])] for r in ranges],
        [labels[slice(*bounds[r.name])] for r in ranges],
        ranges=ranges,
        name=name,
        num_classes=len(_FASHION_MNIST_NAMES),
        label_names=_FASHION_MNIST_NAMES,
    )


def open_idx(data_dir: str, split: str, held_out: float | None = None) -> ArraySource:
    """A folder of {train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]; t10k is "test".

    Raises:
        UserError: a file that is missing, cut short or not IDX.
    """
    existing = split_files(data_dir)
    labelled = [n for n in existing if _find(data_dir, f"{_PREFIXES[n]}-labels")]

    def load(name: str) -> Loaded:
        file = _find(data_dir, f"{_PREFIXES[name]}-images")
        assert file is not None
        return Loaded(read_idx(file, ndim=3), _read_labels(data_dir, name))

    return open_arrays(
        split,
        existing,
        load,
        name=data_dir,
        held_out=held_out or 0.0,
        labels=[_read_labels(data_dir, name) for name in labelled],
    )


def split_files(data_dir: str) -> list[str]:
    """The splits whose images are there."""
    if not os.path.isdir(data_dir):
        raise UserError(f'config.data.data_dir="{data_dir}" is not a folder.')
    existing = [s for s, p in _PREFIXES.items() if _find(data_dir, f"{p}-images")]
    if not existing:
        raise UserError(
            f"{data_dir} has no train-images-idx3-ubyte[.gz] and no "
            "t10k-images-idx3-ubyte[.gz]; config.data.data_dir must be the folder of "
            "the IDX files."
        )
    return existing


def _read_labels(data_dir: str, split: str) -> np.ndarray:
    prefix = _PREFIXES[split]
    file = _find(data_dir, f"{prefix}-labels")
    if file is None:
        raise UserError(
            f"{data_dir} has the images of {prefix} but no "
            f"{prefix}-labels-idx1-ubyte[.gz]."
        )
    return read_idx(file, ndim=1)


def _find(data_dir: str, start: str) -> str | None:
    """The file, under the usual names: also `train-images.idx3-ubyte`."""
    found = sorted(f for f in os.listdir(data_dir) if f.startswith(start))
    return os.path.join(data_dir, found[0]) if found else None


def read_idx(path: str, *, ndim: int) -> np.ndarray:
    """The bytes of an IDX file as uint8 with `ndim` dimensions.

    Raises:
        UserError: not an IDX file of bytes, cut short, or with bytes left over.
    """
    header = 4 + 4 * ndim
    data = _read_bytes(path, header)
    if len(data) < header or data[:4] != bytes((0, 0, _UINT8, ndim)):
        raise UserError(
            f"{path} is not an IDX file of uint8 with {ndim} dimensions: it starts "
            f"with {data[:4].hex(' ') or 'nothing'}, expected 00 00 08 {ndim:02x}."
        )
    shape = struct.unpack(f">{ndim}I", data[4:])
    limits.check_unpacked(path, os.path.getsize(path), math.prod(shape))
    limits.check_memory(path, math.prod(shape))
    data = _read_bytes(path, header + math.prod(shape) + 1)  # one too many, if any
    promised = header + math.prod(shape)
    if len(data) != promised:
        more = " or more" if len(data) > promised else ""
        raise UserError(
            f"{path} has {len(data)}{more} bytes (unpacked), but its header promises "
            f"{list(shape)}, {promised} bytes; it is cut short or "
            "damaged: copy it again."
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _read_bytes(path: str, size: int) -> bytes:
    """The first bytes of a file, unpacked."""
    try:
        with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
            return file.read(size)
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise UserError(
            f"{path} cannot be unpacked ({e}); it is cut short or damaged: copy it "
            "again."
        ) from e
