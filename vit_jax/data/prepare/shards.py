"""Writes one file of records: reads, digests and decodes each image on the way."""

import dataclasses
import hashlib
import importlib
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

from vit_jax import limits
from vit_jax.data import decode
from vit_jax.data.prepare.items import Items, Reader
from vit_jax.data.sources.example import serialize_example
from vit_jax.errors import UserError

DIGEST = 16  # bytes of an image's SHA-256 that are kept
_KEPT = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")  # what JPEG and PNG files begin with
_PNG_DEPTH = 24  # the byte of a PNG file that says its bits a channel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """A file to write.

    Attributes:
        path: of the file.
        part: of what is remembered of it, until the dataset is whole.
        items: its images, in order.
        label_key: "label", one class; or "labels", any number of them.
        file_format: "array_record" or "tfrecord".
        dropped: rows of `items` to leave out.
        max_pixels: of an image, see `decode`.
    """

    path: str
    part: str
    items: Items
    label_key: str
    file_format: str
    dropped: tuple[int, ...] = ()
    max_pixels: int = limits.IMAGE_PIXELS

    def digest(self) -> str:
        """Of all that the file depends on, so that one of another is not taken."""
        items = self.items
        asked: tuple[Any, ...] = (items.containers, self.label_key, self.file_format)
        if self.max_pixels != limits.IMAGE_PIXELS:
            asked = (*asked, self.max_pixels)
        digest = hashlib.sha256(repr(asked).encode())
        columns = (items.container, items.names, items.offsets, items.sizes)
        for column in (*columns, items.times, *items.labels[:2]):
            digest.update(repr((column.dtype.str, len(column))).encode())
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()


def finished(shard: Shard) -> dict[str, Any] | None:
    """What is remembered of a shard that an earlier run has finished, else None."""
    try:
        with open(shard.part, encoding="utf-8") as file:
            part = json.load(file)
    except (OSError, ValueError):
        return None
    same = part["digest"] == shard.digest() and os.path.isfile(shard.path)
    return part if same and os.path.getsize(shard.path) == part["size"] else None


def write(shard: Shard) -> dict[str, Any]:
    """Writes the file, then what is remembered of it; each whole or not at all.

    Returns:
        digest: of the task; dropped: its rows that were left out;
        sha256, size: of the file; records: of the file; bytes: of all records;
        images: SHA-256 of all images, hexadecimal, cut to `DIGEST` bytes, joined;
        undecodable, reencoded: what there was: path, what, where, row of `items`.
    """
    temporary = f"{shard.part}.{os.getpid()}.tmp"
    try:
        part = _write_records(shard, temporary)
        part |= {"digest": shard.digest(), "dropped": list(shard.dropped)}
        part |= {"sha256": file_digest(temporary), "size": os.path.getsize(temporary)}
        place(temporary, shard.path)
        write_json(shard.part, part)
    except (OSError, RuntimeError) as e:  # of array_record too
        raise UserError(
            f"{shard.path} cannot be written: {e}. Run the same command again to go on."
        ) from e
    return part


def _write_records(shard: Shard, path: str) -> dict[str, Any]:
    put, close = _WRITERS[shard.file_format](path)
    reader, digests = Reader(), bytearray()
    part: dict[str, Any] = {"undecodable": [], "reencoded": []}
    records = size = 0
    dropped = set(shard.dropped)
    for i in range(len(shard.items)):
        data, found = _image(reader, shard.items, i, shard.max_pixels)
        digests += found.pop("digest")
        if "what" in found:
            line = {"path": shard.items.name(i), "what": found["what"]}
            line |= {"where": shard.items.where(i), "row": i}
            part["undecodable" if data is None else "reencoded"].append(line)
        if data is None or i in dropped:
            continue
        features = {
            "file_name": [shard.items.names[i].item()],
            "image": [data],
            shard.label_key: shard.items.labels.row(i),
        }
        record = serialize_example(features)
        put(record)
        records += 1
        size += len(record)
    close()
    reader.close()
    return part | {"records": records, "bytes": size, "images": digests.hex()}


def _image(
    reader: Reader, items: Items, i: int, max_pixels: int
) -> tuple[bytes | None, dict[str, Any]]:
    """The bytes to keep of an image; None if it does not decode, and why."""
    name = items.name(i)
    try:
        data = reader.read(items, i)
    except OSError as e:
        return None, {"what": f"cannot be read: {e.strerror}", "digest": bytes(DIGEST)}
    digest = hashlib.sha256(data).digest()[:DIGEST]
    try:
        pixels = decode.decode(data, where=name, max_pixels=max_pixels)
    except UserError as e:
        what = str(e).removeprefix(name).strip().partition(";")[0]
        return None, {"what": what, "digest": digest}
    what = _not_kept(data)
    if what is None:
        return data, {"digest": digest}
    return _as_png(pixels), {"what": what, "digest": digest}


def _not_kept(data: bytes) -> str | None:
    """Why an image that decodes has to be encoded anew; None if it stays as it is."""
    if not data.startswith(_KEPT):
        return "neither JPEG nor PNG: now a PNG of 8 bits"
    if data.startswith(_KEPT[1]) and data[_PNG_DEPTH] == 16:
        return "PNG of 16 bits a channel: now a PNG of 8 bits"
    return None


def _as_png(pixels: np.ndarray) -> bytes:
    good, encoded = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    assert good
    return encoded.tobytes()


def _array_record(path: str) -> tuple[Callable[[bytes], Any], Callable[[], Any]]:
    # A binary module, which type checkers cannot look into.
    module = importlib.import_module("array_record.python.array_record_module")
    writer = module.ArrayRecordWriter(path, "group_size:1")  # as TFDS writes them
    return writer.write, writer.close


def _tfrecord(path: str) -> tuple[Callable[[bytes], Any], Callable[[], Any]]:
    import tensorflow as tf

    def told(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any) -> Any:
            try:
                return call(*arguments)
            except tf.errors.OpError as error:  # a full disk too; it is no OSError
                raise OSError(0, error.message) from error

        return called

    writer = told(tf.io.TFRecordWriter)(path)
    return told(writer.write), told(writer.close)


_WRITERS = {"array_record": _array_record, "tfrecord": _tfrecord}


def file_digest(path: str) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def place(temporary: str, path: str) -> None:
    """Puts a finished file in its place, durably."""
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def sync_folder(path: str) -> None:
    """Makes the names in a folder durable."""
    folder = os.open(path, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def write_json(path: str, value: Any) -> None:
    """Writes a file whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_lines(path: str, values: Sequence[Any]) -> None:
    """A JSON object a line."""
    write_text(path, "".join(json.dumps(v, ensure_ascii=False) + "\n" for v in values))


def write_text(path: str, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
    place(temporary, path)
