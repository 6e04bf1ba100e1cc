"""Builds batch number s, or any rows of it, as a pure function of (seed, s)."""

import dataclasses
import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np

from vit_jax.data import sampler
from vit_jax.data.sources import Source
from vit_jax.data.sources.arrays import ArraySource
from vit_jax.data.sources.mixture import MixtureSource
from vit_jax.data.transforms import Draws, EvalTransform, TrainTransform
from vit_jax.errors import UserError

Batch = dict[str, np.ndarray]

_CHUNKS = 4  # pieces of a batch for each thread, so that they finish together


@dataclasses.dataclass(kw_only=True)
class BatchBuilder:
    """step -> batch, for Grain to map over step numbers.

    Attributes:
        source: the records.
        transform: for training or for evaluation.
        image_size: (height, width).
        batch_size: of the global batch.
        rows: the rows of the global batch to build, int64 [b].
        seed: of the run; None for evaluation, where records come in their own order
            and rows past the last record are masked.
        num_threads: how many images of a batch are worked on at a time.
    """

    source: Source
    transform: TrainTransform | EvalTransform
    image_size: tuple[int, int]
    batch_size: int
    rows: np.ndarray
    seed: int | None
    num_threads: int

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(self.num_threads, "vit_jax-data")
        # One image, one thread: OpenCV's own threads would only compete.
        cv2.setNumThreads(1)

    def __getstate__(self) -> dict[str, Any]:
        fields = dataclasses.fields(self)
        return {field.name: getattr(self, field.name) for field in fields}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In a worker process: threads do not travel, they are made anew."""
        self.__dict__.update(state)
        self.__post_init__()
        _end_with_parent()

    def close(self) -> None:
        """Drops what the threads have not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def __call__(self, step: int) -> Batch:
        """The rows of batch `step`: image [b, h, w, 3], label [b(, k)], mask [b]."""
        numbers = step * self.batch_size + self.rows
        if self.seed is None:
            mask = numbers < len(self.source)
            records, draws = np.where(mask, numbers, 0), None
        else:
            mask = np.ones(len(numbers), bool)
            records = _record_numbers(self.source, numbers, self.seed)
            draws = self.transform.draw(self.seed, numbers)
        if self._gathers():
            image, label = self._gather(records, draws)
        else:
            image, label = self._read(records, draws, mask)
        image[~mask] = 0
        label[~mask] = 0
        return {"image": image, "label": label, "mask": mask}

    def _gathers(self) -> bool:
        if not isinstance(self.source, ArraySource):
            return False
        height, width = self.source.images.shape[1:3]
        return self.transform.batches((height, width), self.image_size)

    def _gather(
        self, records: np.ndarray, draws: Draws | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Images in memory that need no resizing: a whole batch at a time."""
        assert isinstance(self.source, ArraySource)
        image = self.transform.call_batch(self.source.images[records], draws)
        if image.shape[-1] == 1:
            image = np.repeat(image, 3, axis=-1)
        return np.ascontiguousarray(image), self.source.labels()[records]

    def _read(
        self, records: np.ndarray, draws: Draws | None, mask: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Any other images: one at a time, spread over threads."""
        source = self.source
        image = np.empty((len(records), *self.image_size, 3), np.uint8)
        if source.multi_hot:
            label = np.empty((len(records), source.num_classes or 0), np.float32)
        else:
            label = np.empty(len(records), np.int32)

        def read(rows: np.ndarray) -> None:
            for i in rows.tolist():
                record = int(records[i])
                pixels, label[i] = source.read(record)
                row = None if draws is None else draws.row(i)
                try:
                    image[i] = self.transform(pixels, self.image_size, row)
                except UserError as e:
                    raise UserError(f"{source.describe(record)}: {e}") from e

        rows = np.flatnonzero(mask)
        chunks = min(len(rows), _CHUNKS * self.num_threads)
        for _ in self._pool.map(read, np.array_split(rows, chunks) if chunks else []):
            pass  # raises the first error, in the order of the rows
        return image, label


def _record_numbers(source: Source, numbers: np.ndarray, seed: int) -> np.ndarray:
    """The record of each global example number."""
    if isinstance(source, MixtureSource):
        return sampler.mixture_record_numbers(
            numbers, source.sizes, source.shares, seed=seed
        )
    return sampler.record_numbers(numbers, len(source), seed=seed)


def _end_with_parent() -> None:
    """In a worker process: ends it with the one that it works for.

    A process that is killed cannot end its workers; they would wait for it for ever.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True, name="wait for the parent").start()
