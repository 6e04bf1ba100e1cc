"""From an image to what the model sees: uint8 [h, w, 3] in, uint8 [H, W, 3] out.

In this order: crop and resize, flip, turn, augment, jitter, erase
(docs/augmentation.md).

Resizing is bilinear (pixel centres at half-integers) where either side grows, and
averages over areas (cv2.INTER_AREA, no aliasing) where both sides shrink, unless
bilinear was asked for.

A train transform draws nothing by itself: the builder hands it `Draws`, rows of random
numbers that depend on (seed, global example number) alone.
"""

import dataclasses
import functools
import math
from typing import Literal

import cv2
import numpy as np

from vit_jax import limits
from vit_jax.data import sampler
from vit_jax.data.augmentation import Augment, Augmentation, Draws, ErasingMode
from vit_jax.data.crop import Box, Crop, cut
from vit_jax.errors import UserError

_ATTEMPTS = 10  # as in torchvision's RandomResizedCrop
_DEFAULT_AREA = (0.05, 1.0)
_DEFAULT_ASPECT_RATIO = (3 / 4, 4 / 3)
_DEFAULT_PADDING = 4
_MOST_REPEATS = 2**20

Interpolation = Literal["area", "bilinear"]


def resize(
    image: np.ndarray, size: tuple[int, int], interpolation: Interpolation = "area"
) -> np.ndarray:
    """`image`, uint8 [h, w, c], resized to `size` = (height, width).

    "bilinear" agrees with `tf.image.resize(image, size)`, which does not antialias.

    >>> resize(np.full((4, 4, 3), 7, np.uint8), (2, 6)).shape
    (2, 6, 3)
    """
    if image.shape[:2] == size:
        return image
    shrinks = size[0] <= image.shape[0] and size[1] <= image.shape[1]
    area = shrinks and interpolation == "area"
    how = cv2.INTER_AREA if area else cv2.INTER_LINEAR
    return cv2.resize(image, (size[1], size[0]), interpolation=how)


