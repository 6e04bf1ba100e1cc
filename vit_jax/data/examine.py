"""Reads records of a split and says what they are like."""

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vit_jax import progress
from vit_jax.data import pipeline, sampler
from vit_jax.data.dataset import Dataset
from vit_jax.errors import UserError

_AT_A_TIME = 256
_KEY = np.uint64(0x636865636B)  # of the choice of records, the same for every run
_NAMED = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """What was read of a split.

    Attributes:
        sizes: height and width of the images, int64 [n, 2].
        counts: how often each class occurs among the labels, int64 [k].
        labelled: the number of records that `counts` is of.
        all_labels: whether these are all records.
        mean: of the pixels in 0..1 by channel, each image counting the same.
        std: likewise, their standard deviation.
        bad: a message for each record that cannot be read.
        out_of_range: a message for each label that the model's head does not have.
    """

    sizes: np.ndarray
    counts: np.ndarray
    labelled: int
    all_labels: bool
    mean: np.ndarray
    std: np.ndarray
    bad: Sequence[str]
    out_of_range: Sequence[str]

    def never(self) -> list[int]:
        """Classes that do not occur."""
        return np.flatnonzero(self.counts == 0).tolist()


def examine(dataset: Dataset, num_classes: int, sample: int | None) -> Sample:
    """Reads records from all over a split, and all labels where that is free.

    Args:
        dataset: the split.
        num_classes: of the model's head.
        sample: how many records; None for all.
    """
    source, n = dataset.source, dataset.num_examples
    count = n if sample is None else min(n, sample)
    records = np.sort(sampler.permute(np.arange(count), n, key=_KEY))
    sizes, bad, labels = [], [], _Labels(dataset, num_classes)
    moments = np.zeros((2, 3))

    def read(record: int) -> tuple[tuple[int, ...], np.ndarray, Any] | str:
        try:
            image, label = source.read(record)
        except UserError as error:
            return str(error)
        pixels = image.reshape(-1, image.shape[-1]) / 255.0
        means = np.stack((pixels.mean(0), np.square(pixels).mean(0)))
        return image.shape[:2], np.broadcast_to(means, (2, 3)), label

    whole = source.labels()
    with (
        ThreadPoolExecutor(pipeline.num_cores()) as pool,
        progress.of_items(count, "  Reading", "records") as done,
    ):
        for start in range(0, count, _AT_A_TIME):
            rows = records[start : start + _AT_A_TIME].tolist()
            for record, result in zip(rows, pool.map(read, rows), strict=True):
                if isinstance(result, str):
                    bad.append(result)
                    continue
                size, means, label = result
                sizes.append(size)
                moments += means
                if whole is None:
                    labels.add(record, label)
            done(len(rows))
    for record, label in enumerate(() if whole is None else whole):
        labels.add(record, label)
    mean, square = moments / max(len(sizes), 1)
    return Sample(
        mean=mean,
        std=np.sqrt(np.maximum(square - mean**2, 0)),
        sizes=np.array(sizes, np.int64).reshape(-1, 2),
        counts=labels.counts,
        labelled=labels.records,
        all_labels=labels.records == n,
        bad=bad,
        out_of_range=labels.out_of_range,
    )


class _Labels:
    """Counts classes."""

    def __init__(self, dataset: Dataset, num_classes: int):
        self.counts = np.zeros(num_classes, np.int64)
        self.records = 0
        self.out_of_range: list[str] = []
        self._describe = dataset.source.describe

    def add(self, record: int, label: Any) -> None:
        self.records += 1
        classes = np.flatnonzero(label).tolist() if np.ndim(label) else [int(label)]
        for i in classes:
            if 0 <= i < len(self.counts):
                self.counts[i] += 1
            else:
                self.out_of_range.append(f"{self._describe(record)}: label {i}")


def describe_sizes(sizes: np.ndarray) -> str:
    """Minimum, median and maximum.

    >>> describe_sizes(np.array([[3, 4], [5, 6], [90, 10]]))
    '3 images decoded: height 3 / 5 / 90, width 4 / 6 / 10 (min / median / max)'
    """
    low, high = sizes.min(0), sizes.max(0)
    middle = np.median(sizes, axis=0).astype(int)
    height, width = (f"{low[i]} / {middle[i]} / {high[i]}" for i in (0, 1))
    return (
        f"{len(sizes):,} images decoded: height {height}, width {width} "
        "(min / median / max)"
    )


def describe_pixels(sample: Sample, mean: Sequence[float], std: Sequence[float]) -> str:
    """Mean and standard deviation, as keys of the config, beside those that it has."""

    def keys(*values: Sequence[float]) -> str:
        texts = [",".join(f"{x:.3f}" for x in three) for three in values]
        return f"config.data.mean={texts[0]} config.data.std={texts[1]}"

    found = keys(sample.mean.tolist(), sample.std.tolist())
    return f"their pixels have {found}; this config has {keys(mean, std)}"


def describe_labels(sample: Sample, names: Sequence[str] | None) -> str:
    """How many classes occur, and which the least and the most often."""
    counts, of = sample.counts, "all" if sample.all_labels else "the sampled"
    present = np.flatnonzero(counts)
    if not len(present):
        return f"labels of {sample.labelled:,} records ({of}): no class occurs"
    least = present[counts[present].argmin()]
    most = present[counts[present].argmax()]
    rarest = f"{named([least], names)}, {counts[least]:,} times"
    most_frequent = f"{named([most], names)}, {counts[most]:,} times"
    return (
        f"labels of {sample.labelled:,} records ({of}): {len(present):,} of "
        f"{len(counts):,} classes occur; rarest {rarest}; most frequent {most_frequent}"
    )


def named(classes: Sequence[int], names: Sequence[str] | None) -> str:
    """The first of some classes, by number and name.

    >>> named([0, 2], ["cat", "dog", "cow"]), named(range(9), None)
    ('0 (cat), 2 (cow)', '0, 1, 2, 3, 4 and 4 more')
    """
    known = names or ()
    shown = [
        f"{i} ({known[i]})" if i < len(known) else f"{i}" for i in classes[:_NAMED]
    ]
    more = f" and {len(classes) - _NAMED} more" if len(classes) > _NAMED else ""
    return ", ".join(shown) + more
