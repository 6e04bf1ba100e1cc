"""Text in pictures: how wide it is, what of it fits, and in black or in white.

Pictures are uint8 [h, w, 3], RGB; places are in pixels from the upper left corner.
"""

import bisect
import unicodedata

import cv2
import numpy as np

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
GREY = (90, 90, 90)  # on white 6.9 : 1
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_HEIGHT = 20  # of a capital letter of scale 1, pixels
# The fonts of OpenCV 4 and before have ASCII alone.
_ALL_LETTERS = int(cv2.__version__.split(".")[0]) >= 5
_BREAK = ".."  # the end of a text that was cut

Color = tuple[int, int, int]


def width(text: str, size: int) -> int:
    """Of a line of text, pixels; `size` is the height of its capital letters."""
    return cv2.getTextSize(legible(text), _FONT, size / _HEIGHT, 1)[0][0]


def fitted(text: str, size: int, room: int) -> str:
    """As much of a text as `room` pixels hold; one that is cut ends in two dots.

    >>> fitted("a name", 10, 1000), fitted("a name that is too long", 10, 0)
    ('a name', '')
    """
    text = legible(text)
    if width(text, size) <= room:
        return text
    lengths = range(1, len(text))
    end = bisect.bisect_right(
        lengths, room, key=lambda n: width(text[:n] + _BREAK, size)
    )
    return text[:end].rstrip() + _BREAK if end else ""


def write(
    picture: np.ndarray,
    text: str,
    place: tuple[int, int],
    size: int,
    color: Color = BLACK,
    *,
    bold: bool = False,
) -> None:
    """Writes a line of text.

    Args:
      picture: that it is written into.
      text: one line.
      place: (x, y) of its left end, and of the line that it stands on.
      size: height of its capital letters, pixels.
      color: RGB.
      bold: twice as thick.
    """
    scale, thickness = size / _HEIGHT, 2 if bold else 1
    cv2.putText(
        picture, legible(text), place, _FONT, scale, color, thickness, cv2.LINE_AA
    )


def write_centered(
    picture: np.ndarray,
    text: str,
    center: tuple[int, int],
    size: int,
    color: Color = BLACK,
) -> None:
    """Writes a line of text around a place."""
    corner = center[0] - width(text, size) // 2, center[1] + size // 2
    write(picture, text, corner, size, color)


def legible(text: str) -> str:
    r"""A text in letters that there are; accents are dropped where they must be.

    >>> legible("two\nlines")
    'two lines'
    """
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if _ALL_LETTERS else in_ascii(text)


def in_ascii(text: str) -> str:
    """A text without accents, and with "?" for letters that are not Latin.

    >>> in_ascii("naïve 猫")
    'naive ?'
    """
    plain = unicodedata.normalize("NFKD", text)
    kept = "".join(c for c in plain if not unicodedata.combining(c))
    return kept.encode("ascii", "replace").decode()


def ink(background: Color) -> Color:
    """Black or white, whichever can be read better on a colour.

    One of the two has a contrast of at least 4.58 : 1 with any colour, above the 4.5
    that WCAG 2.1 asks for (success criterion 1.4.3).

    >>> ink((255, 255, 255)), ink((8, 48, 107))
    ((0, 0, 0), (255, 255, 255))
    """
    light = _luminance(background)
    return BLACK if (light + 0.05) ** 2 > 0.05 * 1.05 else WHITE


def _luminance(color: Color) -> float:
    """Relative luminance in 0..1, as WCAG 2.1 defines it."""
    c = np.array(color) / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))
