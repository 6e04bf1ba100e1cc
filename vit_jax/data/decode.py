"""Image files to uint8 RGB."""

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

from vit_jax import limits
from vit_jax.data import image_file, jpeg
from vit_jax.data.crop import Crop, cut
from vit_jax.errors import BadExample, UserError

# Names of the files that `decode` reads, in lower case.
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif"),
    *(".tiff", ".jp2", ".avif", ".ppm", ".pgm", ".pbm", ".pnm"),
)

_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
_EXIF_ORIENTATION = 0x0112


def is_image(name: str) -> bool:
    """Whether a path looks like an image that is not hidden.

    >>> is_image("a/1.JPEG"), is_image("a/._1.jpg"), is_image("a/notes.txt")
    (True, False, False)
    """
    base = name.rpartition("/")[2]
    return base[:1] != "." and base.lower().endswith(EXTENSIONS)


def decode(
    data: bytes | memoryview,
    *,
    where: str,
    crop: Crop | None = None,
    max_pixels: int = limits.IMAGE_PIXELS,
) -> np.ndarray:
    """The image in the bytes of a file, or a part of it.

    JPEG, PNG, WebP, BMP, GIF (its first picture), TIFF, JPEG 2000, AVIF and netpbm are
    read. Grey is repeated, an alpha channel is composed over white, CMYK converted,
    16 bits are scaled to 8, EXIF rotation is applied.

    Args:
        data: the file's bytes.
        where: names the file or record in errors.
        crop: the part that is wanted, of the image as it is shown; default: all.
        max_pixels: of the whole image; one with more is refused by its header.

    Returns:
        uint8 [h, w, 3], RGB. A part may be a view.

    Raises:
        BadExample: empty, truncated, not an image, or of too many pixels.
    """
    if not len(data):
        raise BadExample(f"{where} is empty (0 bytes); replace it.")
    _check_size(data, where, max_pixels)
    is_jpeg = bytes(data[:3]) == _JPEG
    if is_jpeg and crop is not None:
        part = jpeg.decode_part(data, crop)
        if part is not None:
            return part
    buffer = np.frombuffer(data, np.uint8)
    if is_jpeg:
        image = _imdecode(buffer, cv2.IMREAD_COLOR_RGB, where)
    else:
        image = _imdecode(buffer, cv2.IMREAD_UNCHANGED, where)
        if image is not None:
            image = _to_rgb(image, bytes(data), where)
    if image is None:
        raise BadExample(
            f"{where} cannot be decoded: {len(data)} bytes, cut short or not an "
            "image; replace it."
        )
    return cut(image, crop)


def _check_size(data: bytes | memoryview, where: str, max_pixels: int) -> None:
    """Refuses an image before there is memory for it."""
    size = image_file.size(data)
    if size is not None and size[0] * size[1] > max_pixels:
        raise BadExample(
            f"{where} is too large: {size[1]:,} x {size[0]:,} pixels, and at most "
            f"{max_pixels:,} are read; make it smaller, cut it into several, or allow "
            "more (config.data.max_pixels, --max_pixels of data.prepare)."
        )


def _imdecode(buffer: np.ndarray, flags: int, where: str) -> np.ndarray | None:
    try:
        return cv2.imdecode(buffer, flags)
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" in str(error):  # OpenCV says its limits by these names
            raise BadExample(
                f"{where} is too large: an image may have 2**30 pixels, and 2**20 a "
                "side; make it smaller, or cut it into several."
            ) from error
        return None


def _to_rgb(image: np.ndarray, data: bytes, where: str) -> np.ndarray:
    """From what OpenCV gives "unchanged" (BGR, any depth, not rotated)."""
    if image.dtype == np.uint16:
        image = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535/257
    if image.dtype != np.uint8:
        raise BadExample(
            f"{where} has {image.dtype} pixels; expected 8 or 16 bits a channel."
        )
    if image.ndim == 2:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    elif image.shape[2] == 4:
        image = over_white(cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA))
    else:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return rotate(image, _orientation(data))


def to_rgb(image: Any) -> np.ndarray:
    """An image in memory as uint8 [h, w, 3], treated as `decode` treats files.

    Args:
        image: a PIL image, or a uint8 array [h, w] or [h, w, 1, 3 or 4].

    Raises:
        UserError: for other arrays.

    >>> to_rgb(np.zeros((2, 5), np.uint8)).shape
    (2, 5, 3)
    """
    orientation = 1
    if hasattr(image, "getexif"):  # of PIL, which need not be installed
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
        alpha = "A" in image.getbands() or "transparency" in image.info
        image = image.convert("RGBA" if alpha else "RGB")
    array = np.asarray(image)
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise UserError(
            "expected an image of uint8 pixels [height, width] or [height, width, 1, 3 "
            f"or 4], got {array.dtype} {list(array.shape)}"
        )
    if channels == 1:
        array = np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    elif channels == 4:
        array = over_white(array)
    return rotate(array, orientation)


def over_white(image: np.ndarray) -> np.ndarray:
    """RGBA composed over a white background.

    >>> over_white(np.array([[[9, 9, 9, 255], [9, 9, 9, 0]]], np.uint8)).tolist()
    [[[9, 9, 9], [255, 255, 255]]]
    """
    alpha = image[..., 3:].astype(np.uint16)
    mixed = image[..., :3] * alpha + 255 * (255 - alpha)  # at most 255 * 255
    return ((mixed.astype(np.uint32) + 127) // 255).astype(np.uint8)


def rotate(image: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes the orientation, 1..8, of the EXIF standard (CIPA DC-008, 4.6.5)."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def _orientation(data: bytes) -> int:
    """The orientation in the EXIF data of a PNG or WebP file, 1 where there is none.

    OpenCV has turned JPEGs already; what it does with the others differs by version.
    """
    for kind, body in _chunks(data):
        if kind in (b"eXIf", b"EXIF"):
            return _exif_orientation(body)
    return 1


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, body) of each chunk of a PNG or WebP file that may have EXIF data."""
    if data.startswith(_PNG) and b"eXIf" in data:
        position = len(_PNG)
        while position < len(data):
            size = int.from_bytes(data[position : position + 4], "big")
            body = position + 8
            yield data[position + 4 : body], data[body : body + size]
            position = body + size + 4  # a CRC
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP" and b"EXIF" in data:
        position = 12
        while position < len(data):
            size = int.from_bytes(data[position + 4 : position + 8], "little")
            body = position + 8
            yield data[position : position + 4], data[body : body + size]
            position = body + size + size % 2


def _exif_orientation(exif: bytes) -> int:
    """Looks for the tag in the first directory of a TIFF header's file."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = "little" if exif[:2] == b"II" else "big"

    def number(start: int, length: int) -> int:
        return int.from_bytes(exif[start : start + length], order)

    directory = number(4, 4)
    for i in range(number(directory, 2)):
        entry = directory + 2 + 12 * i
        if number(entry, 2) == _EXIF_ORIENTATION:
            return number(entry + 8, 2)
    return 1
