"""Which operations an image gets, and how much of each, from uniform random numbers.

A policy is a pure function (draws, size) -> steps, where draws are the uniform numbers
in [0, 1) of one example, float64 [count], and size is (height, width): what it chooses
can be tested without an image.

Operations, magnitudes and probabilities are those of torchvision for `randaugment`,
`autoaugment`, `trivialaugment` and `color_jitter`; of timm for `erasing_box`; of DeiT
for `three_augment`; and of the authors' TensorFlow code, as it is in big_vision, for
`randaugment_tf`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from vit_jax.data import augment
from vit_jax.data.augment import Color
from vit_jax.data.crop import Box

Size = tuple[int, int]
Policy = Callable[[np.ndarray, Size], "list[Step]"]
T = TypeVar("T")
Jitter = tuple[float, float, float, float]

MAX_MAGNITUDE = 30
ERASING_ATTEMPTS = 10
_ERASED_AREA = (0.02, 1 / 3)
_ERASED_ASPECT_RATIO = (0.3, 1 / 0.3)


class Step(NamedTuple):
    """One operation of `augment.OPERATIONS` and its magnitude; or a box to fill."""

    name: str
    magnitude: float = 0.0
    box: Box | None = None


def apply(image: np.ndarray, steps: Sequence[Step], fill: Color) -> np.ndarray:
    """The image, uint8 [h, w, 3], after all steps in their order."""
    for name, magnitude, box in steps:
        if box is None:
            image = augment.OPERATIONS[name](image, magnitude, fill)
        else:
            image = augment.erase(image, box, fill)
    return image


def make(name: str, *, num_layers: int, magnitude: int) -> tuple[Policy, int]:
    """A policy, and how many uniform numbers it reads.

    Args:
        name: a value of `config.data.train.augment` other than "none".
        num_layers: operations on each image, of either RandAugment.
        magnitude: theirs.
    """
    keys = {"num_layers": num_layers, "magnitude": magnitude}
    return {
        "randaugment": (functools.partial(randaugment, **keys), 2 * num_layers),
        "randaugment_tf": (functools.partial(randaugment_tf, **keys), 4 * num_layers),
        "autoaugment": (autoaugment, 5),
        "trivialaugment": (trivialaugment, 3),
        "three_augment": (three_augment, 2),
    }[name]


def randaugment(
    draws: np.ndarray, size: Size, *, num_layers: int, magnitude: int
) -> list[Step]:
    """RandAugment (arXiv:1909.13719) as in torchvision: any of 14 operations a layer.

    Args:
        draws: (operation, sign) of each layer.
        size: (height, width).
        num_layers: operations on each image.
        magnitude: of all of them, 0..30; the strongest is 30.
    """
    amounts = _amounts(magnitude, MAX_MAGNITUDE, size)
    names = [name for name in amounts if name != "invert"]
    return [
        _signed(name := _pick(names, operation), amounts[name], sign)
        for operation, sign in draws.reshape(num_layers, 2).tolist()
    ]


def randaugment_tf(
    draws: np.ndarray, size: Size, *, num_layers: int, magnitude: int
) -> list[Step]:
    """RandAugment as in its authors' code and big_vision: any of 16 a layer.

    Magnitude 10 is what torchvision has at 30, and more is allowed. Enhancements have
    no sign: weak below 5, strong above. A larger magnitude solarizes less and keeps
    more bits. Pixels are those of `augment`; TensorFlow's differ in `contrast`, which
    takes height * width / 256 for the mean.

    Args:
        draws: (operation, sign, top, left) of each layer; the last two are cutout's.
        size: (height, width).
        num_layers: operations on each image.
        magnitude: of all of them, 0..30.
    """
    level = magnitude / 10
    amounts = {
        "autocontrast": 0,
        "equalize": 0,
        "invert": 0,
        "rotate": 30 * level,
        "posterize": min(8, int(4 * level)),
        "solarize": int(256 * level),
        "color": 0.1 + 1.8 * level,
        "contrast": 0.1 + 1.8 * level,
        "brightness": 0.1 + 1.8 * level,
        "sharpness": 0.1 + 1.8 * level,
        "shear_x": 0.3 * level,
        "shear_y": 0.3 * level,
        "translate_x": 100 * level,
        "translate_y": 100 * level,
        "cutout": int(40 * level),
        "solarize_add": int(110 * level),
    }
    names, steps = list(amounts), []
    for operation, sign, top, left in draws.reshape(num_layers, 4).tolist():
        name = _pick(names, operation)
        amount = amounts[name]
        if name == "cutout":
            steps.append(Step(name, amount, _cutout_box(size, amount, top, left)))
        else:
            negative = sign < 0.5 and name in _GEOMETRIC
            steps.append(Step(name, -amount if negative else amount))
    return steps


def _cutout_box(size: Size, pad: int, top: float, left: float) -> Box:
    """`pad` pixels on each side of any pixel, as far as they are in the image."""
    sides = []
    for length, place in zip(size, (top, left), strict=True):
        centre = int(place * length)
        start = max(0, centre - pad)
        sides.append((start, min(length, centre + pad) - start))
    return Box(sides[0][0], sides[1][0], sides[0][1], sides[1][1])


def autoaugment(draws: np.ndarray, size: Size) -> list[Step]:
    """AutoAugment's policy for ImageNet (arXiv:1805.09501, Table 9) as in torchvision.

    Args:
        draws: (policy, whether the first, its sign, whether the second, its sign).
        size: (height, width).
    """
    chosen, *each = draws.tolist()
    steps = []
    for i, (name, probability, magnitude) in enumerate(_pick(_IMAGENET, chosen)):
        happens, sign = each[2 * i : 2 * i + 2]
        if happens < probability:
            amount = _amounts(magnitude, 9, size)[name]
            steps.append(_signed(name, amount, sign))
    return steps


# (operation, probability, magnitude of 0..9), twice.
_IMAGENET = (
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 5)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 4), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 7)),
    (("posterize", 0.8, 5), ("equalize", 1.0, 2)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 8), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("color", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 2)),
    (("equalize", 0.0, 7), ("equalize", 0.8, 8)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("color", 1.0, 2)),
    (("color", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 8)),
    (("shear_x", 0.6, 5), ("equalize", 1.0, 9)),
    (("color", 0.4, 0), ("equalize", 0.6, 3)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 5)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
)


def trivialaugment(draws: np.ndarray, size: Size) -> list[Step]:
    """TrivialAugment, wide (arXiv:2103.10158), as in torchvision: one operation.

    Args:
        draws: (operation, magnitude of 0..30, sign).
        size: not read; images are shifted by up to 32 pixels, whatever their size.
    """
    operation, magnitude, sign = draws.tolist()
    amounts = _wide_amounts(int(magnitude * (MAX_MAGNITUDE + 1)))
    name = _pick(list(amounts), operation)
    return [_signed(name, amounts[name], sign)]


def three_augment(draws: np.ndarray, size: Size) -> list[Step]:
    """3-Augment of DeiT III (arXiv:2204.07118): grey, solarized or blurred.

    Args:
        draws: (operation, sigma of the blur in 0.1..2).
        size: not read.
    """
    operation, sigma = draws.tolist()
    steps = (
        Step("grayscale"),
        Step("solarize", 128),
        Step("gaussian_blur", 0.1 + 1.9 * sigma),
    )
    return [_pick(steps, operation)]


def color_jitter(draws: np.ndarray, jitter: Jitter) -> list[Step]:
    """Torchvision's ColorJitter: up to four steps in random order.

    Args:
        draws: four for the amounts, four for the order.
        jitter: brightness, contrast and saturation are multiplied by 1 - x .. 1 + x,
            not below 0; hue is turned by -x .. x of the circle. 0 leaves one out.
    """
    steps = []
    for i in np.argsort(draws[4:]).tolist():
        name, x = _JITTERED[i], jitter[i]
        low, high = (-x, x) if name == "hue" else (max(0, 1 - x), 1 + x)
        if x > 0:
            steps.append(Step(name, low + float(draws[i]) * (high - low)))
    return steps


_JITTERED = ("brightness", "contrast", "color", "hue")


def erasing_box(draws: np.ndarray, size: Size) -> Box | None:
    """The box that random erasing (arXiv:1708.04896) fills, as in timm.

    Its share of the area is uniform in 0.02..1/3, height / width is log-uniform in
    0.3..3.33; what does not fit is drawn again, 10 times, and then nothing is erased.

    Args:
        draws: top, left, (area, ratio) * 10.
        size: (height, width).
    """
    low, high = (math.log(ratio) for ratio in _ERASED_ASPECT_RATIO)
    top, left, *attempts = draws.tolist()
    for share, shape in zip(attempts[0::2], attempts[1::2], strict=True):
        smallest, largest = _ERASED_AREA
        area = size[0] * size[1] * (smallest + share * (largest - smallest))
        ratio = math.exp(low + shape * (high - low))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if h < size[0] and w < size[1]:
            break
    else:
        return None
    return Box(int(top * (size[0] - h + 1)), int(left * (size[1] - w + 1)), h, w)


_GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
_ENHANCEMENTS = ("brightness", "color", "contrast", "sharpness")


@functools.lru_cache
def _amounts(magnitude: int, strongest: int, size: Size) -> dict[str, float]:
    """Of torchvision's RandAugment and AutoAugment, at a magnitude in 0..strongest."""
    height, width = size
    at = functools.partial(_grid, number=magnitude, last=strongest)
    return {
        "identity": 0,
        "shear_x": at(0.3),
        "shear_y": at(0.3),
        "translate_x": at(150 / 331 * width),
        "translate_y": at(150 / 331 * height),
        "rotate": at(30),
        "brightness": at(0.9),
        "color": at(0.9),
        "contrast": at(0.9),
        "sharpness": at(0.9),
        "posterize": 8 - round(at(4)),
        "solarize": 255 - at(255),
        "autocontrast": 0,
        "equalize": 0,
        "invert": 0,
    }


