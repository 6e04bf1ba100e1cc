"""Decodes only the wanted part of a JPEG, if nvImageCodec is installed (extra [jpeg]).

libjpeg-turbo can leave out the rows below a crop, and most of the work for what lies
above and beside it. OpenCV, which decodes whole images, does not hand that on; NVIDIA's
nvImageCodec does, on CPUs too. The pixels are the same bits: both give what
libjpeg-turbo gives, with exact IDCT and smooth upsampling of colours.

Whether a file is broken must not depend on the crop. So only files are taken of which
that can be told without decoding them: whole ones of the plain kind that nearly all
photographs are. All others are left to `decode`.
"""

import functools
import importlib.util
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.data.crop import Box, Crop
from vit_jax.errors import UserError

# Markers (ITU-T T.81, table B.1), the second byte; the first is 0xFF.
_SOF0, _SOS, _EOI = 0xC0, 0xDA, 0xD9  # baseline frame, scan, end
_DQT, _DHT, _DRI, _COM = 0xDB, 0xC4, 0xDD, 0xFE
_APP0, _APP14, _APP15 = 0xE0, 0xEE, 0xEF  # 14 is Adobe's: the colours may be others
_RST0, _RST7 = 0xD0, 0xD7  # within a scan
_SKIPPED = {_DQT, _DHT, _DRI, _COM, *range(_APP0, _APP15 + 1)} - {_APP14}

_MAX_PIXELS = 2**26  # beyond, whether OpenCV takes it is OpenCV's to say
# In narrower parts libjpeg-turbo does not smooth colours as it does in whole images.
_MIN_WIDTH = 32
_LOWEST = 0, 9  # as in setup.py
_OPTIONS = ":fancy_upsampling=1 libjpeg_turbo_decoder:fast_idct=0"

_DecodePart = Callable[[np.ndarray, Box], np.ndarray | None]
_thread = threading.local()
_importing = threading.Lock()  # it changes the environment for a moment


def decode_part(data: bytes | memoryview, crop: Crop) -> np.ndarray | None:
    """The part of a JPEG file that `crop` wants, uint8 [h, w, 3] RGB.

    Returns:
        The same bits as of the whole image; None where that is the only way: the file
        is not of the plain kind, or nvImageCodec is not installed.
    """
    found = library()
    if found is None:
        return None
    buffer = np.frombuffer(data, np.uint8)
    size = size_if_plain(buffer)
    if size is None:
        return None
    box = crop(*size)
    if box.width < _MIN_WIDTH:
        return None
    if not hasattr(_thread, "decode"):
        _thread.decode = _decoder(found)
    return _thread.decode(buffer, box)


def size_if_plain(buffer: np.ndarray) -> tuple[int, int] | None:
    """(height, width) of the file with these bytes, uint8 [n]; None if it is not plain.

    A plain file is a baseline JPEG with its three components in one scan. It ends where
    the scan ends, and in the scan are no markers but those for restarts: decoding it
    can give wrong pixels, but never an error.
    """
    view = memoryview(buffer.data)
    size: tuple[int, int] | None = None
    position = 2
    while position + 4 <= len(view) and view[position] == 0xFF:
        marker = view[position + 1]
        start = position + 4
        position += 2 + int.from_bytes(view[position + 2 : start], "big")
        segment = view[start:position]
        if marker == _SOS:
            in_one = len(segment) == 10 and segment[0] == 3
            return size if in_one and _ends(buffer[position:]) else None
        if marker == _SOF0 and size is None:
            size = _size(bytes(segment))
        elif marker not in _SKIPPED or segment[:4] == b"Exif":
            return None
    return None


def _size(frame: bytes) -> tuple[int, int] | None:
    """(height, width) by a frame header (B.2.2) of 8 bits and YCbCr as in JFIF."""
    if len(frame) != 15 or frame[0] != 8 or frame[5] != 3 or frame[6::3] != b"\1\2\3":
        return None
    height, width = (int.from_bytes(frame[i : i + 2], "big") for i in (1, 3))
    return (height, width) if 0 < height * width <= _MAX_PIXELS else None


def _ends(scan: np.ndarray) -> bool:
    """Whether the first marker but restarts, from the start of a scan, is the end."""
    markers = scan[:-1] == 0xFF
    markers &= scan[1:] != 0  # 0xFF and 0 are a byte of data
    at = 0
    while at < len(markers):
        at += int(np.argmax(markers[at:]))  # the next one, or this
        if not (markers[at] and _RST0 <= scan[at + 1] <= _RST7):
            return bool(markers[at]) and scan[at + 1] == _EOI
        at += 1
    return False


@functools.cache
def library() -> Any | None:
    """nvImageCodec, if it is installed in a version whose parts have been compared.

    Raises:
        UserError: it is installed and cannot be loaded.
    """
    if importlib.util.find_spec("nvidia") is None:
        return None
    spec = importlib.util.find_spec("nvidia.nvimgcodec")
    if spec is None or spec.origin is None:
        return None
    # Without a GPU it would complain, on stderr, of each decoder that needs one. So it
    # is shown the one that is used.
    extensions = Path(spec.origin).parent / "extensions"
    with _importing, tempfile.TemporaryDirectory() as folder:
        for file in extensions.glob("*jpeg_turbo*"):
            (Path(folder) / file.name).symlink_to(file)
        ours = {"NVIMGCODEC_EXTENSIONS_PATH": folder, "PYNVIMGCODEC_VERBOSITY": "0"}
        before = {name: os.environ.get(name) for name in ours}
        os.environ.update(ours)
        try:
            from nvidia import nvimgcodec
        except ImportError as e:
            raise UserError(
                f"nvImageCodec is installed but cannot be loaded ({e}): reinstall or "
                "remove nvidia-nvimgcodec, which only makes decoding JPEGs faster"
            ) from e
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value
    version = tuple(int(part) for part in nvimgcodec.__version__.split(".")[:2])
    return nvimgcodec if version >= _LOWEST else None


def _decoder(library: Any) -> _DecodePart:
    """A decoder for one thread."""
    decoder = library.Decoder(
        device_id=library.NVIMGCODEC_DEVICE_CPU_ONLY,
        max_num_cpu_threads=1,
        backends=[library.Backend(library.CPU_ONLY)],
        options=_OPTIONS,
    )

    def decode(buffer: np.ndarray, box: Box) -> np.ndarray | None:
        region = library.Region(box.top, box.left, box.bottom, box.right)
        stream = library.CodeStream(buffer)
        image = decoder.decode(stream.get_sub_code_stream(region=region))
        return None if image is None else np.asarray(image)

    return decode
