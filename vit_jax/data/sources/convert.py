"""Arrays as people save them to images and labels: other types, flat, other orders."""

import math
from collections.abc import Mapping

import numpy as np

from vit_jax.data.decode import over_white
from vit_jax.errors import UserError

_CHANNELS = (1, 3)
_NAMED = 5  # at most so many names are listed in a message


def to_images(array: np.ndarray, where: str) -> np.ndarray:
    """Pixels as uint8 [n, h, w], or [n, h, w, c] with c = 1 or 3.

    Rows [n, h * h] are square grey images; [n, c, h, w] is put into order; alpha is
    composed over white. Floats are of 0..1 or of 0..255, uint16 of 0..65535.

    Raises:
        UserError: no images, or values in no such range.

    >>> to_images(np.array([[0.0, 0.2, 0.4, 1.0]]), "x").tolist()
    [[[0, 51], [102, 255]]]
    """
    images = _to_uint8(_in_order(array, where), where)
    if images.ndim == 4 and images.shape[-1] == 4:
        images = over_white(images)
    return images


def _in_order(array: np.ndarray, where: str) -> np.ndarray:
    shape = array.shape
    good = len(shape) == 3 or (len(shape) == 4 and shape[-1] in (*_CHANNELS, 4))
    if len(shape) == 2 and math.isqrt(shape[1]) ** 2 == shape[1] > 1:
        side = math.isqrt(shape[1])
        array = array.reshape(-1, side, side)
    elif len(shape) == 4 and shape[1] in _CHANNELS and not good:
        array = np.moveaxis(array, 1, 3)
    elif not good:
        side = math.isqrt(shape[-1] // 3) if len(shape) == 2 else 0
        hint = ""
        if side and 3 * side**2 == shape[-1]:
            hint = (
                f"; rows of {shape[-1]} numbers may be {side}x{side} pixels of 3 "
                f"colours: give them the shape [n, {side}, {side}, 3]"
            )
        raise _no_images(array, where, hint)
    if 0 in array.shape[1:] or array.dtype.kind not in "biuf":
        raise _no_images(array, where)
    return array


def _no_images(array: np.ndarray, where: str, hint: str = "") -> UserError:
    return UserError(
        f"{where}: images are {array.dtype} {list(array.shape)}; expected uint8 "
        "[n, height, width], or [n, height, width, channels] with 1 or 3 "
        f"channels{hint}."
    )


def _to_uint8(array: np.ndarray, where: str) -> np.ndarray:
    if array.dtype == np.uint8 or not array.size:
        return array.astype(np.uint8, copy=False)
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    low, high = array.min(), array.max()
    is_float = array.dtype.kind == "f"
    if array.dtype == np.uint16 and high > 255:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)  # as decode
    if is_float and low >= 0 and high <= 1:
        return np.rint(array * array.dtype.type(255)).astype(np.uint8)
    # The brightest pixel of a set of images in 0..255 is brighter than half.
    if low >= 0 and high <= 255 and (high > 127 or not is_float):
        return np.rint(array).astype(np.uint8)
    expected = "0..1 or 0..255" if is_float else "0..255"
    raise UserError(
        f"{where}: images are {array.dtype} with values {low:g}..{high:g}; expected "
        f"{expected}, not normalised. Save them as uint8."
    )


def to_labels(array: np.ndarray, where: str) -> np.ndarray:
    """Labels as integers [n], text [n], or vectors [n, k] of numbers in 0..1.

    Raises:
        UserError: for any others.

    >>> to_labels(np.array([[2.0], [0.0]]), "y").tolist()
    [2, 0]
    """
    labels = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    kind = labels.dtype.kind
    if labels.ndim == 1 and kind == "S":
        try:
            labels, kind = np.char.decode(labels, "utf-8"), "U"
        except UnicodeDecodeError as e:
            raise UserError(
                f"{where}: labels are names that are not UTF-8; save them as text, "
                "dtype=str."
            ) from e
    if kind == "f" and labels.ndim == 1:
        bad = np.flatnonzero(np.abs(labels) >= 2**31)
        if len(bad):
            raise UserError(
                f"{where}, record {bad[0]}: label {labels[bad[0]]:g} is no class "
                f"number ({len(bad)} of {len(labels)} labels have more than 32 bits); "
                "correct the labels."
            )
    if labels.ndim == 1 and kind in "bf" and (labels == np.rint(labels)).all():
        labels, kind = labels.astype(np.int64), "i"
    vectors = labels.ndim == 2 and kind in "biuf"
    if vectors and labels.size and not (labels.min() >= 0 and labels.max() <= 1):
        raise UserError(
            f"{where}: labels are vectors with values {labels.min():g}.."
            f"{labels.max():g}; expected 0..1 for each class."
        )
    if not vectors and not (labels.ndim == 1 and kind in "iuU"):
        raise UserError(
            f"{where}: labels are {array.dtype} {list(array.shape)}; expected integers "
            "or names [n], or multi-hot [n, classes]."
        )
    return labels


def number_names(
    labels: Mapping[str, np.ndarray], known: str, where: str
) -> tuple[dict[str, np.ndarray], tuple[str, ...] | None]:
    """Class numbers instead of names, in the order of the sorted names of one split.

    Args:
        labels: of each split.
        known: the split that has all classes.
        where: for messages.

    Raises:
        UserError: a class that this split has not, or numbers here and names there.
    """
    if all(array.dtype.kind != "U" for array in labels.values()):
        return dict(labels), None
    if any(array.dtype.kind != "U" for array in labels.values()):
        raise UserError(f"{where}: labels of one split are names, of another numbers.")
    names = np.unique(labels[known])
    for split, array in labels.items():
        unknown = sorted(set(array.tolist()) - set(names.tolist()))
        if unknown:
            raise UserError(
                f"{where}: split {split} has classes that {known} has not: "
                f"{', '.join(unknown[:_NAMED])}."
            )
    numbered = {s: np.searchsorted(names, array) for s, array in labels.items()}
    return numbered, tuple(names.tolist())
