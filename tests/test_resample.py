"""Resizing is Pillow's, bit for bit."""

import numpy as np
import PIL
import pytest
from PIL import Image

from tests.formats import prepared
from vit_jax.resample import INTERPOLATIONS, resample

# Since when it begins with the side that shrinks more.
NEW = int(PIL.__version__.split(".")[0]) >= 13


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(
    "size", [(16, 16), (24, 37), (61, 40), (7, 3), (1, 1), (100, 150), (30, 92)]
)
def test_pillow_s_pixels(size: tuple[int, int], interpolation: str) -> None:
    method = getattr(Image.Resampling, interpolation.upper())
    noise = np.random.default_rng(0).integers(0, 256, (90, 31, 3), np.uint8)
    for image in (*prepared.images().values(), noise):
        expected = np.asarray(Image.fromarray(image).resize((size[1], size[0]), method))
        found = resample(image, size, interpolation, rows_first=NEW)
        np.testing.assert_array_equal(found, expected)


def test_large_images_are_resized_in_parts() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1000, 40, 3), np.uint8)
    expected = Image.fromarray(image).resize((20, 1000), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(resample(image, (1000, 20), "bicubic"), expected)
