"""Operations on images: uint8 RGB [h, w, 3] in, a new one of the same size out.

Each gives what Pillow gives, bit for bit, and so what torchvision gives for PIL images;
`gaussian_blur` and `shift_hue` agree to the tolerance that they state. All that takes
time are calls of OpenCV and NumPy, which release Python's interpreter lock.

A magnitude is a number in the unit of its operation: a factor, degrees, pixels, bits.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np

from vit_jax.data.crop import Box

Color = tuple[int, int, int]
# (a, b, c, d, e, f): pixel (x, y) of the result is (ax + by + c, dx + ey + f) of the
# image, where pixels are unit squares and (x, y) is the centre of one.
Affine = tuple[float, float, float, float, float, float]

_VALUES = np.arange(256, dtype=np.int64)
_BYTES = _VALUES.astype(np.uint8)
# ITU-R 601-2, in 65536ths as Pillow rounds them, and a half to round the sum.
_LUMA = np.array([[19595, 38470, 7471, 32768]], np.float32) / 65536
_BLUR_PASSES = 3
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
    """Keeps the highest `bits`, 0..8, of each value."""
    return _lookup(image, _VALUES & (256 - 2 ** (8 - bits)))


def solarize(image: np.ndarray, threshold: float) -> np.ndarray:
    """Inverts the values that are not below the threshold."""
    return _lookup(image, np.where(threshold > _VALUES, _VALUES, 255 - _VALUES))


def solarize_add(image: np.ndarray, amount: int) -> np.ndarray:
    """Adds to the values below 128."""
    return _lookup(image, np.where(_VALUES < 128, _VALUES + amount, _VALUES))


def invert(image: np.ndarray) -> np.ndarray:
    """255 minus each value."""
    return cv2.bitwise_not(image)


def equalize(image: np.ndarray) -> np.ndarray:
    """Spreads each channel's histogram, so that values become equally frequent."""
    tables = []
    for counts in _histograms(image):
        (used,) = np.nonzero(counts)
        step = int(counts.sum() - counts[used[-1]]) // 255
        if step == 0:
            tables.append(_VALUES)
        else:
            tables.append((step // 2 + np.cumsum(counts) - counts) // step)
    return _lookup(image, np.stack(tables, axis=-1))


def autocontrast(image: np.ndarray) -> np.ndarray:
    """Scales each channel so that it reaches from 0 to 255."""
    tables = []
    for counts in _histograms(image):
        (used,) = np.nonzero(counts)
        low, high = int(used[0]), int(used[-1])
        if low == high:
            tables.append(_VALUES)
        else:
            scale = 255.0 / (high - low)
            tables.append((_VALUES * scale - low * scale).astype(np.int64))
    return _lookup(image, np.stack(tables, axis=-1))


def grayscale(image: np.ndarray) -> np.ndarray:
    """The luma of ITU-R 601-2, repeated."""
    return cv2.cvtColor(luma(image), cv2.COLOR_GRAY2RGB)


def luma(image: np.ndarray) -> np.ndarray:
    """uint8 [h, w]. In float32 every sum is exact: a multiple of 2**-16 below 256."""
    return cv2.transform(image.astype(np.float32), _LUMA).astype(np.uint8)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with black: 0 is black, 1 the image."""
    return _lookup(image, _blend(np.zeros_like(_BYTES), _BYTES, factor))


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with the mean luma: 0 is grey, 1 the image."""
    grey = luma(image)
    mean = int(cv2.sumElems(grey)[0] / grey.size + 0.5)
    return _lookup(image, _blend(np.full_like(_BYTES, mean), _BYTES, factor))


def color(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with the luma (saturation): 0 is grey, 1 the image."""
    return _blend(grayscale(image), image, factor)


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with a blurred image: 0 is blurred, 1 the image, 2 is sharp."""
    blurred = cv2.filter2D(image, -1, _SMOOTH)
    for edge in (0, -1):
        blurred[edge], blurred[:, edge] = image[edge], image[:, edge]
    return _blend(blurred, image, factor)


def gaussian_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Three box filters along each axis, whose variances add up to sigma**2.

    Gwosdek et al., "Theoretical foundations of Gaussian convolution by extended box
    filtering" (2011), equations 7, 11 and 14, each pass rounded, as in Pillow. Values
    differ by up to 3 where sums lie halfway (sigma = 1), by 0.1 on average elsewhere.
    """
    variance = sigma**2 / _BLUR_PASSES
    whole = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    part /= 6 * (variance - (whole + 1) ** 2)
    side = 1 + 2 * (whole + part)
    box = np.array([part, *[1] * (2 * whole + 1), part], np.float32) / side
    for kernel in [box[None]] * _BLUR_PASSES + [box[:, None]] * _BLUR_PASSES:
        image = cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REPLICATE)
    return image


def shift_hue(image: np.ndarray, turns: float) -> np.ndarray:
    """Turns the hue by -1/2..1/2 of the circle, in float32.

    To one step of 255 that of torchvision for tensors. For PIL images it rounds hue
    and saturation to 8 bits, which makes a difference of up to 16.
    """
    hsv = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
    hsv[..., 0] += 360 * (turns % 1)  # HSV2RGB takes it modulo 360
    rgb = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return (rgb * 255 + 0.5).astype(np.uint8)


def rotate(image: np.ndarray, degrees: float, fill: Color) -> np.ndarray:
    """Counter-clockwise about the centre."""
    height, width = image.shape[:2]
    turn = -math.radians(degrees % 360)
    # Rounded as Pillow does, so that a quarter turn is exact.
    cos, sin = round(math.cos(turn), 15), round(math.sin(turn), 15)
    x, y = width / 2, height / 2
    matrix = cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y
    return affine(image, matrix, fill)


def shear_x(image: np.ndarray, shear: float, fill: Color) -> np.ndarray:
    """Row y moves left by `shear * y`."""
    return affine(image, (1, shear, 0, 0, 1, 0), fill)


def shear_y(image: np.ndarray, shear: float, fill: Color) -> np.ndarray:
    """Column x moves up by `shear * x`."""
    return affine(image, (1, 0, 0, shear, 1, 0), fill)


def translate_x(image: np.ndarray, pixels: float, fill: Color) -> np.ndarray:
    """To the right, by whole pixels."""
    return affine(image, (1, 0, -int(pixels), 0, 1, 0), fill)


def translate_y(image: np.ndarray, pixels: float, fill: Color) -> np.ndarray:
    """Downwards, by whole pixels."""
    return affine(image, (1, 0, 0, 0, 1, -int(pixels)), fill)


def affine(image: np.ndarray, matrix: Affine, fill: Color) -> np.ndarray:
    """The nearest pixel of an affine map, in Pillow's 16.16 fixed point.

    Args:
        image: at most 2**14 pixels a side.
        matrix: see `Affine`.
        fill: where the map leaves the image.
    """
    a, b, c, d, e, f = matrix
    height, width = image.shape[:2]
    x, y = np.arange(width, dtype=np.int32), np.arange(height, dtype=np.int32)
    places = []
    for by_x, by_y, start in ((a, b, c), (d, e, f)):
        row = _fixed(by_y) * y + _fixed(start + by_x * 0.5 + by_y * 0.5)
        places.append(((row[:, None] + _fixed(by_x) * x) >> 16).astype(np.int16))
    return cv2.remap(
        image,
        cv2.merge(places),
        None,  # pyright: ignore[reportArgumentType, reportCallIssue]
        cv2.INTER_NEAREST,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=fill,
    )


def erase(image: np.ndarray, box: Box, value: Color | np.ndarray) -> np.ndarray:
    """Puts a colour, or pixels uint8 [height, width, 3], into a box."""
    image = image.copy()
    image[box.top : box.top + box.height, box.left : box.left + box.width] = value
    return image


# Every operation as a function of (image, magnitude, fill), by the name that policies
# use. Those without a magnitude ignore it.
OPERATIONS: dict[str, Callable[[np.ndarray, float, Color], np.ndarray]] = {
    "identity": lambda image, _, fill: image,
    "shear_x": shear_x,
    "shear_y": shear_y,
    "translate_x": translate_x,
    "translate_y": translate_y,
    "rotate": rotate,
    "brightness": lambda image, factor, _: brightness(image, factor),
    "color": lambda image, factor, _: color(image, factor),
    "contrast": lambda image, factor, _: contrast(image, factor),
    "sharpness": lambda image, factor, _: sharpness(image, factor),
    "posterize": lambda image, bits, _: posterize(image, int(bits)),
    "solarize": lambda image, threshold, _: solarize(image, threshold),
    "solarize_add": lambda image, amount, _: solarize_add(image, int(amount)),
    "autocontrast": lambda image, *_: autocontrast(image),
    "equalize": lambda image, *_: equalize(image),
    "invert": lambda image, *_: invert(image),
    "grayscale": lambda image, *_: grayscale(image),
    "gaussian_blur": lambda image, sigma, _: gaussian_blur(image, sigma),
    "hue": lambda image, turns, _: shift_hue(image, turns),
}


def _lookup(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Each value replaced by table[value], or by table[value, channel]; clipped."""
    table = np.clip(table, 0, 255).astype(np.uint8)
    return cv2.LUT(image, table.reshape(1, 256, -1))


def _histograms(image: np.ndarray) -> list[np.ndarray]:
    """How often each channel has each value: 3 times int64 [256]."""
    counts = (cv2.calcHist([image], [c], None, [256], [0, 256]) for c in range(3))
    return [count.ravel().astype(np.int64) for count in counts]


def _blend(a: np.ndarray, b: np.ndarray, factor: float) -> np.ndarray:
    """a + factor * (b - a) in float32, clipped and cut to whole numbers, as Pillow."""
    mixed = cv2.subtract(b, a, dtype=cv2.CV_32F)
    mixed *= np.float32(factor)
    mixed = cv2.add(mixed, a, dst=mixed, dtype=cv2.CV_32F)
    if not 0 <= factor <= 1:
        np.clip(mixed, 0, 255, out=mixed)
    return mixed.astype(np.uint8)


def _fixed(value: float) -> np.int32:
    return np.int32(math.floor(value * 65536.0 + 0.5))
