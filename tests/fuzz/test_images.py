"""Damaged image files, written by Pillow, are read or refused."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.fuzz import mutation
from vit_jax.data import decode
from vit_jax.data.crop import Box, cut

pytestmark = pytest.mark.slow

KINDS: dict[str, tuple[str, ...]] = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("L", "RGB"),
    "GIF": ("P",),
    "TIFF": ("L", "RGB", "RGBA", "I;16"),
}


def files(kind: str) -> list[bytes]:
    """One of each mode, of pixels that do not compress away; with EXIF rotation."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (23, 31, 3), np.uint8)
    found = []
    for mode in KINDS[kind]:
        image = Image.fromarray(pixels)
        if mode == "I;16":
            image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
        elif mode != "RGB":
            image = image.convert(mode)
        exif = Image.Exif()
        exif[0x0112] = 6
        file = io.BytesIO()
        more = {} if kind in ("BMP", "GIF", "TIFF") else {"exif": exif}
        image.save(file, kind, **more)
        found.append(file.getvalue())
    return found


def middle(height: int, width: int) -> Box:
    return Box(height // 4, width // 4, (height + 1) // 2, (width + 1) // 2)


@pytest.mark.parametrize("kind", KINDS)
def test_images(kind: str, tmp_path: Path) -> None:
    def use(data: bytes) -> None:
        image = decode.decode(data, where="x")
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
        part = decode.decode(data, where="x", crop=middle)
        np.testing.assert_array_equal(part, cut(image, middle))

    whole = files(kind)
    assert mutation.check(use, iter(whole), tmp_path / "input") == (len(whole), 0)
    used, refused = mutation.check(
        use, mutation.mutations(whole, 400), tmp_path / "input"
    )
    assert mutation.SECONDS or (used and refused)  # of a few, all may be alike
