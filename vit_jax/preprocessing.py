"""How images become what a checkpoint of another library takes: resize, then crop.

Sizes and places are rounded as that library rounds them: the pixels are its own.
"""

import dataclasses
import math
from typing import Literal

import numpy as np

from vit_jax.data.transforms import resize as resize_as_we_do
from vit_jax.errors import UserError
from vit_jax.resample import resample

Size = tuple[int, int]
Fit = Literal["cover", "squash", "inside", "none"]
Library = Literal["timm", "transformers", "vit_jax"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What a checkpoint says of its images. Sizes are (height, width) in pixels.

    Attributes:
      mean: of the channels of images in [0, 1], which is subtracted.
      std: by which the difference is divided.
      fit: how an image gets its new size. "cover": it just covers `resize` and keeps
        its shape; "inside": it just fits into it; "squash": its shape is distorted to
        `resize`; "none": it stays as it is.
      resize: size before the crop.
      crop: size of the central part that is kept, with `fill` where the image is
        smaller; None keeps all.
      interpolation: of `vit_jax.resample`; or "area", that of our own evaluations.
      fill: colour (red, green, blue), 0..255.
      crop_pct: timm's share of a side that a crop keeps, of which `resize` was made.
      library: whose rounding is followed. The long side of an image that covers is cut
        off to whole pixels by transformers, and by timm for squares; timm rounds it to
        the nearest otherwise. Where the margins of a crop cannot be equal, transformers
        takes the smaller one above and on the left, as we do; timm rounds halves to
        even.
    """

    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    fit: Fit = "squash"
    resize: Size = (224, 224)
    crop: Size | None = None
    interpolation: str = "bicubic"
    fill: tuple[int, int, int] = (0, 0, 0)
    crop_pct: float | None = None
    library: Library = "transformers"

    @property
    def size(self) -> Size | None:
        """Of every result; None where it depends on the image."""
        if self.crop is not None:
            return self.crop
        return self.resize if self.fit == "squash" else None

    def at(self, size: Size) -> "Preprocessing":
        """The same for models of another image size: the same share is cropped off.

        >>> found = Preprocessing(fit="cover", resize=(256, 256), crop=(224, 224))
        >>> found.at((448, 448)).resize
        (512, 512)
        """
        if self.size == size:
            return self
        if self.fit == "cover" and self.size is None:
            grown = max(*self.resize, *size)
            return dataclasses.replace(self, resize=(grown, grown), crop=size)
        if self.crop_pct is not None:
            height, width = (math.floor(side / self.crop_pct) for side in size)
        else:
            old = self.size or self.resize
            height, width = (round(self.resize[i] * size[i] / old[i]) for i in range(2))
        crop = None if self.crop is None else size
        return dataclasses.replace(self, resize=(height, width), crop=crop)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """One image, uint8 [h, w, 3], to uint8 [*size, 3].

        Raises:
          UserError: if the image is to stay as it is, and has another size.
        """
        if self.fit == "none" and self.crop is None and image.shape[:2] != self.resize:
            raise UserError(
                f"an image of {image.shape[0]} x {image.shape[1]}, and the checkpoint "
                f"has images resized by nothing (do_resize is false): expected "
                f"{self.resize[0]} x {self.resize[1]}"
            )
        new = self._resized((image.shape[0], image.shape[1]))
        if self.interpolation == "area":
            image = resize_as_we_do(image, new)
        else:
            rows_first = self.library == "timm"
            image = resample(image, new, self.interpolation, rows_first=rows_first)
        return image if self.crop is None else self._cropped(image, self.crop)

    def region(self, old: Size) -> tuple[float, float, float, float]:
        """Which part of an image of a size is seen: top, left, bottom, right.

        In its own pixels; it may reach beyond the image, where that is padded.

        >>> Preprocessing(fit="cover", resize=(8, 8), crop=(8, 8)).region((16, 20))
        (0.0, 2.0, 16.0, 18.0)
        """
        new = self._resized(old)
        size = new if self.crop is None else self.crop
        places = [self._margin(new[i] - size[i]) * old[i] / new[i] for i in range(2)]
        top, left = places
        height, width = (size[i] * old[i] / new[i] for i in range(2))
        return top, left, top + height, left + width

    def _margin(self, both: int) -> int:
        """Pixels that are cut off above or on the left, of those on both sides."""
        if both < 0:
            return -(-both // 2)
        return round(both / 2) if self.library == "timm" else both // 2

    def _resized(self, old: Size) -> Size:
        if self.fit == "squash":
            return self.resize
        if self.fit == "none":
            return old
        ratios = [a / b for a, b in zip(old, self.resize, strict=True)]
        square = self.resize[0] == self.resize[1]
        cut = self.library == "transformers" or (self.library == "timm" and square)
        if self.fit == "cover" and cut:
            return _cover(old, self.resize)
        ratio = min(ratios) if self.fit == "cover" else max(ratios)
        return round(old[0] / ratio), round(old[1] / ratio)

    def _cropped(self, image: np.ndarray, size: Size) -> np.ndarray:
        """The central part; where the image is smaller it is put into the middle."""
        found = np.empty((*size, 3), np.uint8)
        found[:] = self.fill
        theirs, ours = [], []
        for old, new in zip(image.shape, size, strict=False):
            start = self._margin(old - new)
            theirs.append(slice(max(start, 0), max(start, 0) + min(old, new)))
            ours.append(slice(max(-start, 0), max(-start, 0) + min(old, new)))
        found[tuple(ours)] = image[tuple(theirs)]
        return found


def _cover(old: Size, size: Size) -> Size:
    """The size that just covers another, the longer side cut off to whole pixels.

    >>> _cover((427, 640), (248, 248))
    (248, 371)
    """
    if old[1] * size[0] < old[0] * size[1]:
        return int(size[1] * old[0] / old[1]), size[1]
    return size[0], int(size[0] * old[1] / old[0])
