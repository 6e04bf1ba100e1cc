"""Images that a table lists: CSV beside image files, and Parquet, which holds them."""

import dataclasses
import hashlib
import itertools
import json
import os
import re
from typing import Any, NamedTuple

import numpy as np

from vit_jax import limits
from vit_jax.data.prepare import csv_rows
from vit_jax.data.prepare.items import Items, Labels, in_container
from vit_jax.errors import UserError

_SPLIT = re.compile(r"(?P<split>[A-Za-z][\w.-]*?)(-\d{5}-of-\d{5}.*)?")
_DIGITS = 20  # of the number of a class, zeros before it too
_SOURCE = "source"
_ROWS = 64  # of a Parquet file, read at a time


# What the cells of several label columns hold.
_CELLS = {"0", "1", "0.0", "1.0", "-1", ""}


class _Row(NamedTuple):
    """A row of a CSV file: sorted by its image."""

    name: str
    line: int
    labels: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """What the columns of a table are called.

    Attributes:
        path: of CSV: an image's path under `root`.
        root: default: the folder of the CSV file.
        image: of Parquet: a struct of bytes and path, or bytes.
        label: several: each is a class, 0 or 1.
        separator: between several classes in one cell.
        split: of CSV; where there is none, SPLIT=PATH says it.
    """

    path: str = "path"
    root: str | None = None
    image: str = "image"
    label: tuple[str, ...] = ("label",)
    separator: str = "|"
    split: str = "split"

    def __post_init__(self) -> None:
        if not self.separator:
            raise UserError('--label_separator=: expected a character, such as "|".')


def read_csv(path: str, split: str | None, columns: Columns) -> list[tuple[str, Items]]:
    """(split, its images), in the order of the splits' names.

    Raises:
        UserError: a column that is not there, an empty cell, an image on two rows.
    """
    root = columns.root or os.path.dirname(path) or "."
    wanted = [("path", columns.path), *(("label", name) for name in columns.label)]
    rows: dict[str, list[_Row]] = {}
    for line, cells in csv_rows.read(path, wanted):
        if split is None and columns.split not in cells:
            raise UserError(
                f'{path} has no column "{columns.split}"; name it with --split_column, '
                f"or say which split all of it is: train={path}."
            )
        of = cells[columns.split].strip() if columns.split in cells else split
        name = cells[columns.path]
        for column, value in ((columns.split, of), (columns.path, name)):
            if not value or "\0" in value:
                what = "empty" if not value else "not a text"
                raise UserError(f'{path}, line {line}: column "{column}" is {what}.')
        assert of is not None
        labels = tuple(cells[column] for column in columns.label)
        rows.setdefault(of, []).append(_Row(name, line, labels))
    if split is not None and split not in rows:
        raise UserError(
            f'{path} has no row of split "{split}" '
            f"({', '.join(sorted(rows)) or 'it has no rows'})."
        )
    chosen = sorted(rows) if split is None else [split]
    return [(name, _csv_items(path, root, rows[name], columns)) for name in chosen]


def _csv_items(path: str, root: str, rows: list[_Row], columns: Columns) -> Items:
    rows = sorted(rows)
    for one, other in itertools.pairwise(rows):
        if one.name == other.name:
            raise UserError(
                f"{path}, lines {one.line} and {other.line} are of one image, "
                f"{one.name}: give each one row, with several classes in one "
                f'cell, separated by "{columns.separator}" (--label_separator).'
            )
    names = [row.name for row in rows]
    sizes, times = [], []
    for name in names:
        try:
            stat = os.stat(os.path.join(root, name))
            sizes.append(stat.st_size)
            times.append(stat.st_mtime_ns)
        except OSError:  # reported with what cannot be decoded
            sizes.append(0)
            times.append(0)
    labels = _of_cells(path, rows, columns)
    return in_container(root, names, sizes, labels, times=times)


