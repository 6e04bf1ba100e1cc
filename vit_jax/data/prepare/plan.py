"""Which files of records there will be; writes those that are not there yet."""

import dataclasses
import glob
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import Any, NamedTuple

import numpy as np

from vit_jax import progress
from vit_jax.data.prepare import shards
from vit_jax.data.prepare.classes import Splits
from vit_jax.data.prepare.shards import Shard

SHARD_SIZE = 2**28  # bytes of images in a file


class Slot(NamedTuple):
    """A file of records to write: rows start .. stop-1 of a split."""

    split: str
    file: str
    start: int
    stop: int


def make(
    name: str, splits: Splits, file_format: str, num_shards: int | None
) -> list[Slot]:
    """The files of each split, with equally many images in each."""
    slots = []
    for split, items in splits.items.items():
        n, size = len(items), int(items.sizes.sum())
        count = min(n, num_shards or max(1, round(size / SHARD_SIZE)))
        edges = [i * n // count for i in range(count + 1)]
        stem = f"{name}-{split}.{file_format}"
        for i in range(count):
            file = f"{stem}-{i:05d}-of-{count:05d}"
            slots.append(Slot(split, file, edges[i], edges[i + 1]))
    return slots


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writer:
    """Writes any file of the dataset.

    Attributes:
        splits: all images.
        file_format: see `Shard`.
        folder: of the files of records.
        work: of what is remembered.
        pool: that writes the files.
        num_workers: of the pool.
    """

    splits: Splits
    file_format: str
    folder: str
    work: str
    pool: Executor
    num_workers: int
    max_pixels: int

    def shard(self, slot: Slot, dropped: Sequence[int]) -> Shard:
        os.makedirs(os.path.join(self.work, "parts"), exist_ok=True)
        items = self.splits.items[slot.split]
        return Shard(
            path=os.path.join(self.folder, slot.file),
            part=os.path.join(self.work, "parts", f"{slot.file}.json"),
            items=items.take(np.arange(slot.start, slot.stop)),
            label_key="labels" if self.splits.multi_label else "label",
            file_format=self.file_format,
            dropped=tuple(dropped),
            max_pixels=self.max_pixels,
        )

    def write_all(
        self, slots: Sequence[Slot], dropped: Mapping[str, Sequence[int]] | None
    ) -> list[dict[str, Any]]:
        """Writes the files that are not there yet.

        Args:
            slots: all files.
            dropped: rows to leave out, by file; None: what was written before may
                leave out any.

        Returns:
            What `shards.write` returns of each.
        """
        parts: list[Any] = []
        ahead: deque[tuple[int, int, Future[dict[str, Any]]]] = deque()
        total = sum(slot.stop - slot.start for slot in slots)
        with progress.of_items(total, "Preparing", "images") as done:
            for i, slot in enumerate(slots):
                rows = (
                    list(dropped[slot.file]) if dropped and slot.file in dropped else []
                )
                shard = self.shard(slot, rows)
                part = shards.finished(shard)
                if part is None or (dropped is not None and part["dropped"] != rows):
                    future = self.pool.submit(shards.write, shard)
                    ahead.append((i, len(shard.items), future))
                else:
                    done(len(shard.items))
                parts.append(part)
                while len(ahead) > 2 * self.num_workers:
                    _take(ahead, parts, done)
            while ahead:
                _take(ahead, parts, done)
        return parts


def _take(
    ahead: deque[tuple[int, int, Future[dict[str, Any]]]],
    parts: list[Any],
    done: Callable[[int], None],
) -> None:
    i, count, future = ahead.popleft()
    parts[i] = future.result()
    done(count)


def remove_strays(folder: str, work: str, slots: Sequence[Slot]) -> None:
    """Removes what a kill, or a call with other flags, has left."""
    kept = {slot.file for slot in slots}
    for path in glob.glob(f"{glob.escape(folder)}/*"):
        if os.path.basename(path) not in kept:
            os.remove(path)
    for path in glob.glob(f"{glob.escape(work)}/parts/*.tmp"):
        os.remove(path)
