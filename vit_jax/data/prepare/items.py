"""One row for each image, in columns: ~70 bytes a row and the name's length."""

import dataclasses
import errno
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vit_jax import limits
from vit_jax.data import image_file

_MAX_OPEN_FILES = 64


class Labels(NamedTuple):
    """The classes of n images: those of image i are values[ends[i - 1] : ends[i]].

    Attributes:
        values: int32 [m], numbers of `names`, or of classes where that is None.
        ends: int64 [n].
        names: of classes, in any order.
        ordered: whether `names` are all classes there are, in their order.
        several: whether an image may have any number of classes, by what it comes from.
    """

    values: np.ndarray
    ends: np.ndarray
    names: tuple[str, ...] | None
    ordered: bool = False
    several: bool = False

    @classmethod
    def of_class(cls, name: str, n: int) -> "Labels":
        """All images are of one class."""
        return cls(np.zeros(n, np.int32), np.arange(1, n + 1), (name,))

    def take(self, rows: np.ndarray) -> "Labels":
        starts = np.concatenate([[0], self.ends[:-1]])[rows]
        counts = self.ends[rows] - starts
        ends = np.cumsum(counts)
        where = np.arange(counts.sum()) + np.repeat(starts - (ends - counts), counts)
        return self._replace(values=self.values[where], ends=ends)

    def counts(self) -> np.ndarray:
        """How many classes each image has, int64 [n]."""
        return np.diff(self.ends, prepend=0)

    def row(self, i: int) -> list[int]:
        start = int(self.ends[i - 1]) if i else 0
        return self.values[start : int(self.ends[i])].tolist()


@dataclasses.dataclass(frozen=True)
class Items:
    """Images and where their bytes are, as columns of n rows.

    Attributes:
        containers: paths of folders, or of files that hold many images.
        container: int32 [n], of `containers`.
        names: bytes [n]; unique in a split, and the same wherever the source lies.
        offsets: int64 [n], of the bytes in the container; -1 where the image is a
            file of its own, container/name.
        sizes: int64 [n], bytes.
        times: int64 [n], when the file was changed, ns.
        labels: of the images.
    """

    containers: tuple[str, ...]
    container: np.ndarray
    names: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    times: np.ndarray
    labels: Labels

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: np.ndarray) -> "Items":
        used, container = np.unique(self.container[rows], return_inverse=True)
        return Items(
            tuple(self.containers[i] for i in used.tolist()),
            container.astype(np.int32),
            self.names[rows],
            self.offsets[rows],
            self.sizes[rows],
            self.times[rows],
            self.labels.take(rows),
        )

    def name(self, i: int) -> str:
        return os.fsdecode(self.names[i].item())

    def where(self, i: int) -> str:
        """The file that holds image i."""
        container = self.containers[self.container[i]]
        if self.offsets[i] >= 0:
            return container
        return os.path.join(container, self.name(i))


def in_container(
    path: str,
    names: Sequence[str],
    sizes: Sequence[int],
    labels: Labels,
    *,
    offsets: Sequence[int] | None = None,
    times: Sequence[int] | None = None,
) -> Items:
    """Images of one folder, or (with their offsets) of one file."""
    n = len(names)
    if times is None:
        times = [os.stat(path).st_mtime_ns] * n
    return Items(
        (path,),
        np.zeros(n, np.int32),
        np.array([os.fsencode(name) for name in names], "S"),
        np.full(n, -1, np.int64) if offsets is None else np.array(offsets, np.int64),
        np.array(sizes, np.int64),
        np.array(times, np.int64),
        labels,
    )


def join(parts: Sequence[Items]) -> Items:
    """All rows; the labels' names must be the same."""
    first_container = np.cumsum([0, *(len(p.containers) for p in parts)])
    first_label = np.cumsum([0, *(len(p.labels.values) for p in parts)])
    pairs = list(zip(parts, first_container, first_label, strict=False))
    labels = Labels(
        np.concatenate([p.labels.values for p in parts]),
        np.concatenate([p.labels.ends + start for p, _, start in pairs]),
        parts[0].labels.names,
    )
    return Items(
        tuple(path for p in parts for path in p.containers),
        np.concatenate([p.container + start for p, start, _ in pairs]).astype("i4"),
        np.concatenate([p.names for p in parts]),
        np.concatenate([p.offsets for p in parts]),
        np.concatenate([p.sizes for p in parts]),
        np.concatenate([p.times for p in parts]),
        labels,
    )


class Reader:
    """Reads the bytes of images; keeps a few container files open."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}

    def read(self, items: Items, i: int) -> bytes:
        """All bytes of an image.

        Raises:
            OSError: the file cannot be read, or not as far as that; or it is a pipe or
                a device, of which there may be no end.
        """
        path, offset, size = items.where(i), int(items.offsets[i]), int(items.sizes[i])
        if offset < 0:
            return image_file.read(path)
        if size > limits.IMAGE_BYTES:
            raise OSError(errno.EFBIG, f"{size:,} bytes are no image", path)
        data = os.pread(self._open(path), size, offset)
        if len(data) != size:
            raise OSError(0, f"{path} ends before byte {offset + size}")
        return data

    def _open(self, path: str) -> int:
        if path not in self._files:
            if len(self._files) >= _MAX_OPEN_FILES:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[path] = os.open(path, os.O_RDONLY)
        return self._files[path]

    def close(self) -> None:
        for file in self._files.values():
            os.close(file)
        self._files = {}
