"""Damaged tables, arrays and records of data are read or refused."""

import csv
import gzip
import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.fuzz import mutation
from vit_jax.data.prepare import tables
from vit_jax.data.sources import idx, npz
from vit_jax.data.sources.example import parse_example
from vit_jax.errors import UserError

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 5, 5), np.uint8)
LABELS = RNG.integers(0, 3, 6).astype(np.int64)


def csv_files() -> list[bytes]:
    """By Python's csv module, in the dialects that are read."""
    found = []
    for encoding, separator in (("utf-8", ","), ("utf-16", ";"), ("utf-8-sig", "\t")):
        file = io.StringIO()
        writer = csv.writer(file, delimiter=separator, quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(("path", "label", "split"))
        writer.writerows((f"{i}.png", f"ä{i % 2}|b", "train") for i in range(5))
        found.append(file.getvalue().encode(encoding))
    return found


def read_csv(path: Path) -> None:
    for split, items in tables.read_csv(str(path), None, tables.Columns()):
        assert split and len(items) == len(items.labels.ends)


def npz_files() -> list[bytes]:
    """By NumPy, stored and compressed, of integers and of floats."""
    found = []
    for save in (np.savez, np.savez_compressed):
        for images in (IMAGES, IMAGES / 255.0):
            file = io.BytesIO()
            save(file, x_train=images, y_train=LABELS, x_test=images, y_test=LABELS)
            found.append(file.getvalue())
    return found


def read_npz(path: Path) -> None:
    source = npz.open_npz(str(path), "train[:5]")
    image, _ = source.read(0)
    assert image.dtype == np.uint8


def idx_files() -> list[bytes]:
    """As yann.lecun.com describes the format, plain and compressed."""
    header = struct.pack(">HBB3I", 0, 8, 3, *IMAGES.shape)
    return [header + IMAGES.tobytes(), gzip.compress(header + IMAGES.tobytes(), 1)]


def read_idx(path: Path) -> None:
    compressed = path.read_bytes()[:2] == b"\x1f\x8b"
    name = path.with_name("images.gz" if compressed else "images")
    path.replace(name)
    assert idx.read_idx(str(name), ndim=3).dtype == np.uint8


BORDERS: dict[str, tuple[Callable[[], list[bytes]], Callable[[Path], None], str]] = {
    "csv": (csv_files, read_csv, "l.csv"),
    "npz": (npz_files, read_npz, "a.npz"),
    "idx": (idx_files, read_idx, "a"),
}


@pytest.mark.parametrize("border", BORDERS)
def test_files_of_data(border: str, tmp_path: Path) -> None:
    make, read, name = BORDERS[border]

    def use(data: bytes) -> None:
        path = tmp_path / name
        path.write_bytes(data)
        read(path)

    whole = make()
    assert mutation.check(use, iter(whole), tmp_path / "input") == (len(whole), 0)
    used, refused = mutation.check(
        use, mutation.mutations(whole, 1500), tmp_path / "input"
    )
    assert mutation.SECONDS or (used and refused)  # of a few, all may be alike


def test_records(tmp_path: Path) -> None:
    """A tf.train.Example by TensorFlow; what is none is a ValueError of its parser."""
    import tensorflow as tf

    feature, lists = tf.train.Feature, tf.train
    example = tf.train.Example(
        features=tf.train.Features(
            feature={
                "image": feature(bytes_list=lists.BytesList(value=[b"x" * 40])),
                "label": feature(int64_list=lists.Int64List(value=[3, -1, 2**40])),
                "weight": feature(float_list=lists.FloatList(value=[0.5, 1.0])),
            }
        )
    ).SerializeToString()

    def use(data: bytes) -> None:
        try:
            parse_example(data, ("image", "label", "weight"))
        except ValueError as error:  # which sources make a bad example of
            raise UserError(str(error)) from error

    assert mutation.check(use, iter([example]), tmp_path / "input") == (1, 0)
    used, refused = mutation.check(
        use, mutation.mutations([example], 5000), tmp_path / "input"
    )
    assert mutation.SECONDS or (used and refused)  # of a few, all may be alike


def test_a_number_without_an_end_takes_no_time() -> None:
    """Numbers of protocol buffers have at most ten bytes."""
    with pytest.raises(ValueError, match="number"):
        parse_example(b"\xff" * 3_000_000, ("label",))
