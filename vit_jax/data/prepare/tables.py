"""Images that a table lists: CSV beside image files, and Parquet, which holds them."""

import csv
import dataclasses
import hashlib
import json
import os
import re
from typing import Any

import numpy as np

from vit_jax.data.prepare.items import Items, Labels, in_container
from vit_jax.errors import UserError, did_you_mean

_SPLIT = re.compile(r"(?P<split>[A-Za-z][\w.-]*?)(-\d{5}-of-\d{5}.*)?")
_ROWS = 64  # of a Parquet file, read at a time


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


def read_csv(path: str, split: str | None, columns: Columns) -> list[tuple[str, Items]]:
    """(split, its images), in the order of the splits' names."""
    root = columns.root or os.path.dirname(path) or "."
    rows: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        header = list(reader.fieldnames or ())
        _check_column(path, "path", columns.path, header)
        for name in columns.label:
            _check_column(path, "label", name, header)
        if split is None and columns.split not in header:
            raise UserError(
                f'{path} has no column "{columns.split}"; name it with --split_column, '
                f"or say which split all of it is: train={path}."
            )
        for row in reader:
            cells = tuple(row[name] for name in columns.label)
            of = row[columns.split] if columns.split in header else split
            if row[columns.path] is None or of is None or None in cells:
                raise UserError(f"{path}, line {reader.line_num}: too few columns.")
            rows.setdefault(of, []).append((row[columns.path], cells))
    if split is not None and split not in rows:
        raise UserError(
            f'{path} has no row of split "{split}" ({", ".join(sorted(rows))}).'
        )
    chosen = sorted(rows) if split is None else [split]
    return [(name, _csv_items(root, rows[name], columns)) for name in chosen]


def _csv_items(
    root: str, rows: list[tuple[str, tuple[str, ...]]], columns: Columns
) -> Items:
    rows = sorted(rows)
    names = [name for name, _ in rows]
    sizes, times = [], []
    for name in names:
        try:
            stat = os.stat(os.path.join(root, name))
            sizes.append(stat.st_size)
            times.append(stat.st_mtime_ns)
        except OSError:  # reported with what cannot be decoded
            sizes.append(0)
            times.append(0)
    labels = _of_cells([cells for _, cells in rows], columns)
    return in_container(root, names, sizes, labels, times=times)


def _of_cells(cells: list[tuple[str, ...]], columns: Columns) -> Labels:
    """Classes by the text of the cells; of several columns, those that hold a 1."""
    if len(columns.label) > 1:
        bad = {c for row in cells for c in row} - {"0", "1", "0.0", "1.0", "-1", ""}
        if bad:
            raise UserError(
                f'columns {", ".join(columns.label)} hold "{min(bad)}"; of several '
                "label columns each is a class, and a cell is 1 or 0."
            )
        classes = [[i for i, c in enumerate(row) if c in ("1", "1.0")] for row in cells]
        values = np.array([i for row in classes for i in row], np.int32)
        ends = np.cumsum([len(c) for c in classes])
        return Labels(values, ends, columns.label, ordered=True, several=True)
    parts = [[p.strip() for p in c.split(columns.separator)] for (c,) in cells]
    parts = [[p for p in row if p] for row in parts]
    return of_texts(parts)


def of_texts(rows: list[list[str]]) -> Labels:
    """Labels of texts: numbers of classes if all are numbers, else their names."""
    texts = [text for row in rows for text in row]
    ends = np.cumsum([len(row) for row in rows])
    if texts and all(text.removeprefix("-").isdecimal() for text in texts):
        return Labels(np.array([int(t) for t in texts], np.int32), ends, None)
    names, values = np.unique(np.array(texts, str), return_inverse=True)
    return Labels(values.astype(np.int32), ends, tuple(names.tolist()))


def _check_column(path: str, what: str, name: str, header: list[str]) -> None:
    if name not in header:
        raise UserError(
            f'{path} has no column "{name}"; name it with --{what}_column: '
            f"{did_you_mean(name, header)} (it has: {', '.join(header)})."
        )


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


def unpack_parquet(path: str, spill: str, columns: Columns) -> Items:
    """Copies the images of a Parquet file into one file, readable at any place."""
    from pyarrow import ArrowException, parquet

    folder = spill_folder(spill, path, columns.image, *columns.label)
    images, index = os.path.join(folder, "images"), os.path.join(folder, "index.npz")
    try:
        file = parquet.ParquetFile(path)
        header = file.schema_arrow.names
        _check_column(path, "image", columns.image, header)
        _check_column(path, "label", columns.label[0], header)
        if not os.path.exists(index):
            os.makedirs(folder, exist_ok=True)
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
    labels = of_texts(rows)
    known = _names_in(file.schema_arrow, columns.label[0])
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
    if cell is None or (isinstance(cell, int) and cell < 0):
        raise UserError(
            f"{path}, row {row} has no label ({cell}); leave out that split: name the "
            "files of the others, as train=DIR/train-*.parquet."
        )
    return [str(c) for c in cell] if isinstance(cell, list) else [str(cell)]


def _names_in(schema: Any, column: str) -> list[str]:
    """Names of classes in what Hugging Face's `datasets` writes into the schema."""
    metadata = schema.metadata or {}
    if b"huggingface" not in metadata:
        return []
    feature = json.loads(metadata[b"huggingface"])["info"]["features"][column]
    feature = feature if "_type" in feature else feature[0]
    feature = feature.get("feature", feature)
    return list(feature.get("names", ()))