def _of_cells(path: str, rows: list[_Row], columns: Columns) -> Labels:
    """Classes by the text of the cells; of several columns, those that hold a 1."""
    if len(columns.label) > 1:
        for row in rows:
            if bad := set(row.labels) - _CELLS:
                raise UserError(
                    f"{path}, line {row.line}: columns {', '.join(columns.label)} hold "
                    f'"{min(bad)}"; of several label columns each is a class, and a '
                    "cell is 1 or 0."
                )
        classes = [
            [i for i, cell in enumerate(row.labels) if cell in ("1", "1.0")]
            for row in rows
        ]
        values = np.array([i for row in classes for i in row], np.int32)
        ends = np.cumsum([len(c) for c in classes])
        return Labels(values, ends, columns.label, ordered=True, several=True)
    parts = [
        [p.strip() for p in row.labels[0].split(columns.separator)] for row in rows
    ]
    parts = [[p for p in row if p] for row in parts]
    return of_texts(path, parts)


def of_texts(path: str, rows: list[list[str]]) -> Labels:
    """Labels of texts: numbers of classes if all are numbers, else their names.

    Raises:
        UserError: a number that is too large to be one of a class.
    """
    texts = [text for row in rows for text in row]
    ends = np.cumsum([len(row) for row in rows])
    if texts and all(text.removeprefix("-").isdecimal() for text in texts):
        longest = max(texts, key=len)
        # Python refuses to read thousands of digits.
        numbers = [int(text) for text in texts] if len(longest) <= _DIGITS else []
        if not numbers or max(numbers) >= limits.NUMBERED_CLASSES:
            shown = str(max(numbers)) if numbers else f"{longest[:_DIGITS]}..."
            raise UserError(
                f"{path}: label {shown} is too large for the number of a class: "
                f"these begin at 0, and at most {limits.NUMBERED_CLASSES:,} are "
                "supported. If it is an identifier, number the classes from 0 or give "
                "their names."
            )
        return Labels(np.array(numbers, np.int64).clip(-1).astype(np.int32), ends, None)
    names, values = np.unique(np.array(texts, str), return_inverse=True)
    return Labels(values.astype(np.int32), ends, tuple(names.tolist()))


def split_of(path: str) -> str:
    """The split that a Parquet file's name says, as Hugging Face writes it.

    >>> split_of("data/train-00001-of-00257.parquet"), split_of("test/0000.parquet")
    ('train', 'test')
    """
    name = os.path.basename(path).removesuffix(".parquet")
    match = _SPLIT.fullmatch(name)
    return match["split"] if match else os.path.basename(os.path.dirname(path))


def spill_folder(spill: str, path: str, *columns: str) -> str:
    """Where the contents of a file are unpacked to; another if the file changes."""
    stat = os.stat(path)
    identity = repr((os.path.abspath(path), stat.st_size, stat.st_mtime_ns, columns))
    return os.path.join(spill, hashlib.sha256(identity.encode()).hexdigest()[:16])


