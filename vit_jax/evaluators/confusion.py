"""A picture of a confusion matrix, as an array.

Of few classes it shows the counts; of more, beside the matrix, which classes are taken
for which others most often.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from vit_jax import lettering

_SIDE = 1000  # pixels of the matrix, about
_LARGEST = 120  # pixels of a cell, at most
_LEGIBLE = 14  # pixels of a cell beside which a name can be read
_SMALLEST_TEXT, _TEXT = 7, 13  # height of the capital letters of counts and names
_NAME = 220  # pixels of a name, at most
_LISTED = 30  # confusions that are listed
_LINE = 26  # pixels of a line of the list
_MARGIN = 16


def draw(
    counts: np.ndarray, names: Sequence[str] | None = None, title: str = ""
) -> np.ndarray:
    """The matrix as a picture: a row is a true class, a column a predicted one.

    The darker a cell, the larger its share of the row. Up to 29 classes, cells hold
    their counts; up to 71, rows and columns have the names of their classes. Where
    there is no room for counts, the most frequent confusions are listed instead.

    Args:
      counts: [k, k], by label and prediction.
      names: of the classes; by default their numbers.
      title: a line above it.

    Returns:
      uint8 [h, w, 3].
    """
    k = len(counts)
    texts = [str(i) for i in range(k)] if names is None else list(names)
    cell = int(np.clip(_SIDE // k, 1, _LARGEST))
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    picture = _shade(np.kron(share, np.ones((cell, cell))))
    counted = _write_counts(picture, counts, cell)
    _draw_grid(picture, cell)
    side = len(picture)
    if cell >= _LEGIBLE:
        size = min(_TEXT, cell // 2)
        rows = _names(texts, cell, size, to_the_right=True)
        columns = np.rot90(_names(texts, cell, size, to_the_right=False))  # from below
        top = np.full((len(columns), rows.shape[1], 3), 255, np.uint8)
        picture = np.vstack((np.hstack((top, columns)), np.hstack((rows, picture))))
    if not counted:
        listed = _list(counts, texts)
        picture = _beside(picture, listed, top=len(picture) - side)
    return _framed(picture, title)


def most_frequent(counts: np.ndarray, most: int) -> list[tuple[int, int, int]]:
    """The largest counts off the diagonal: (label, prediction, count), largest first.

    >>> most_frequent(np.array([[9, 1, 0], [0, 5, 3], [0, 0, 2]]), 5)
    [(1, 2, 3), (0, 1, 1)]
    """
    off = counts.copy()
    np.fill_diagonal(off, 0)
    order = np.argsort(-off, axis=None, kind="stable")[:most]
    places = [divmod(place, len(counts)) for place in order.tolist()]
    return [(i, j, int(off[i, j])) for i, j in places if off[i, j]]


def _shade(share: np.ndarray) -> np.ndarray:
    """Shares in [0, 1] from white to dark blue; small ones are lifted, to be seen."""
    dark = np.array([8, 48, 107])
    return (255 - np.sqrt(share)[..., None] * (255 - dark)).round().astype(np.uint8)


def _write_counts(picture: np.ndarray, counts: np.ndarray, cell: int) -> bool:
    """Writes the counts that are not 0 into their cells, if there is room."""
    longest = f"{counts.max()}"
    size = min(_TEXT, cell // 3)
    while size >= _SMALLEST_TEXT and lettering.width(longest, size) > cell - 4:
        size -= 1
    if size < _SMALLEST_TEXT:
        return False
    for row, column in np.argwhere(counts).tolist():
        x, y = (n * cell + cell // 2 for n in (column, row))
        r, g, b = picture[row * cell, column * cell].tolist()
        color = lettering.ink((r, g, b))
        lettering.write_centered(picture, str(counts[row, column]), (x, y), size, color)
    return True


def _draw_grid(picture: np.ndarray, cell: int) -> None:
    """A frame, and thin lines between the cells where they have names."""
    if cell >= _LEGIBLE:
        picture[cell::cell] = np.minimum(picture[cell::cell], 225)
        picture[:, cell::cell] = np.minimum(picture[:, cell::cell], 225)
    end = len(picture) - 1
    cv2.rectangle(picture, (0, 0), (end, end), lettering.GREY)


def _names(
    names: Sequence[str], cell: int, size: int, *, to_the_right: bool
) -> np.ndarray:
    """The names as a column, one beside each row of cells; flush with one side."""
    texts = [lettering.fitted(name, size, _NAME) for name in names]
    widths = [lettering.width(text, size) for text in texts]
    room = max(widths) + 12
    column = np.full((cell * len(texts), room, 3), 255, np.uint8)
    for i, (text, width) in enumerate(zip(texts, widths, strict=True)):
        left = room - 6 - width if to_the_right else 6
        lettering.write(column, text, (left, i * cell + (cell + size) // 2), size)
    return column


def _list(counts: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """The most frequent confusions, a line each."""
    lines = ["The most frequent confusions:"]
    for i, j, count in most_frequent(counts, _LISTED):
        of = int(counts[i].sum())
        one, other = (lettering.fitted(names[n], _TEXT, _NAME) for n in (i, j))
        lines.append(f"{one} taken for {other}: {count:,} of {of:,} ({count / of:.0%})")
    if len(lines) == 1:
        lines = ["No class is taken for another."]
    room = max(lettering.width(line, _TEXT) for line in lines) + 4
    column = np.full((_LINE * len(lines), room, 3), 255, np.uint8)
    for i, line in enumerate(lines):
        lettering.write(column, line, (0, i * _LINE + _TEXT + 4), _TEXT)
    return column


def _beside(picture: np.ndarray, other: np.ndarray, *, top: int) -> np.ndarray:
    """Two pictures beside each other, the second `top` pixels further down."""
    height = max(len(picture), top + len(other))
    left = ((0, height - len(picture)), (0, 2 * _MARGIN), (0, 0))
    right = ((top, height - top - len(other)), (0, 0), (0, 0))
    parts = (
        np.pad(picture, left, constant_values=255),
        np.pad(other, right, constant_values=255),
    )
    return np.hstack(parts)


def _framed(picture: np.ndarray, title: str) -> np.ndarray:
    """A margin with the title, and with what the axes are."""
    axes = "rows: true class, columns: predicted class; colour: share of the row"
    room = max(lettering.width(title, 16), lettering.width(axes, 12))
    wider = max(0, room + 8 - picture.shape[1])
    top = _MARGIN + (32 if title else 0) + 28
    framed = np.pad(
        picture,
        ((top, _MARGIN), (_MARGIN, _MARGIN + wider), (0, 0)),
        constant_values=255,
    )
    framed = np.ascontiguousarray(framed)
    if title:
        lettering.write(framed, title, (_MARGIN, _MARGIN + 16), 16, bold=True)
    lettering.write(framed, axes, (_MARGIN, top - 12), 12, lettering.GREY)
    return framed
