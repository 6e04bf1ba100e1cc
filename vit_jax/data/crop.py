"""Which part of an image is wanted."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Box(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def bottom(self) -> int:
        """The row below the last one."""
        return self.top + self.height

    @property
    def right(self) -> int:
        """The column right of the last one."""
        return self.left + self.width


# Of an image's height and width, the part that is wanted.
Crop = Callable[[int, int], Box]


def cut(image: np.ndarray, crop: Crop | None) -> np.ndarray:
    """The part of an image [h, w, c] that `crop` wants, a view; None wants all.

    >>> cut(np.zeros((4, 6, 3)), lambda height, width: Box(1, 2, 3, 4)).shape
    (3, 4, 3)
    """
    if crop is None:
        return image
    box = crop(*image.shape[:2])
    return image[box.top : box.bottom, box.left : box.right]
