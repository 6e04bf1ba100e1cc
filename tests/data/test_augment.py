"""Each operation against Pillow's, pixel for pixel."""

import colorsys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from tests.data import pictures
from vit_jax.data import augment

PICTURES = pictures.many()
FILL = (11, 222, 33)


def transformed(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, fillcolor=FILL
    )  # nearest


def enhanced(name: str) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, factor: getattr(ImageEnhance, name)(image).enhance(factor)


FACTORS = (0.0, 0.01, 0.3, 0.7431, 0.9999, 1.0, 1.27, 1.5, 1.9, 2.8)
# Name, what Pillow does, magnitudes.
EXACT: list[
    tuple[str, Callable[[Image.Image, Any], Image.Image], tuple[float, ...]]
] = [
    ("brightness", enhanced("Brightness"), FACTORS),
    ("contrast", enhanced("Contrast"), FACTORS),
    ("color", enhanced("Color"), FACTORS),
    ("sharpness", enhanced("Sharpness"), FACTORS),
    ("posterize", ImageOps.posterize, tuple(range(1, 9))),
    ("solarize", ImageOps.solarize, (0, 1, 128, 170, 178.5, 255, 256)),
    ("equalize", lambda image, _: ImageOps.equalize(image), (0,)),
    ("autocontrast", lambda image, _: ImageOps.autocontrast(image), (0,)),
    ("invert", lambda image, _: ImageOps.invert(image), (0,)),
    ("grayscale", lambda im, _: ImageOps.grayscale(im).convert("RGB"), (0,)),
    ("identity", lambda image, _: image, (0,)),
    (
        "rotate",
        lambda image, degrees: image.rotate(degrees, fillcolor=FILL),
        (0, 9, -9, 30, 45.5, 90, -90, 135, 180, -135),
    ),
    (
        "shear_x",
        lambda image, m: transformed(image, (1, m, 0, 0, 1, 0)),
        (0, 0.09, -0.3, 0.99, -0.99),
    ),
    (
        "shear_y",
        lambda image, m: transformed(image, (1, 0, 0, m, 1, 0)),
        (0, 0.09, -0.3, 0.99, -0.99),
    ),
    (
        "translate_x",
        lambda image, m: transformed(image, (1, 0, -int(m), 0, 1, 0)),
        (0, 1, -1, 12.9, -12.9, 32, 100),
    ),
    (
        "translate_y",
        lambda image, m: transformed(image, (1, 0, 0, 0, 1, -int(m))),
        (0, 1, -1, 12.9, -12.9, 32, 100),
    ),
]


@pytest.mark.parametrize(
    ("name", "pillow", "magnitudes"), EXACT, ids=[case[0] for case in EXACT]
)
def test_operation_is_pillows(name, pillow, magnitudes):
    for kind, image in PICTURES.items():
        before = image.copy()
        for magnitude in magnitudes:
            got = augment.OPERATIONS[name](image, magnitude, FILL)
            want = np.asarray(pillow(Image.fromarray(image), magnitude))
            np.testing.assert_array_equal(got, want, f"{kind} {magnitude}")
            assert got.dtype == np.uint8
        np.testing.assert_array_equal(image, before)  # nothing is done in place


def test_every_operation_is_compared():
    compared = {name for name, _, _ in EXACT} | {"solarize_add", "gaussian_blur", "hue"}
    assert compared == set(augment.OPERATIONS)


def test_luma_of_two_million_colours():
    colours = np.random.default_rng(0).integers(0, 256, (1000, 2000, 3), np.uint8)
    want = np.asarray(Image.fromarray(colours).convert("L"))
    np.testing.assert_array_equal(augment.luma(colours), want)


def test_posterize_to_no_bits_is_black():
    assert not augment.posterize(PICTURES["photo"], 0).any()


def test_solarize_add():
    """The equation of the authors' code."""
    image = PICTURES["noise"]
    for amount in (0, 1, 55, 110, 200):
        want = np.where(image < 128, np.minimum(image.astype(int) + amount, 255), image)
        np.testing.assert_array_equal(augment.solarize_add(image, amount), want)


@pytest.mark.parametrize("sigma", [0.1, 0.4, 0.77, 1.3, 1.9, 2.0])
def test_blur_is_near_pillows(sigma):
    for image in PICTURES.values():
        got = augment.gaussian_blur(image, sigma).astype(int)
        pillow = Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma))
        error = np.abs(got - np.asarray(pillow))
        assert error.max() <= 3
        assert error.mean() <= 0.2


@pytest.mark.parametrize("turns", [-0.5, -0.1, 0.0, 0.03, 0.25, 0.4])
def test_hue_by_colorsys(turns):
    image = PICTURES["noise"]
    got = augment.shift_hue(image, turns)
    for y, x in np.ndindex(image.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*(image[y, x] / 255))
        want = colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)
        assert np.abs(got[y, x] - np.array(want) * 255).max() <= 1


def test_hue_is_near_pillows():
    """As torchvision for PIL images: 8 bits of hue are shifted."""
    image = PICTURES["photo"]
    hsv = np.asarray(Image.fromarray(image).convert("HSV")).copy()
    hsv[..., 0] += np.uint8(25)
    want = np.asarray(Image.fromarray(hsv, "HSV").convert("RGB")).astype(int)
    assert np.abs(augment.shift_hue(image, 25 / 255) - want).max() <= 16


def test_erase():
    image = PICTURES["photo"]
    box = augment.Box(3, 5, 7, 11)
    inside = np.zeros(image.shape[:2], bool)
    inside[3:10, 5:16] = True
    got = augment.erase(image, box, FILL)
    np.testing.assert_array_equal(got, np.where(inside[..., None], FILL, image))
    noise = PICTURES["noise"][:7, :11]
    assert (augment.erase(image, box, noise)[3:10, 5:16] == noise).all()
