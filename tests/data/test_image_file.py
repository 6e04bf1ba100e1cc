"""Sizes by the headers of image files, as Pillow reads them; files that are none."""

import io
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from vit_jax import limits
from vit_jax.data import image_file
from vit_jax.data.decode import decode
from vit_jax.data.sources import open_source
from vit_jax.errors import BadExample, UserError

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 53, 3), "u1"))


def encoded(kind: str, **options) -> bytes:
    file = io.BytesIO()
    PHOTO.save(file, kind, **options)
    return file.getvalue()


def alpha(**options) -> bytes:
    file = io.BytesIO()
    PHOTO.convert("RGBA").save(file, "WEBP", **options)
    return file.getvalue()


def by_opencv(ending: str, *flags: int) -> bytes:
    good, data = cv2.imencode(ending, np.asarray(PHOTO), list(flags))
    assert good
    return data.tobytes()


FILES = {
    "jpeg": encoded("JPEG"),
    "progressive": encoded("JPEG", progressive=True),
    "jpeg with exif": encoded("JPEG", exif=Image.Exif().tobytes() + b"\0" * 300),
    "png": encoded("PNG"),
    "gif": encoded("GIF"),
    "bmp": encoded("BMP"),
    "tiff": encoded("TIFF"),
    "tiff, lzw": encoded("TIFF", compression="tiff_lzw"),
    "tiff, big": encoded("TIFF", big_tiff=True),
    "webp": encoded("WEBP"),
    "webp, lossless": encoded("WEBP", lossless=True),
    "webp, alpha": alpha(),
    "jpeg 2000": encoded("JPEG2000"),
    "avif": by_opencv(".avif"),
    "ppm": encoded("PPM"),
    "ppm, commented": b"P6 # a\n# 1 2\n53\n37 255\n" + PHOTO.tobytes(),
    "pam": by_opencv(".pam"),
}


@pytest.mark.parametrize("kind", FILES)
def test_sizes_are_those_that_are_decoded(kind: str) -> None:
    data = FILES[kind]
    assert decode(data, where="x").shape == (37, 53, 3)
    assert image_file.size(data) == (37, 53)
    assert image_file.size(memoryview(data)) == (37, 53)
    with pytest.raises(BadExample, match=r"x is too large: 53 x 37 .* at most 1,960 "):
        decode(data, where="x", max_pixels=37 * 53 - 1)
    assert decode(data, where="x", max_pixels=37 * 53).shape == (37, 53, 3)


@pytest.mark.parametrize("kind", FILES)
def test_damaged_headers_are_no_errors(kind: str) -> None:
    rng = np.random.default_rng(0)
    for length in range(200):
        image_file.size(FILES[kind][:length])
    for _ in range(300):
        data = bytearray(FILES[kind])
        for at in rng.integers(0, min(len(data), 400), 3):
            data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
        image_file.size(bytes(data))


def black_png(side: int) -> bytes:
    """30,000 pixels a side are 900 kB, and 2.7 GB as RGB."""
    packer, row = zlib.compressobj(9), bytes(side + 1)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b"")):
        check = struct.pack(">I", zlib.crc32(kind + body))
        file += struct.pack(">I", len(body)) + kind + body + check
    return file


def test_what_pillow_refuses_is_refused() -> None:
    data = black_png(14_000)
    assert Image.MAX_IMAGE_PIXELS is not None
    assert limits.IMAGE_PIXELS == 2 * Image.MAX_IMAGE_PIXELS
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(data))
    with pytest.raises(BadExample, match="too large: 14,000 x 14,000 pixels"):
        decode(data, where="x")


def test_the_key_reaches_folders(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        PHOTO.save(tmp_path / name)
    root, split = str(tmp_path), "train"
    open_source(name="folder", data_dir=root, split=split).read(0)
    with pytest.raises(BadExample, match=r"a/1\.png is too large"):
        open_source(name="folder", data_dir=root, split=split, max_pixels=1960).read(0)


def test_pipes_devices_and_huge_files_are_not_read(tmp_path: Path) -> None:
    pipe, huge = tmp_path / "1.jpg", tmp_path / "2.jpg"
    os.mkfifo(pipe)
    with open(huge, "wb") as file:
        file.truncate(20 * 2**30)
    for path, what in (
        (pipe, "no regular file"),
        (Path("/dev/zero"), "no regular file"),
        (huge, "21,474,836,480 bytes are no image"),
    ):
        with pytest.raises(OSError, match=what):
            image_file.read(path)
    kernel = Path("/proc/version")  # a file of no size that has bytes
    if kernel.exists():
        assert image_file.read(kernel) == b""


def test_a_file_that_becomes_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        PHOTO.save(tmp_path / name)
    source = open_source(name="folder", data_dir=str(tmp_path), split="train")
    (tmp_path / "a/1.png").unlink()
    os.mkfifo(tmp_path / "a/1.png")
    with pytest.raises(UserError, match="cannot be read: no regular file"):
        source.read(0)