def central_crop(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The central `size` = (height, width) of an image that is at least as large."""
    top = (image.shape[0] - size[0]) // 2
    left = (image.shape[1] - size[1]) // 2
    return image[top : top + size[0], left : left + size[1]]


def inception_box(
    height: int,
    width: int,
    draws: np.ndarray,
    *,
    area: tuple[float, float] = _DEFAULT_AREA,
    aspect_ratio: tuple[float, float] = _DEFAULT_ASPECT_RATIO,
) -> Box:
    """A random part of a height x width image (Szegedy et al. 2015, section 6).

    The share of the area is uniform in `area`, the aspect ratio width / height is
    log-uniform in `aspect_ratio`, the place is uniform. What does not fit is drawn
    again, 10 times; then it is the largest central part whose aspect ratio is in
    range. This agrees with torchvision's RandomResizedCrop.get_params.

    Args:
        height: of the image, pixels.
        width: of the image, pixels.
        draws: uniform in [0, 1), float64 [2 + 2 * 10]: top, left, (area, ratio) * 10.
        area: smallest and largest share.
        aspect_ratio: smallest and largest width / height.

    >>> inception_box(8, 6, np.full(22, 0.5), area=(1.0, 1.0), aspect_ratio=(0.75, 1))
    Box(top=1, left=0, height=7, width=6)
    """
    low, high = math.log(aspect_ratio[0]), math.log(aspect_ratio[1])
    top, left, *attempts = draws.tolist()
    for share, shape in zip(attempts[0::2], attempts[1::2], strict=True):
        target = height * width * (area[0] + share * (area[1] - area[0]))
        ratio = math.exp(low + shape * (high - low))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            break
    else:
        ratio = min(max(width / height, aspect_ratio[0]), aspect_ratio[1])
        w = min(width, max(1, round(height * ratio)))
        h = min(height, max(1, round(width / ratio)))
    return Box(int(top * (height - h + 1)), int(left * (width - w + 1)), h, w)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainTransform:
    """Random crop to the image size, flips and quarter turns, augmentation.

    Attributes:
        crop: "inception", a random part resized (see `inception_box`); "pad", resize
            as in evaluation, pad with black, crop at random (He et al. 2016, section
            4.2); "resize", the whole image, its shape distorted to fit; "none", the
            image must have the image size already.
        area: smallest and largest share of the area, for "inception"; default 0.05, 1.
        aspect_ratio: smallest and largest width / height, for "inception"; default
            3/4, 4/3.
        padding: pixels on each side, for "pad"; default 4.
        interpolation: for "inception" and "resize", where both sides shrink: "area",
            the default, averages over areas; "bilinear" does not antialias, as
            tf.image.resize in the paper's code, and takes a quarter of the time.
        flip: whether to flip left and right, with probability 1/2.
        vertical_flip: likewise top and bottom, for images without an up, such as those
            of microscopes and satellites.
        rotate90: whether to turn by 0, 90, 180 or 270 degrees, each as likely; the
            image size must be square.
        augment: "randaugment", "autoaugment" (the policy for ImageNet),
            "trivialaugment" (wide), all three as in torchvision; "randaugment_tf", as
            in big_vision; "three_augment", of DeiT III; see `vit_jax.data.policies`.
        num_layers: operations on each image, of a RandAugment; default 2.
        magnitude: theirs, 0..30; default 9, or 10 for "randaugment_tf".
        fill: colour of what a rotated or shifted image leaves empty; default black, or
            grey for "randaugment_tf".
        color_jitter: (brightness, contrast, saturation, hue): factors in 1 - x .. 1 + x
            and a turn of -x .. x; default none, or (0.3, 0.3, 0.3, 0) for
            "three_augment".
        erasing: probability that a random box is erased.
        erasing_mode: what is put there: "pixel", noise, uniform in 0..255; "color", one
            random colour; "const", mid-grey (128); default "pixel".
        repeats: how often an epoch shows each record, augmented differently.
    """

    crop: Literal["inception", "pad", "resize", "none"] = "inception"
    area: tuple[float, float] | None = None
    aspect_ratio: tuple[float, float] | None = None
    padding: int | None = None
    interpolation: Interpolation | None = None
    flip: bool = True
    vertical_flip: bool = False
    rotate90: bool = False
    augment: Augment = "none"
    num_layers: int | None = None
    magnitude: int | None = None
    fill: tuple[int, int, int] | None = None
    color_jitter: tuple[float, float, float, float] | None = None
    erasing: float = 0.0
    erasing_mode: ErasingMode | None = None
    repeats: int = 1

    def __post_init__(self) -> None:
        _ = self._augmentation  # checks its keys
        if not 1 <= self.repeats <= _MOST_REPEATS:
            raise UserError(
                f"config.data.train.repeats={self.repeats}; expected 1 to "
                f"{_MOST_REPEATS:,}."
            )
        crops = ("inception", "pad", "resize", "none")
        if self.crop not in crops:
            raise UserError(
                f'config.data.train.crop="{self.crop}"; expected one of '
                f"{', '.join(crops)}."
            )
        if self.interpolation not in (None, "area", "bilinear"):
            raise UserError(
                f'config.data.train.interpolation="{self.interpolation}"; expected '
                "area or bilinear."
            )
        reads = {
            "inception": ("area", "aspect_ratio", "interpolation"),
            "resize": ("interpolation",),
            "pad": ("padding",),
        }
        for key in ("area", "aspect_ratio", "padding", "interpolation"):
            if getattr(self, key) is not None and key not in reads.get(self.crop, ()):
                raise UserError(
                    f"config.data.train.{key}={getattr(self, key)} has no effect with "
                    f'config.data.train.crop="{self.crop}"; set it to None.'
                )
        low, high = self._area
        if not 0 < low <= high <= 1:
            raise UserError(
                f"config.data.train.area={self.area}; expected (low, high), shares of "
                "the image with 0 < low <= high <= 1."
            )
        low, high = self._aspect_ratio
        if not 0 < low <= high:
            raise UserError(
                f"config.data.train.aspect_ratio={self.aspect_ratio}; expected "
                "(low, high) with 0 < low <= high."
            )
        if not 0 <= self._padding <= limits.IMAGE_SIDE:
            raise UserError(
                f"config.data.train.padding={self.padding}; expected pixels, 0 to "
                f"{limits.IMAGE_SIDE:,}."
            )

    def check_size(self, size: tuple[int, int]) -> None:
        """UserError where turned images would have another shape."""
        if self.rotate90 and size[0] != size[1]:
            raise UserError(
                f"config.data.train.rotate90 needs a square image size, not {size}; "
                "set config.data.image_size to one number, or rotate90 to False."
            )

    @property
    def _area(self) -> tuple[float, float]:
        return _DEFAULT_AREA if self.area is None else self.area

    @property
    def _aspect_ratio(self) -> tuple[float, float]:
        return _DEFAULT_ASPECT_RATIO if self.aspect_ratio is None else self.aspect_ratio

    @property
    def _padding(self) -> int:
        return _DEFAULT_PADDING if self.padding is None else self.padding

    @functools.cached_property
    def _augmentation(self) -> Augmentation:
        keys = (field.name for field in dataclasses.fields(Augmentation))
        return Augmentation(**{key: getattr(self, key) for key in keys})

    def draw(self, seed: int, numbers: np.ndarray) -> Draws:
        """The random numbers of the examples with these global numbers, int64 [b]."""
        crop = {"inception": 2 + 2 * _ATTEMPTS, "pad": 2}.get(self.crop, 0)
        flip = sampler.uniforms(seed, sampler.Stream.FLIP, numbers, 1)[:, 0] < 0.5
        more: dict[str, np.ndarray] = {}
        if self.vertical_flip:
            stream = sampler.Stream.VERTICAL_FLIP
            more["vertical_flip"] = (
                sampler.uniforms(seed, stream, numbers, 1)[:, 0] < 0.5
            )
        if self.rotate90:
            uniform = sampler.uniforms(seed, sampler.Stream.ROTATE90, numbers, 1)[:, 0]
            more["quarter_turns"] = (4 * uniform).astype(np.int64)
        return Draws(
            crop=sampler.uniforms(seed, sampler.Stream.CROP, numbers, crop),
            flip=flip if self.flip else np.zeros_like(flip),
            **more,
            **self._augmentation.draw(seed, numbers),
        )

    def __call__(
        self, image: np.ndarray, size: tuple[int, int], draws: Draws | None
    ) -> np.ndarray:
        """One image, uint8 [h, w, 3], to uint8 [*size, 3] by the draws of one row."""
        return self.finish(cut(image, self.wants(draws)), size, draws)

    def wants(self, draws: Draws | None) -> Crop | None:
        """The part of an image that `finish` is to be given; None: all of it."""
        if self.crop != "inception":
            return None
        assert draws is not None
        return functools.partial(
            inception_box,
            draws=draws.crop,
            area=self._area,
            aspect_ratio=self._aspect_ratio,
        )

    def finish(
        self, image: np.ndarray, size: tuple[int, int], draws: Draws | None
    ) -> np.ndarray:
        """The rest of a call, where only what it `wants` was read."""
        assert draws is not None
        if self.crop in ("inception", "resize"):
            image = resize(image, size, self.interpolation or "area")
        elif self.crop == "pad":
            p = self._padding
            image = _cover(image, size, short_side=min(size))
            image = cv2.copyMakeBorder(image, p, p, p, p, cv2.BORDER_CONSTANT)
            top, left = (int(u) for u in draws.crop * (2 * p + 1))
            image = image[top : top + size[0], left : left + size[1]]
        else:
            _check_size(image, size)
        # A view image[:, ::-1] would be copied a pixel at a time, as slow as resizing.
        image = cv2.flip(image, 1) if draws.flip else image
        if draws.vertical_flip is not None and draws.vertical_flip:
            image = cv2.flip(image, 0)
        if draws.quarter_turns is not None and draws.quarter_turns:
            image = np.ascontiguousarray(np.rot90(image, int(draws.quarter_turns)))
        return self._augmentation(image, draws)

    def batches(self, shape: tuple[int, int], size: tuple[int, int]) -> bool:
        """Whether `call_batch` can do images of `shape`: only cropped and flipped."""
        whole = shape == size and self.crop != "inception"
        return whole and not self._augmentation.active

    def call_batch(self, images: np.ndarray, draws: Draws | None) -> np.ndarray:
        """All images of one size at once: uint8 [b, h, w, c] in and out.

        Bit for bit what a call for each image gives. The input may be changed.
        """
        assert draws is not None
        if self.crop == "pad":
            p = self._padding
            b, h, w, _ = images.shape
            padded = np.pad(images, ((0, 0), (p, p), (p, p), (0, 0)))
            top, left = (draws.crop * (2 * p + 1)).astype(np.int64).T
            windows = np.lib.stride_tricks.sliding_window_view(
                padded, (h, w), axis=(1, 2)
            )  # [b, 2p + 1, 2p + 1, c, h, w]
            images = windows[np.arange(b), top, left].transpose(0, 2, 3, 1)
        images[draws.flip] = images[draws.flip, :, ::-1]
        if draws.vertical_flip is not None:
            images[draws.vertical_flip] = images[draws.vertical_flip, ::-1]
        if draws.quarter_turns is not None:
            for turns in (1, 2, 3):
                rows = draws.quarter_turns == turns
                images[rows] = np.rot90(images[rows], turns, axes=(1, 2))
        return images


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalTransform:
    """Resize the short side, then crop the centre.

    Attributes:
        resize: the short side in pixels before the crop, e.g. 256 for images of 224;
            None: the image just covers the image size, and as little as possible is
            cut off. For an image size that is not square: the image just covers it,
            enlarged by resize / (short side of the image size).
        crop: "central"; or "none", the whole image, its shape distorted to fit.
    """

    resize: int | None = None
    crop: Literal["central", "none"] = "central"

    def __post_init__(self) -> None:
        if self.crop not in ("central", "none"):
            raise UserError(
                f'config.data.eval.crop="{self.crop}"; expected one of central, none.'
            )
        if self.crop == "none" and self.resize is not None:
            raise UserError(
                f"config.data.eval.resize={self.resize} has no effect with "
                'config.data.eval.crop="none"; set it to None.'
            )

    def at(self, size: tuple[int, int], new: tuple[int, int]) -> "EvalTransform":
        """The same for images of `new` size: the same share is cut off.

        >>> EvalTransform(resize=256).at((224, 224), (448, 448)).resize
        512
        """
        if self.resize is None:
            return self
        resize = round(self.resize * min(new) / min(size))
        return dataclasses.replace(self, resize=resize)

    def check_size(self, size: tuple[int, int]) -> None:
        """UserError where the crop would be larger than the resized image."""
        if self.resize is None:
            return
        if not min(size) <= self.resize <= limits.IMAGE_SIDE:
            raise UserError(
                f"config.data.eval.resize={self.resize} does not go with the image "
                f"size {size}; expected {min(size)} to {limits.IMAGE_SIDE:,}, or None."
            )

    def draw(self, seed: int, numbers: np.ndarray) -> None:
        """Evaluation draws no random numbers."""

    def wants(self, draws: Draws | None) -> None:
        """All of an image: it is resized before it is cropped."""

    def __call__(
        self, image: np.ndarray, size: tuple[int, int], draws: Draws | None = None
    ) -> np.ndarray:
        """One image, uint8 [h, w, 3], to uint8 [*size, 3]."""
        return self.finish(image, size, draws)

    def finish(
        self, image: np.ndarray, size: tuple[int, int], draws: Draws | None = None
    ) -> np.ndarray:
        """What a call does: all of the image is wanted."""
        if self.crop == "none":
            return resize(image, size)
        return _cover(image, size, short_side=self.resize or min(size))

    def batches(self, shape: tuple[int, int], size: tuple[int, int]) -> bool:
        """Whether images of `shape` are left as they are."""
        return shape == size and self.resize in (None, min(size))

    def call_batch(self, images: np.ndarray, draws: Draws | None) -> np.ndarray:
        """All images, uint8 [b, h, w, c]: as they are."""
        return images


def _cover(image: np.ndarray, size: tuple[int, int], *, short_side: int) -> np.ndarray:
    """Resize to cover `size` (times short_side / min(size)), then the central crop."""
    height, width = image.shape[:2]
    scale = max(size[0] / height, size[1] / width) * short_side / min(size)
    new = max(size[0], round(height * scale)), max(size[1], round(width * scale))
    return central_crop(resize(image, new), size)


def _check_size(image: np.ndarray, size: tuple[int, int]) -> None:
    if image.shape[:2] != size:
        raise UserError(
            f"an image of {image.shape[0]} x {image.shape[1]}, but "
            f'config.data.train.crop="none" needs {size[0]} x {size[1]}; choose '
            '"resize" or "inception".'
        )
