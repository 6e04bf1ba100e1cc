import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from vit_jax.data.decode import decode
from vit_jax.errors import BadExample, UserError

RNG = np.random.default_rng(0)
NOISE = Image.fromarray(RNG.integers(0, 256, (12, 16, 3), np.uint8))
PHOTO = NOISE.resize((160, 120), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decoded(data: bytes) -> np.ndarray:
    image = decode(data, where="x")
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    return image


def by_pil(data: bytes) -> np.ndarray:
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def with_alpha() -> Image.Image:
    image = PHOTO.copy()
    image.putalpha(Image.fromarray(RNG.integers(0, 256, (120, 160), np.uint8)))
    return image


@pytest.mark.parametrize(
    ("data", "tolerance"),
    [
        (encoded(PHOTO, "PNG"), 0),
        (encoded(PHOTO, "BMP"), 0),
        (encoded(PHOTO, "WEBP", lossless=True), 0),
        (encoded(PHOTO.convert("L"), "PNG"), 0),
        (encoded(PHOTO.convert("1"), "PNG"), 0),
        (encoded(PHOTO.quantize(16), "PNG"), 0),
        (encoded(PHOTO.quantize(16), "PNG", transparency=3), 0),
        (encoded(with_alpha(), "PNG"), 1),  # rounding
        (encoded(with_alpha().convert("LA"), "PNG"), 1),
        (encoded(PHOTO, "JPEG", quality=95), 1),
        (encoded(PHOTO, "JPEG", quality=95, progressive=True), 1),
        (encoded(PHOTO.convert("L"), "JPEG", quality=95), 1),
        (encoded(PHOTO.convert("CMYK"), "JPEG", quality=95), 2),
    ],
    ids=[
        *("png", "bmp", "webp", "grey", "1 bit", "palette", "clear palette"),
        *("rgba", "grey+alpha", "jpeg", "progressive", "grey jpeg", "cmyk jpeg"),
    ],
)
def test_agrees_with_pil(data, tolerance):
    got, want = decoded(data), by_pil(data)
    assert got.shape == want.shape
    assert np.abs(got.astype(int) - want).max() <= tolerance


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "alpha PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(kind, orientation):
    image = with_alpha() if "alpha" in kind else PHOTO
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, kind.split()[-1], exif=exif)
    got, want = decoded(data), by_pil(data)
    assert got.shape == want.shape
    assert np.abs(got.astype(int) - want).mean() < 1


def test_16_bits_are_scaled():
    values = RNG.integers(0, 2**16, (9, 11), np.uint16)
    got = decoded(encoded(Image.fromarray(values), "PNG"))
    want = np.round(values / 257)
    np.testing.assert_array_equal(got, want[..., None].repeat(3, 2))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "progressive JPEG"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95, 0.999])
def test_truncated(kind, share):
    data = encoded(PHOTO, kind.split()[-1], progressive="progressive" in kind)
    with pytest.raises(UserError, match=r"a/b\.jpg cannot be decoded: \d+ bytes, cut"):
        decode(data[: int(len(data) * share)], where="a/b.jpg")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["plain", "progressive", "restarts", "CMYK", "grey"])
def test_what_is_cut_is_bad_wherever_it_is_cut(kind):
    """At every place where PIL and TensorFlow refuse it, and only there."""
    import tensorflow as tf

    image = {"CMYK": PHOTO.convert("CMYK"), "grey": PHOTO.convert("L")}.get(kind, PHOTO)
    options = {
        "progressive": {"progressive": True},
        "restarts": {"restart_marker_blocks": 5},
    }
    data = encoded(image, "JPEG", quality=90, **options.get(kind, {}))

    def refuse(data: bytes) -> list[bool]:
        refused = []
        for read in (
            lambda: decode(data, where="x"),
            lambda: Image.open(io.BytesIO(data)).load(),
            lambda: tf.io.decode_jpeg(data, channels=3),
        ):
            try:
                read()
                refused.append(False)
            except (UserError, OSError, tf.errors.InvalidArgumentError):
                refused.append(True)
        return refused

    for end in (4, 100, 620, len(data) // 2, *range(len(data) - 12, len(data))):
        assert refuse(data[:end]) == [True] * 3, end
        # A download that stopped, in a file that had its full size before.
        if end < len(data) - 12:
            assert refuse(data[:end] + bytes(len(data) - end)) == [True] * 3, end
    # Some files of ImageNet have more behind their end.
    for more in (b"", b"\0", b"\xff\xd9", b"garbage" * 100):
        assert refuse(data + more) == [False] * 3


def test_empty_and_not_an_image():
    with pytest.raises(UserError, match=r"a\.jpg is empty \(0 bytes\); replace"):
        decode(b"", where="a.jpg")
    with pytest.raises(UserError, match=r"b\.jpg cannot be decoded: 5 bytes"):
        decode(b"hello", where="b.jpg")


def test_floating_point_images_are_refused():
    data = encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
    with pytest.raises(UserError, match="float32 pixels; expected 8 or 16 bits"):
        decode(data, where="x.tif")


def png_header(width: int, height: int) -> bytes:
    """The start of a PNG of one bit a pixel, to its first pixels."""
    size = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", size), (b"IDAT", zlib.compress(bytes(9))))
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks:
        check = struct.pack(">I", zlib.crc32(kind + body))
        data += struct.pack(">I", len(body)) + kind + body + check
    return data


@pytest.mark.parametrize(
    "data",
    [
        png_header(40_000, 40_000),
        b"P5 40000 40000 255\n" + bytes(9),
        b"BM"
        + struct.pack("<IHHIIiiHH", 99, 0, 0, 54, 40, 40000, 40000, 1, 24)
        + bytes(99),
    ],
    ids=["png", "pgm", "bmp"],
)
def test_too_large_an_image_is_called_so(data):
    with pytest.raises(BadExample, match=r"x is too large: 40,000 x 40,000 pixels"):
        decode(data, where="x")
    # What no header has told, OpenCV has a limit for.
    with pytest.raises(BadExample, match=r"x is too large: .* 2\*\*30 pixels"):
        decode(data, where="x", max_pixels=2**40)
