"""Builds batch number s, or any rows of it, as a pure function of (seed, s)."""

import dataclasses
import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import numpy as np

from vit_jax.data import sampler
from vit_jax.data.augmentation import Draws
from vit_jax.data.sources import Source
from vit_jax.data.sources.arrays import ArraySource
from vit_jax.data.sources.mixture import MixtureSource
from vit_jax.data.transforms import EvalTransform, TrainTransform
from vit_jax.errors import BadExample, UserError

Batch = dict[str, np.ndarray]

_CHUNKS = 4  # pieces of a batch for each thread, so that they finish together


class Built(NamedTuple):
    """A batch, and why some of its rows are masked though there is an example.

    Attributes:
        batch: image, label and mask.
        bad: (row of the global batch, message) of each example that was skipped.
    """

    batch: Batch
    bad: list[tuple[int, str]]


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
        num_classes: class numbers of this or more, or below 0, are bad; None: unknown.
        skip_bad: a bad example keeps its row, with mask False; otherwise it raises.
    """

    source: Source
    transform: TrainTransform | EvalTransform
    image_size: tuple[int, int]
    batch_size: int
    rows: np.ndarray
    seed: int | None
    num_threads: int
    num_classes: int | None = None
    skip_bad: bool = False

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
        end_with_parent()

    def close(self) -> None:
        """Drops what the threads have not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def __call__(self, step: int) -> Built:
        """The rows of batch `step`: image [b, h, w, 3], label [b(, k)], mask [b].

        Raises:
            BadExample: the first bad one, unless they are skipped.
        """
        numbers = step * self.batch_size + self.rows
        if self.seed is None:
            mask = numbers < len(self.source)
            records, draws = np.where(mask, numbers, 0), None
        else:
            mask = np.ones(len(numbers), bool)
            assert isinstance(self.transform, TrainTransform)
            repeats = self.transform.repeats
            records = _record_numbers(self.source, numbers, self.seed, repeats)
            draws = self.transform.draw(self.seed, numbers)
        bad: dict[int, str] = {}
        if self._gathers():
            image, label = self._gather(records, draws)
        else:
            image, label = self._read(records, draws, mask, bad)
        self._check_labels(records, label, mask, bad)
        mask[list(bad)] = False
        image[~mask] = 0
        label[~mask] = 0
        batch = {"image": image, "label": label, "mask": mask}
        return Built(batch, [(int(self.rows[i]), bad[i]) for i in sorted(bad)])

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
        self,
        records: np.ndarray,
        draws: Draws | None,
        mask: np.ndarray,
        bad: dict[int, str],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Any other images: one at a time, spread over threads. Fills in `bad`."""
        source = self.source
        image = np.empty((len(records), *self.image_size, 3), np.uint8)
        if source.multi_hot:
            label = np.empty((len(records), source.num_classes or 0), np.float32)
        else:
            label = np.empty(len(records), np.int32)

        def read(rows: np.ndarray) -> None:
            for i in rows.tolist():
                record = int(records[i])
                row = None if draws is None else draws.row(i)
                try:
                    part, label[i] = source.read(record, self.transform.wants(row))
                except BadExample as e:
                    self._note(bad, i, e)
                    continue
                try:
                    image[i] = self.transform.finish(part, self.image_size, row)
                except UserError as e:
                    raise UserError(f"{source.describe(record)}: {e}") from e

        rows = np.flatnonzero(mask)
        chunks = min(len(rows), _CHUNKS * self.num_threads)
        for _ in self._pool.map(read, np.array_split(rows, chunks) if chunks else []):
            pass  # raises the first error, in the order of the rows
        return image, label

    def _check_labels(
        self,
        records: np.ndarray,
        label: np.ndarray,
        mask: np.ndarray,
        bad: dict[int, str],
    ) -> None:
        """Fills in `bad` with the class numbers that no class of the model has."""
        if self.num_classes is None or label.ndim == 2:
            return
        outside = mask & ((label < 0) | (label >= self.num_classes))
        for i in np.flatnonzero(outside).tolist():
            if i not in bad:  # what was not read has no label
                why = (
                    f"{self.source.describe(int(records[i]))} has label {label[i]}, "
                    f"out of range 0..{self.num_classes - 1}; correct the labels, or "
                    "set config.model.num_classes."
                )
                self._note(bad, i, BadExample(why))

    def _note(self, bad: dict[int, str], i: int, error: BadExample) -> None:
        if not self.skip_bad:
            raise BadExample(
                f"{error} Or leave out, and count, what is bad: "
                "--config.data.on_bad_example=skip."
            ) from error
        bad[i] = str(error)


def _record_numbers(
    source: Source, numbers: np.ndarray, seed: int, repeats: int
) -> np.ndarray:
    """The record of each global example number."""
    if isinstance(source, MixtureSource):
        return sampler.mixture_record_numbers(
            numbers, source.sizes, source.shares, seed=seed, repeats=repeats
        )
    return sampler.record_numbers(numbers, len(source), seed=seed, repeats=repeats)


def end_with_parent() -> None:
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