def begin_spill(folder: str, path: str) -> None:
    """Makes the folder, and notes whose contents are in it."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, _SOURCE), "wb") as file:
        file.write(os.fsencode(path))


def spilled(spill: str) -> dict[str, str]:
    """{folder of what was unpacked: the file that it comes from}."""
    found = {}
    for name in os.listdir(spill) if os.path.isdir(spill) else ():
        folder = os.path.join(spill, name)
        if os.path.exists(note := os.path.join(folder, _SOURCE)):
            with open(note, "rb") as file:
                found[folder] = os.fsdecode(file.read())
    return found


def unpack_parquet(path: str, spill: str, columns: Columns) -> Items:
    """Copies the images of a Parquet file into one file, readable at any place."""
    from pyarrow import ArrowException, parquet

    csv_rows.check_regular(path)
    folder = spill_folder(spill, path, columns.image, *columns.label)
    images, index = os.path.join(folder, "images"), os.path.join(folder, "index.npz")
    try:
        file = parquet.ParquetFile(path)
        header = file.schema_arrow.names
        csv_rows.check_column(path, "image", columns.image, header)
        csv_rows.check_column(path, "label", columns.label[0], header)
        if not os.path.exists(index):
            begin_spill(folder, path)
            _copy(file, path, images, index, columns)
    except (ArrowException, OSError) as e:
        raise UserError(f"{path} cannot be read as Parquet: {e}.") from e
    with np.load(index) as found:
        names = tuple(found["label_names"].tolist()) or None
        flags = bool(found["ordered"]), bool(found["several"])
        of = Labels(found["values"], found["ends"], names, *flags)
        items = in_container(
            images, (), (), Labels.of_class("", 0), offsets=(), times=()
        )
        return dataclasses.replace(
            items,
            container=np.zeros(len(found["names"]), np.int32),
            names=found["names"],
            offsets=found["offsets"],
            sizes=found["sizes"],
            times=np.full(len(found["names"]), os.stat(path).st_mtime_ns),
            labels=of,
        )


def _copy(file: Any, path: str, images: str, index: str, columns: Columns) -> None:
    stem = os.path.basename(path).removesuffix(".parquet")
    names, sizes, rows, label = [], [], [], None
    wanted = [columns.image, columns.label[0]]
    with open(f"{images}.tmp", "wb") as target:
        for batch in file.iter_batches(batch_size=_ROWS, columns=wanted):
            cells = zip(
                batch.column(columns.image).to_pylist(),
                batch.column(columns.label[0]).to_pylist(),
                strict=True,
            )
            for image, label in cells:
                data, inner = _image_cell(image, path, len(names))
                base = f"/{os.path.basename(inner)}" if inner else ""
                names.append(os.fsencode(f"{stem}/{len(names):07d}{base}"))
                sizes.append(target.write(data))
                rows.append(_label_cell(label, path, len(rows)))
    os.replace(f"{images}.tmp", images)
    if not rows:
        raise UserError(f"{path} has no rows; leave it out.")
    labels = of_texts(path, rows)
    known = _names_in(file.schema_arrow, columns.label[0])
    if known and labels.names is None and labels.values.max(initial=0) >= len(known):
        raise UserError(
            f"{path} has label {labels.values.max()}, and its schema names "
            f"{len(known)} classes, from 0: write it again, with the right "
            "ClassLabel(names=...)."
        )
    offsets = np.cumsum([0, *sizes])[:-1]
    with open(f"{index}.tmp", "wb") as target:
        np.savez(
            target,
            names=np.array(names, "S"),
            sizes=np.array(sizes, np.int64),
            offsets=offsets.astype(np.int64),
            values=labels.values,
            ends=labels.ends,
            label_names=np.array(labels.names or known, str),
            ordered=labels.names is None and bool(known),
            several=isinstance(label, list),
        )
    os.replace(f"{index}.tmp", index)


def _image_cell(cell: Any, path: str, row: int) -> tuple[bytes, str | None]:
    if isinstance(cell, bytes):
        return cell, None
    if not isinstance(cell, dict) or not isinstance(cell.get("bytes"), bytes):
        raise UserError(
            f"{path}, row {row}: the image is {str(cell)[:60]}; expected bytes, or a "
            "struct of bytes and path that holds the bytes."
        )
    return cell["bytes"], cell.get("path")


def _label_cell(cell: Any, path: str, row: int) -> list[str]:
    """The classes of a record: a number, a text, or a list of these."""
    cells = cell if isinstance(cell, list) else [cell]
    for one in cells:
        if one is None or (isinstance(one, int | float) and not one >= 0):
            raise UserError(
                f"{path}, row {row} has no label ({one}); leave out that split: name "
                "the files of the others, as train=DIR/train-*.parquet."
            )
        whole = isinstance(one, float) and one.is_integer()
        if not (whole or isinstance(one, int | str)):
            raise UserError(
                f"{path}, row {row}: the label is {str(one)[:60]!r}; expected the "
                "number or the name of a class, or a list of these. Another column is "
                "chosen with --label_column."
            )
    return [str(int(one)) if isinstance(one, float) else str(one) for one in cells]


def _names_in(schema: Any, column: str) -> list[str]:
    """Names of classes in what Hugging Face's `datasets` writes into the schema.

    Where that is not there, or in another form, the numbers are all that is known.
    """
    metadata = schema.metadata or {}
    if b"huggingface" not in metadata:
        return []
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][column]
        feature = feature if "_type" in feature else feature[0]
        feature = feature.get("feature", feature)
        names = feature.get("names")
        told = isinstance(names, list) and all(isinstance(n, str) for n in names)
        return names if told else []
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return []
