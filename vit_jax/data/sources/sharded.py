"""A folder of array_record files and nothing else: no dataset_info.json.

For private sets of hundreds of millions of images. The files of a split are named as
TFDS does, [NAME-]SPLIT.array_record-00003-of-01024, or as Grain's users do,
[NAME-]SPLIT-00003-of-01024.array_record, or [NAME-]SPLIT.array_record alone; a record
is a tf.train.Example with an encoded image and either one integer, the class, or as
many numbers as there are classes.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from vit_jax import limits
from vit_jax.data import splits
from vit_jax.data.sources.description import Label
from vit_jax.data.sources.example import parse_example
from vit_jax.data.sources.records import ArrayRecords, Shard, count_array_records
from vit_jax.data.sources.tfds import TfdsSource
from vit_jax.errors import UserError

_FILE = re.compile(
    r"(\w+-)*?(?P<split>\w+?)(-(?P<i>\d{5,})-of-(?P<n>\d{5,}))?\.array_?record"
    r"(-(?P<j>\d{5,})-of-(?P<m>\d{5,}))?"
)
_THREADS = 16


def open_sharded(
    data_dir: str,
    *,
    split: str,
    image_key: str | None,
    label_key: str | None,
    max_pixels: int = limits.IMAGE_PIXELS,
) -> TfdsSource:
    """Opens the array_record files of a folder; the first record tells what labels are.

    Raises:
        UserError: no such folder, no files, a file missing, or records of another kind.
    """
    if not os.path.isdir(data_dir):
        raise UserError(f'config.data.data_dir="{data_dir}" is not a folder.')
    files = _files(data_dir)
    names = [name for name in splits.split_names(split) if name in files]
    sizes, counts = dict.fromkeys(files, 0), {}
    for name in names:
        with ThreadPoolExecutor(_THREADS) as pool:
            counts[name] = list(pool.map(count_array_records, files[name]))
        sizes[name] = sum(counts[name])
    ranges = splits.resolve(split, sizes, where=data_dir)
    shards = [s for r in ranges for s in _shards(files[r.name], counts[r.name], r)]
    records = ArrayRecords(shards)
    image_key, label_key = image_key or "image", label_key or "label"
    label = _label(records, label_key)
    basenames = {name: [os.path.basename(f) for f in files[name]] for name in names}
    described = repr((basenames, counts, ranges, image_key, label_key))
    return TfdsSource(
        records,
        folder=data_dir,
        image_key=image_key,
        label_key=label_key,
        label=label,
        label_names=None,
        fingerprint=hashlib.sha256(described.encode()).hexdigest()[:16],
        max_pixels=max_pixels,
    )


def _files(data_dir: str) -> dict[str, list[str]]:
    """The files of each split, in their order; none may be missing."""
    found: dict[str, dict[int, str]] = {}
    totals: dict[str, int] = {}
    for name in sorted(os.listdir(data_dir)):
        match = _FILE.fullmatch(name)
        if match is not None:
            number = int(match["i"] or match["j"] or 0)
            found.setdefault(match["split"], {})[number] = os.path.join(data_dir, name)
            totals[match["split"]] = int(match["n"] or match["m"] or 1)
    if not found:
        raise UserError(
            f"{data_dir} has no array_record files; expected for example "
            "train.array_record-00000-of-00008 or train-00000-of-00008.array_record."
        )
    for split, files in found.items():
        missing = sorted(set(range(totals[split])) - set(files))
        if missing or len(files) != totals[split]:
            raise UserError(
                f'{data_dir} has {len(files)} files of split "{split}", their names '
                f"say {totals[split]}; copy all of one writing"
                + (f" (number {missing[0]} is missing)." if missing else ".")
            )
    return {split: [files[i] for i in sorted(files)] for split, files in found.items()}


def _shards(
    files: Sequence[str], counts: Sequence[int], part: splits.Range
) -> list[Shard]:
    """The files that hold records start .. stop-1 of a split."""
    firsts = np.cumsum([0, *counts])[:-1].tolist()
    shards = []
    for path, size, first in zip(files, counts, firsts, strict=True):
        start, stop = max(part.start - first, 0), min(part.stop - first, size)
        if start < stop:
            shards.append(Shard(path, size, start, stop))
    return shards


def _label(records: ArrayRecords, key: str) -> Label:
    """What the first record has as a label: one class, or a vector."""
    try:
        example = parse_example(records[0], (key,))
    except ValueError as e:
        if isinstance(e, UserError):
            raise
        raise UserError(
            f"{records.describe(0)} is not a tf.train.Example ({e})."
        ) from e
    values = example[key] if key in example else None
    if isinstance(values, np.ndarray) and len(values) > 1:
        return Label("vector", len(values))
    if isinstance(values, np.ndarray) and values.dtype == np.int64 and len(values):
        return Label("class", None)
    raise UserError(
        f'config.data.label_key="{key}": {records.describe(0)} has no such numbers; '
        "expected one integer, the class, or one number for each class."
    )
