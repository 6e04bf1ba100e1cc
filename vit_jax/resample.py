"""Resizing with Pillow's filters, bit for bit, without Pillow.

`Image.resize` is what timm, torchvision and transformers were evaluated with. A filter
is as wide as an output pixel where the image shrinks (it antialiases); weights are
rounded to 22 bits; one side is done after the other, with 8 bits in between.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # slow to import, and runs that resize nothing need none of it
    from scipy import sparse

_BITS = 22  # PRECISION_BITS of Pillow's Resample.c
_ROWS = 256  # at a time: they are held as int32


def _sinc(x: np.ndarray) -> np.ndarray:
    return np.where(x == 0, 1.0, np.sin(np.pi * x) / np.where(x == 0, 1, np.pi * x))


def _box(x: np.ndarray) -> np.ndarray:
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)


def _bilinear(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _hamming(x: np.ndarray) -> np.ndarray:
    a, b = np.float32(0.54), np.float32(0.46)  # as there; with no more digits
    window = float(a) + float(b) * np.cos(np.pi * x)
    return np.where(np.abs(x) < 1, _sinc(x) * window, 0.0)


def _bicubic(x: np.ndarray) -> np.ndarray:
    a, x = -0.5, np.abs(x)  # Keys' parameter
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where((x >= -3) & (x < 3), _sinc(x) * _sinc(x / 3), 0.0)


_FILTERS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    "box": (_box, 0.5),
    "bilinear": (_bilinear, 1.0),
    "hamming": (_hamming, 1.0),
    "bicubic": (_bicubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}
INTERPOLATIONS = ("nearest", *_FILTERS)


def resample(
    image: np.ndarray,
    size: tuple[int, int],
    interpolation: str,
    *,
    rows_first: bool = False,
) -> np.ndarray:
    """An image, resized as `PIL.Image.resize` does it.

    Args:
      image: uint8 [h, w, c].
      size: (height, width) of the result.
      interpolation: one of `INTERPOLATIONS`.
      rows_first: resizes the height first where it loses more than twice as many
        pixels as the width, as Pillow 13 does. Older ones, and torchvision of tensors,
        always begin with the width. At sharp edges that differs, by up to 11 of 255.

    Returns:
      uint8 [*size, c].

    >>> ramp = np.arange(4, dtype=np.uint8)[None, :, None] * 10
    >>> resample(ramp, (1, 2), "box").ravel().tolist()
    [5, 25]
    """
    height, width = image.shape[:2]
    if interpolation == "nearest":
        return image[_nearest(height, size[0])][:, _nearest(width, size[1])]
    rows, columns = height - size[0], width - size[1]  # that vanish
    if rows_first and rows > 0 and rows > 2 * columns:
        return _columns(_rows(image, size[0], interpolation), size[1], interpolation)
    return _rows(_columns(image, size[1], interpolation), size[0], interpolation)


def _nearest(old: int, new: int) -> np.ndarray:
    """Which old pixel each new one is; the steps are added up, as Pillow does."""
    steps = np.full(new, old / new)
    steps[0] *= 0.5
    return np.add.accumulate(steps).astype(np.int64)


def _columns(image: np.ndarray, width: int, interpolation: str) -> np.ndarray:
    if image.shape[1] == width:
        return image
    weights = _weights(image.shape[1], width, interpolation)
    parts = [
        _apply(weights, image[start : start + _ROWS].swapaxes(0, 1)).swapaxes(0, 1)
        for start in range(0, image.shape[0], _ROWS)
    ]
    return np.concatenate(parts)


def _rows(image: np.ndarray, height: int, interpolation: str) -> np.ndarray:
    if image.shape[0] == height:
        return image
    return _apply(_weights(image.shape[0], height, interpolation), image)


def _weights(old: int, new: int, interpolation: str) -> "sparse.csr_array":
    """Of each of `new` pixels, what the `old` ones add to it: int32 [new, old]."""
    from scipy import sparse

    kernel, support = _FILTERS[interpolation]
    scale = old / new
    width = max(scale, 1.0)  # of the filter
    centre = (np.arange(new) + 0.5) * scale
    first = np.maximum(np.trunc(centre - support * width + 0.5), 0).astype(np.int32)
    last = np.minimum((centre + support * width + 0.5).astype(np.int32), old)
    taps = int((last - first).max())
    at = first[:, None] + np.arange(taps)
    inside = at < last[:, None]
    found = kernel((at - centre[:, None] + 0.5) * (1 / width)) * inside
    # One after the other, as Pillow adds them: not one bit may differ.
    total = np.zeros(new)
    for tap in found.T:
        total += tap
    found /= total[:, None]
    fixed = np.trunc(found * 2**_BITS + np.copysign(0.5, found)).astype(np.int32)
    rows = np.broadcast_to(np.arange(new)[:, None], at.shape)
    entries = (fixed[inside], (rows[inside], at[inside]))
    return sparse.csr_array(entries, shape=(new, old))


def _apply(weights: "sparse.csr_array", image: np.ndarray) -> np.ndarray:
    """Weighted sums over the first axis, as uint8."""
    flat = np.ascontiguousarray(image).reshape(image.shape[0], -1).astype(np.int32)
    sums = (weights @ flat + (1 << (_BITS - 1))) >> _BITS
    return sums.clip(0, 255).astype(np.uint8).reshape(-1, *image.shape[1:])
