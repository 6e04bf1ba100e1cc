"""Prepares a dataset: finds, writes, reports, describes.

    DATA_DIR/NAME/VERSION              appears at the end, whole
    DATA_DIR/NAME/.VERSION.incomplete  the same while it grows
    DATA_DIR/NAME/.VERSION.work        what is remembered to go on after a kill

Every file is written under another name and then renamed. A file of records is a
function of the names and bytes of its images alone, so neither a kill nor the number
of workers can change it.
"""

import bisect
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import multiprocessing
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Literal

import cv2
import numpy as np

from vit_jax import durable, limits, progress
from vit_jax.data.builder import end_with_parent
from vit_jax.data.prepare import (
    classes,
    finish,
    labels,
    plan,
    reports,
    shards,
    tables,
)
from vit_jax.data.prepare.classes import Splits
from vit_jax.data.prepare.plan import Slot
from vit_jax.data.prepare.shards import DIGEST
from vit_jax.data.prepare.sources import Finder
from vit_jax.data.prepare.tables import Columns
from vit_jax.data.sources import layout
from vit_jax.data.sources.base import BUILT_IN
from vit_jax.errors import UserError

MANIFEST = "manifest.json"
_MOST_SHARDS = 99_999  # their numbers have five digits
_KINDS = ("undecodable", "reencoded")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to prepare, and how. `python -m vit_jax.data.prepare --help` explains."""

    sources: tuple[str, ...]
    data_dir: str
    name: str
    version: str = "1.0.0"
    file_format: Literal["array_record", "tfrecord"] = "array_record"
    num_shards: int | None = None
    num_workers: int
    on_bad: Literal["error", "skip"] = "error"
    drop_duplicates: bool = False
    max_pixels: int = limits.IMAGE_PIXELS
    labels: str | None = None
    classes: str | None = None
    columns: Columns = dataclasses.field(default_factory=Columns)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name) or self.name in BUILT_IN:
            raise UserError(
                f'--name={self.name}: expected small letters, digits and "_", after a '
                f"letter, and none of {', '.join(BUILT_IN)}."
            )
        if not self.data_dir.strip() or "://" in self.data_dir:
            raise UserError(
                f'--data_dir="{self.data_dir}": expected a folder on this machine; '
                "copy the dataset elsewhere when it is whole."
            )
        if not re.fullmatch(r"\d+\.\d+\.\d+", self.version):
            raise UserError(f"--version={self.version}: expected such as 1.0.0.")
        for flag, value, most in (
            ("num_shards", self.num_shards, _MOST_SHARDS),
            ("num_workers", self.num_workers, limits.WORKERS),
            ("max_pixels", self.max_pixels, limits.MOST_IMAGE_PIXELS),
        ):
            if value is not None and not 1 <= value <= most:
                raise UserError(
                    f"--{flag}={value}: expected 1 or more, and at most {most:,}."
                )

    @property
    def folder(self) -> str:
        return os.path.join(os.path.expanduser(self.data_dir), self.name, self.version)

    @property
    def incomplete(self) -> str:
        return self._beside("incomplete")

    @property
    def work(self) -> str:
        return self._beside("work")

    def _beside(self, what: str) -> str:
        return os.path.join(os.path.dirname(self.folder), f".{self.version}.{what}")


def prepare(options: Options, say: Callable[[str], None] = print) -> None:
    """Prepares the dataset, or goes on where an earlier call was killed.

    Args:
        options: what and how.
        say: is called with each line that there is to say.

    Raises:
        UserError: bad sources, images that do not decode with on_bad="error", or
            another dataset in that place.
    """
    with _written(), _locked(options.work), _workers(options) as pool:
        splits, left_out = _find(options, pool)
        for line in _found(splits, left_out):
            say(line)
        request = _request(options, splits)
        if os.path.isdir(options.folder):
            _check_same(options.folder, request)
            say(f"{options.folder} is whole already.")
        else:
            _prepare(options, splits, pool, request, say)
        shutil.rmtree(options.incomplete, ignore_errors=True)
        shutil.rmtree(options.work)
    key = " --config.data.label_key=labels" if splits.multi_label else ""
    say(
        f"{options.folder} is prepared. To train on it: --config.data.name="
        f"{options.name} --config.data.data_dir={options.data_dir}{key}"
    )


def _prepare(
    options: Options,
    splits: Splits,
    pool: Executor,
    request: str,
    say: Callable[[str], None],
) -> None:
    """From images to a whole folder."""
    folder, count = options.incomplete, options.num_shards
    os.makedirs(folder, exist_ok=True)
    slots = plan.make(options.name, splits, options.file_format, count)
    plan.remove_strays(folder, options.work, slots)
    writer = plan.Writer(
        splits=splits,
        file_format=options.file_format,
        folder=folder,
        work=options.work,
        pool=pool,
        num_workers=options.num_workers,
        max_pixels=options.max_pixels,
    )
    parts = writer.write_all(slots, None)
    sources = tables.spilled(_spill(options))
    undecodable, reencoded = (_lines(slots, parts, k, sources) for k in _KINDS)
    found = _duplicates(splits, slots, parts)
    lines = _sorted(reports.duplicate_line(splits, d) for d in found)
    for name, report in (
        ("undecodable", undecodable),
        ("reencoded", reencoded),
        ("duplicates", lines),
    ):
        shards.write_lines(os.path.join(folder, f"{name}.jsonl"), report)
    say(f"{len(undecodable)} images do not decode; {len(reencoded)} encoded anew.")
    for line in reports.summary_of_duplicates(lines, dropped=options.drop_duplicates):
        say(line)
    if undecodable and options.on_bad == "error":
        raise UserError(
            f"{len(undecodable)} images do not decode; replace or remove them, or "
            "leave them out with --on_bad=skip (what is done is not done again). They "
            f"are listed in {folder}/undecodable.jsonl:\n{reports.listed(undecodable)}"
        )
    dropped = _dropped(slots, found) if options.drop_duplicates else {}
    if dropped or any(part["dropped"] for part in parts):
        parts = writer.write_all(slots, dropped)
    _finish(options, splits, slots, parts, request, say)
    os.rename(folder, options.folder)
    shards.sync_folder(os.path.dirname(options.folder))


@contextlib.contextmanager
def _written() -> Iterator[None]:
    """A full disk, or a folder that is taken away, is told in one message."""
    try:
        yield
    except BrokenPipeError:  # who read the output has gone
        raise
    except OSError as e:
        what = f"{e.filename}: " if e.filename else ""
        raise UserError(
            f"{what}{durable.explained(e)}. What is done is not done again."
        ) from e


@contextlib.contextmanager
def _locked(work: str) -> Iterator[None]:
    """Two calls that prepare the same would remove each other's files."""
    try:
        os.makedirs(work, exist_ok=True)
    except OSError as e:
        raise UserError(f"--data_dir: {work} cannot be made: {e.strerror}.") from e
    with open(os.path.join(work, "lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            raise UserError(f"{work} is in use: it is being prepared already.") from e
        with open(_workers_lock(work), "w") as of_workers:
            fcntl.flock(of_workers, fcntl.LOCK_EX)  # waits for those of a killed call
        yield


def _workers_lock(work: str) -> str:
    return os.path.join(work, "workers.lock")


@contextlib.contextmanager
def _workers(options: Options) -> Iterator[Executor]:
    if options.num_workers == 1:  # a thread of this process, which need not be started
        pool = ThreadPoolExecutor(1)
    else:
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(
            options.num_workers, context, _start_worker, (options.work,)
        )
    try:
        yield pool
    except BrokenProcessPool as e:
        raise UserError(
            "a worker was killed, perhaps for its memory; run the same command again "
            "to go on, with a smaller --num_workers if need be."
        ) from e
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(work: str) -> None:
    """In a worker: ends with the call that it works for, and is waited for till then.

    First the lock, then the look at the parent: a later call either waits for this
    worker, or the parent that it has outlived is seen to be dead.
    """
    lock = os.open(_workers_lock(work), os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_SH)
    end_with_parent()
    parent = multiprocessing.parent_process()
    if parent is None or not parent.is_alive():
        os._exit(1)
    cv2.setNumThreads(1)


def _spill(options: Options) -> str:
    """The folder of what was unpacked."""
    return os.path.join(options.work, "spill")


def _find(options: Options, pool: Executor) -> tuple[Splits, Counter[str]]:
    finder = Finder(
        spill=_spill(options),
        pool=pool,
        columns=options.columns,
        labels=options.labels,
    )
    parts = [part for source in options.sources for part in finder.find(source)]
    given = labels.read_classes(options.classes) if options.classes else None
    if options.labels is not None and not finder.labelled:
        raise UserError(
            f"--labels={options.labels} has no effect: all images of the sources are "
            "in class folders, class tars or tables."
        )
    return classes.number(parts, given), finder.left_out


def _found(splits: Splits, left_out: Counter[str]) -> Iterator[str]:
    for split, items in splits.items.items():
        counts = np.bincount(items.labels.values, minlength=len(splits.classes))
        size = progress.size(int(items.sizes.sum()))
        least, most = int(counts.argmin()), int(counts.argmax())
        yield (
            f"{split}: {len(items):,} images, {size}; of "
            f"{len(counts):,} classes {int((counts > 0).sum()):,} occur; rarest "
            f'"{splits.classes[least]}", {counts[least]:,} times; most frequent '
            f'"{splits.classes[most]}", {counts[most]:,} times'
        )
    if listed := layout.listed(left_out):
        yield f"Left out {listed}"


def _request(options: Options, splits: Splits) -> str:
    """Digest of what is asked for, wherever the sources lie."""
    asked = (
        options.file_format,
        options.num_shards,
        options.drop_duplicates,
        splits.classes,
        splits.multi_label,
    )
    digest = hashlib.sha256(repr(asked).encode())
    for split, items in splits.items.items():
        digest.update(repr((split, len(items))).encode())
        for column in (items.names, items.sizes, *items.labels[:2]):
            digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()


def _check_same(folder: str, request: str) -> None:
    path = os.path.join(folder, MANIFEST)
    try:
        with open(path, encoding="utf-8") as file:
            same = json.load(file)["request"] == request
    except (OSError, ValueError, KeyError):
        same = False
    if not same:
        raise UserError(
            f"{folder} holds another dataset (other images, labels or flags); remove "
            "it, or choose another --name or --version."
        )


def _lines(
    slots: Sequence[Slot],
    parts: Sequence[Mapping[str, Any]],
    kind: str,
    sources: Mapping[str, str],
) -> list[dict[str, Any]]:
    """The lines of a report, by split and name; `sources` are of what was unpacked."""

    def where(path: str) -> str:
        folder = os.path.dirname(path)
        return sources[folder] if folder in sources else path

    return _sorted(
        {
            "path": x["path"],
            "split": slot.split,
            "what": x["what"],
            "where": where(x["where"]),
        }
        for slot, part in zip(slots, parts, strict=True)
        for x in part[kind]
    )


def _sorted(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(lines, key=lambda line: (line["split"], line["path"]))


def _duplicates(
    splits: Splits, slots: Sequence[Slot], parts: Sequence[Mapping[str, Any]]
) -> list[reports.Duplicate]:
    images = {s: np.zeros((len(i), DIGEST), np.uint8) for s, i in splits.items.items()}
    bad = {s: np.zeros(len(i), bool) for s, i in splits.items.items()}
    for slot, part in zip(slots, parts, strict=True):
        digests = np.frombuffer(bytes.fromhex(part["images"]), np.uint8)
        images[slot.split][slot.start : slot.stop] = digests.reshape(-1, DIGEST)
        for line in part["undecodable"]:
            bad[slot.split][slot.start + line["row"]] = True
    return reports.duplicates(splits, images, bad)


def _dropped(
    slots: Sequence[Slot], found: Sequence[reports.Duplicate]
) -> dict[str, list[int]]:
    """The rows of each file that are left out."""
    rows: dict[str, list[int]] = {}
    for split in {slot.split for slot in slots}:
        mine = [slot for slot in slots if slot.split == split]
        stops = [slot.stop for slot in mine]
        for row in sorted(d.row for d in found if d.split == split):
            slot = mine[bisect.bisect_right(stops, row)]
            rows.setdefault(slot.file, []).append(row - slot.start)
    return rows


def _finish(
    options: Options,
    splits: Splits,
    slots: Sequence[Slot],
    parts: Sequence[Mapping[str, Any]],
    request: str,
    say: Callable[[str], None],
) -> None:
    """Writes what is beside the records; dataset_info.json last."""
    by_split: dict[str, list[Mapping[str, Any]]] = {split: [] for split in splits.items}
    for slot, part in zip(slots, parts, strict=True):
        if not part["records"]:
            raise UserError(f"{slot.file} has no image left; set a lower --num_shards.")
        by_split[slot.split].append(part)
    for split, of in by_split.items():
        records, size = sum(p["records"] for p in of), sum(p["size"] for p in of)
        say(f"{split}: {records:,} records in {len(of)} files, {progress.size(size)}")
    manifest = {
        "request": request,
        "sources": list(options.sources),
        "records": {s: sum(p["records"] for p in of) for s, of in by_split.items()},
        "undecodable": sum(len(part["undecodable"]) for part in parts),
        "reencoded": sum(len(part["reencoded"]) for part in parts),
        "dropped": sum(len(part["dropped"]) for part in parts),
        "sha256": {s.file: p["sha256"] for s, p in zip(slots, parts, strict=True)},
    }
    shards.write_json(os.path.join(options.incomplete, MANIFEST), manifest)
    finish.describe(
        options.incomplete,
        name=options.name,
        version=options.version,
        file_format=options.file_format,
        label_key="labels" if splits.multi_label else "label",
        classes=splits.classes,
        shards=by_split,
        description=f"Prepared by vit_jax from {', '.join(options.sources)}.",
    )
