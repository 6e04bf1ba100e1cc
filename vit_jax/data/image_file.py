"""An image file: its bytes, and the size that its header says, before it is decoded.

A few bytes can stand for an image of gigabytes. What is too large is refused by its
header; which numbers are there is said in PNG (ISO/IEC 15948), JPEG (ITU-T T.81),
GIF89a, BMP, TIFF 6.0, WebP (RFC 9649), JPEG 2000 (ITU-T T.800), HEIF (ISO/IEC 23008-12)
and netpbm's manuals.
"""

import errno
import os
import re
import stat
from collections.abc import Callable

from vit_jax import limits

_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # of JPEG: all that have a size
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers of JPEG without a length
_WIDTH, _HEIGHT = 256, 257  # tags of TIFF
_TIFF_TYPES = {3: 2, 4: 4, 16: 8}  # bytes of an integer
_MOST_TAGS = 4096
_PNM = re.compile(rb"P[1-6](?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)\b")
_PAM = re.compile(rb"P7\s(?:.*\n)*?WIDTH\s+(\d+)\s(?:.*\n)*?HEIGHT\s+(\d+)\s")
_TEXT = 4096  # bytes in which the sizes of netpbm's files stand

_Size = tuple[int, int]


def read(path: str | os.PathLike[str]) -> bytes:
    """The bytes of an image file.

    Raises:
        OSError: it cannot be read; or it is a pipe or a device, of which there may be
            no end; or it is larger than the file of any image.
    """
    # Not blocking: a pipe would be waited for when it is opened.
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "no regular file", os.fspath(path))
        if status.st_size > limits.IMAGE_BYTES:
            what = f"{status.st_size:,} bytes are no image"
            raise OSError(errno.EFBIG, what, os.fspath(path))
        parts, left = [], status.st_size
        while left and (part := os.read(file, left)):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
    finally:
        os.close(file)


def size(data: bytes | memoryview) -> _Size | None:
    """(height, width) by the header, before any rotation; None where it says none.

    >>> size(b"P5 30 20 255 "), size(b"no image")
    ((20, 30), None)
    """
    start = bytes(data[:16])
    for signature, function in _FORMATS:
        if signature.match(start):
            return function(memoryview(data))
    return None


def _big(data: memoryview, at: int, length: int) -> int:
    return int.from_bytes(data[at : at + length], "big")


def _little(data: memoryview, at: int, length: int) -> int:
    return int.from_bytes(data[at : at + length], "little")


def _jpeg(data: memoryview) -> _Size | None:
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _FRAMES:
            return _big(data, at + 5, 2), _big(data, at + 7, 2)
        if marker == 0xFF:  # a byte that fills
            at += 1
        else:
            at += 2 + (0 if marker in _ALONE else _big(data, at + 2, 2))
    return None


def _png(data: memoryview) -> _Size:
    return _big(data, 20, 4), _big(data, 16, 4)


def _gif(data: memoryview) -> _Size:
    return _little(data, 8, 2), _little(data, 6, 2)


def _bmp(data: memoryview) -> _Size:
    if _little(data, 14, 4) == 12:  # of OS/2
        return _little(data, 20, 2), _little(data, 18, 2)
    height = _little(data, 22, 4)  # negative where the first row is the upper one
    return min(height, 2**32 - height), _little(data, 18, 4)


def _webp(data: memoryview) -> _Size:
    kind = bytes(data[12:16])
    if kind == b"VP8X":
        return _little(data, 27, 3) + 1, _little(data, 24, 3) + 1
    if kind == b"VP8L":
        bits = _little(data, 21, 4)
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    return _little(data, 28, 2) & 0x3FFF, _little(data, 26, 2) & 0x3FFF


def _tiff(data: memoryview) -> _Size | None:
    number = _little if data[0] == ord("I") else _big
    large = number(data, 2, 2) == 43  # BigTIFF
    count, entry, field = (8, 20, 8) if large else (2, 12, 4)
    at = number(data, field, field)
    found: dict[int, int] = {}
    for i in range(min(number(data, at, count), _MOST_TAGS)):
        tag = at + count + entry * i
        length = _TIFF_TYPES.get(number(data, tag + 2, 2))
        if length is not None:
            value = tag + entry - field
            found.setdefault(number(data, tag, 2), number(data, value, length))
    if _WIDTH in found and _HEIGHT in found:
        return found[_HEIGHT], found[_WIDTH]
    return None


def _jpeg2000(data: memoryview) -> _Size | None:
    at = bytes(data).find(b"\xff\x4f\xff\x51")  # a code stream, and its size
    if at < 0:
        return None
    width, height, left, top = (_big(data, at + i, 4) for i in (8, 12, 16, 20))
    return height - top, width - left


def _avif(data: memoryview) -> _Size | None:
    """The largest of its images: others are thumbnails, tiles and alpha channels."""
    found = [
        (_big(data, match.end() + 8, 4), _big(data, match.end() + 4, 4))
        for match in re.finditer(b"ispe", data)
    ]
    return max(found, key=lambda s: s[0] * s[1], default=None)


def _netpbm(data: memoryview) -> _Size | None:
    match = (_PAM if data[1] == ord("7") else _PNM).match(bytes(data[:_TEXT]))
    if match is None or max(map(len, match.groups())) > 20:
        return None
    return int(match[2]), int(match[1])


_FORMATS: tuple[tuple[re.Pattern[bytes], Callable[[memoryview], _Size | None]], ...] = (
    (re.compile(rb"\xff\xd8\xff"), _jpeg),
    (re.compile(rb"\x89PNG"), _png),
    (re.compile(rb"GIF8"), _gif),
    (re.compile(rb"BM"), _bmp),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), _webp),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), _tiff),
    (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), _jpeg2000),
    (re.compile(rb"....ftyp", re.DOTALL), _avif),
    (re.compile(rb"P[1-7][\s#]"), _netpbm),
)