@functools.lru_cache
def _wide_amounts(magnitude: int) -> dict[str, float]:
    """Of torchvision's TrivialAugmentWide, at a magnitude in 0..30."""
    at = functools.partial(_grid, number=magnitude, last=MAX_MAGNITUDE)
    return {
        "identity": 0,
        "shear_x": at(0.99),
        "shear_y": at(0.99),
        "translate_x": at(32),
        "translate_y": at(32),
        "rotate": at(135),
        "brightness": at(0.99),
        "color": at(0.99),
        "contrast": at(0.99),
        "sharpness": at(0.99),
        "posterize": 8 - round(at(6)),
        "solarize": 255 - at(255),
        "autocontrast": 0,
        "equalize": 0,
    }


def _grid(end: float, *, number: int, last: int) -> float:
    """Point `number` of 0..last on a grid from 0 to end, rounded as torch.linspace.

    The last bit of a factor decides how products are cut to whole numbers.
    """
    end = float(np.float32(end))
    step = float(np.float32(end) / np.float32(last))
    below_middle = number < (last + 1) // 2
    value = step * number if below_middle else end - step * (last - number)
    return float(np.float32(value))


def _signed(name: str, amount: float, sign: float) -> Step:
    """Half of the time to the other side, where an operation has two."""
    if name in _ENHANCEMENTS:
        return Step(name, 1 - amount if sign < 0.5 else 1 + amount)
    return Step(name, -amount if name in _GEOMETRIC and sign < 0.5 else amount)


def _pick(choices: Sequence[T], draw: float) -> T:
    return choices[int(draw * len(choices))]
