"""A picture of a confusion matrix, as an array."""

import unicodedata
from collections.abc import Sequence

import cv2
import numpy as np

_SIDE = 1000  # pixels of the matrix, about
_LEGIBLE = 14  # pixels of a cell beside which a name can be read
_ROOMY = 34  # pixels of a cell in which a number can be read
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_INK, _GREY = (40, 40, 40), (150, 150, 150)


def draw(counts: np.ndarray, names: Sequence[str] | None = None) -> np.ndarray:
    """The matrix as a picture: a row is a label, a column a prediction.

    The darker a cell, the larger its share of the row. Where there is room, cells hold
    their counts, and rows and columns have the names of their classes.

    Args:
      counts: [k, k], by label and prediction.
      names: of the classes; by default their numbers.

    Returns:
      uint8 [h, w, 3].
    """
    k = len(counts)
    cell = int(np.clip(_SIDE // k, 1, 48))
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    picture = _shade(np.kron(share, np.ones((cell, cell))))
    if cell >= _ROOMY:
        for row, column in np.argwhere(counts):
            place = column * cell + cell // 2, row * cell + cell // 2
            dark = share[row, column] > 0.5
            _write_centered(picture, str(counts[row, column]), place, dark=dark)
    if cell >= _LEGIBLE:
        rows = _names([str(i) for i in range(k)] if names is None else names, cell)
        columns = np.rot90(rows)  # read from below
        top = np.full((len(columns), rows.shape[1], 3), 255, np.uint8)
        picture = np.vstack((np.hstack((top, columns)), np.hstack((rows, picture))))
    return np.ascontiguousarray(_frame(picture))


def _shade(share: np.ndarray) -> np.ndarray:
    """Shares in [0, 1] from white to dark blue; small ones are lifted, to be seen."""
    dark = np.array([8, 48, 107])
    return (255 - np.sqrt(share)[..., None] * (255 - dark)).round().astype(np.uint8)


def _names(names: Sequence[str], cell: int) -> np.ndarray:
    """The names as a column, one beside each row of cells."""
    texts = [_ascii(name)[:24] for name in names]
    scale = min(0.45, cell / 36)
    sizes = [cv2.getTextSize(text, _FONT, scale, 1)[0] for text in texts]
    width = max(size[0] for size in sizes) + 12
    column = np.full((cell * len(texts), width, 3), 255, np.uint8)
    for i, (text, size) in enumerate(zip(texts, sizes, strict=True)):
        corner = width - 6 - size[0], i * cell + (cell + size[1]) // 2
        cv2.putText(column, text, corner, _FONT, scale, _INK, 1, cv2.LINE_AA)
    return column


def _ascii(name: str) -> str:
    """The fonts of OpenCV have no other letters.

    >>> _ascii("naïve café")
    'naive cafe'
    """
    return unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()


def _write_centered(
    picture: np.ndarray, text: str, center: tuple[int, int], *, dark: bool
) -> None:
    (width, height), _ = cv2.getTextSize(text, _FONT, 0.35, 1)
    corner = int(center[0] - width // 2), int(center[1] + height // 2)
    color = (255, 255, 255) if dark else _INK
    cv2.putText(picture, text, corner, _FONT, 0.35, color, 1, cv2.LINE_AA)


def _frame(picture: np.ndarray) -> np.ndarray:
    """A margin that says what the axes are."""
    margin = 24
    framed = np.pad(picture, ((margin, 8), (8, 8), (0, 0)), constant_values=255)
    text = "rows: label, columns: prediction"
    cv2.putText(framed, text, (8, 16), _FONT, 0.4, _GREY, 1, cv2.LINE_AA)
    return framed
