"""Parts of JPEGs: the same bits, and the same files refused, as by whole decoding."""

import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from vit_jax import data
from vit_jax.data import decode, jpeg
from vit_jax.data.crop import Box, Crop, cut
from vit_jax.data.sources import open_source
from vit_jax.errors import BadExample

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the extra [jpeg] is for Linux"
)
SUBSAMPLING = {
    "4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    "4:2:2": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    "4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    "4:4:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440,
    "4:1:1": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411,
}


def photo(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Smooth colours and some noise, uint8 [h, w, 3]."""
    small = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3)).astype(np.uint8)
    smooth = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    noisy = smooth + rng.normal(0, 12, smooth.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def by_opencv(image: np.ndarray, *options: int) -> bytes:
    return cv2.imencode(".jpg", image, options)[1].tobytes()


def by_pil(image: np.ndarray, mode: str = "RGB", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def random_box(rng: np.random.Generator, height: int, width: int) -> Box:
    """Also at the edges, and on the edges of blocks."""
    top, bottom = np.sort(rng.integers(0, height, 2)).tolist()
    left, right = np.sort(rng.integers(0, width, 2)).tolist()
    if rng.random() < 0.3:
        top, left = top // 16 * 16, left // 16 * 16
    return Box(top, left, bottom - top + 1, right - left + 1)


def wanting(box: Box) -> Crop:
    """The same part of any image."""
    return lambda height, width: box


def whole(data: bytes) -> np.ndarray | None:
    """By OpenCV, all of it."""
    try:
        return decode.decode(data, where="x")
    except BadExample:
        return None


def part(data: bytes, box: Box) -> np.ndarray | None:
    try:
        return decode.decode(data, where="x", crop=wanting(box))
    except BadExample:
        return None


@pytest.mark.parametrize("subsampling", SUBSAMPLING)
@pytest.mark.parametrize("restart", [0, 1, 7])
def test_a_part_has_the_pixels_of_the_whole(subsampling: str, restart: int):
    rng = np.random.default_rng(restart)
    for height, width in ((375, 500), (130, 97), (45, 64), (17, 200)):
        data = by_opencv(
            photo(rng, height, width),
            *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, SUBSAMPLING[subsampling]),
            *(cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(60, 100))),
            *(cv2.IMWRITE_JPEG_RST_INTERVAL, restart),
        )
        want = whole(data)
        assert want is not None
        taken = 0
        for _ in range(25):
            box = random_box(rng, height, width)
            got = jpeg.decode_part(data, wanting(box))
            if got is None:
                assert box.width < 32
                continue
            taken += 1
            np.testing.assert_array_equal(got, cut(want, wanting(box)))
        assert taken


def test_the_crop_is_told_the_size_of_the_image():
    data = by_opencv(photo(np.random.default_rng(0), 50, 70))
    seen = []

    def crop(height: int, width: int) -> Box:
        seen.append((height, width))
        return Box(0, 0, height, width)

    got = jpeg.decode_part(data, crop)
    assert seen == [(50, 70)]
    assert got is not None and got.shape == (50, 70, 3)


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


OTHERS = {
    "progressive": {"progressive": True},
    "grey": {"mode": "L"},
    "CMYK": {"mode": "CMYK"},
    "turned": {"exif": exif(6)},
    "RGB in Adobe's way": {"keep_rgb": True},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_kinds_are_left_to_the_whole_decoder(kind: str):
    image = photo(np.random.default_rng(0), 60, 80)
    data = by_pil(image, **OTHERS[kind])
    box = Box(3, 5, 40, 50)
    assert jpeg.size_if_plain(np.frombuffer(data, np.uint8)) is None
    assert jpeg.decode_part(data, wanting(box)) is None
    want = whole(data)
    assert want is not None
    np.testing.assert_array_equal(part(data, box), cut(want, wanting(box)))


@pytest.mark.parametrize("subsampling", SUBSAMPLING)
def test_narrow_parts(subsampling: str):
    """One column at the left edge has no smooth colours from libjpeg-turbo."""
    data = by_opencv(
        photo(np.random.default_rng(0), 80, 100),
        *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, SUBSAMPLING[subsampling]),
    )
    want = whole(data)
    assert want is not None
    for width in (1, 2, 3, 15, 16, 17, 31, 32, 33):
        for left in (0, 1, 15, 16, 17, 100 - width):
            crop = wanting(Box(5, left, 60, width))
            assert (jpeg.decode_part(data, crop) is None) == (width < 32)
            np.testing.assert_array_equal(part(data, crop(80, 100)), cut(want, crop))


def test_adobes_colours_and_several_scans_are_not_plain():
    data = by_opencv(photo(np.random.default_rng(0), 60, 80))
    adobe = b"\xff\xee\x00\x0eAdobe" + bytes([0, 100, 0, 0, 0, 0, 0])
    of_three = bytes.fromhex("ffda000c03010002110311003f00")
    of_one = bytes.fromhex("ffda0008010100003f00")
    assert of_three in data
    for changed in (data[:2] + adobe + data[2:], data.replace(of_three, of_one)):
        assert jpeg.size_if_plain(np.frombuffer(changed, np.uint8)) is None
    assert jpeg.size_if_plain(np.frombuffer(data, np.uint8)) == (60, 80)


def test_comments_profiles_and_what_follows_the_end_change_nothing():
    image = photo(np.random.default_rng(0), 60, 80)
    data = by_pil(image, comment=b"\xff\xd9 not the end", icc_profile=b"\xff\xda" * 900)
    box = Box(3, 5, 40, 50)
    want = jpeg.decode_part(by_pil(image), wanting(box))
    assert want is not None
    for more in (b"", b"\0\0", b"\xff\xd9", b"\xff\xd8\xff\xc0"):
        got = jpeg.decode_part(data + more, wanting(box))
        np.testing.assert_array_equal(got, want)


def test_a_file_that_is_cut_is_refused_whatever_part_is_wanted():
    """Also where the part needs nothing of what is gone."""
    data = by_opencv(photo(np.random.default_rng(0), 120, 160))
    top = Box(0, 0, 16, 160)
    assert part(data, top) is not None
    for end in (4, 100, 620, 700, len(data) // 2, *range(len(data) - 5, len(data))):
        assert part(data[:end], top) is None
        filled = data[:end] + bytes(len(data) - end)  # a download that stopped
        assert (part(filled, top) is None) == (whole(filled) is None)


def damaged(rng: np.random.Generator, data: bytes) -> bytes:
    """Some bytes overwritten, mostly after the header, at times by a marker."""
    found = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(2 if rng.random() < 0.3 else 620, len(found) - 2))
        kind = rng.integers(3)
        if kind == 0:
            found[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            found[at : at + 2] = bytes([0xFF, rng.integers(256)])
        else:
            del found[at : at + int(rng.integers(1, 300))]
    return bytes(found)


def check_damaged(seed: int, count: int) -> dict[str, int]:
    """Of damaged files, parts have the whole's pixels and verdict."""
    rng = np.random.default_rng(seed)
    counts = {"bad": 0, "in part": 0, "whole": 0}
    for i in range(count):
        restart = 5 if i % 3 == 0 else 0
        image = photo(rng, int(rng.integers(40, 90)), int(rng.integers(64, 120)))
        data = damaged(rng, by_opencv(image, cv2.IMWRITE_JPEG_RST_INTERVAL, restart))
        want = whole(data)
        height, width = image.shape[:2] if want is None else want.shape[:2]
        box = random_box(rng, height, width)
        crop = wanting(box)
        got = part(data, box)
        if want is None:
            counts["bad"] += 1
            assert got is None
            continue
        counts["whole" if jpeg.decode_part(data, crop) is None else "in part"] += 1
        np.testing.assert_array_equal(got, cut(want, crop))
    return counts


def test_damaged_files_are_refused_or_read_as_by_the_whole_decoder():
    counts = check_damaged(seed=0, count=300)
    assert min(counts.values()) > 10, counts


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_many_damaged_files(seed: int):
    check_damaged(seed, count=5_000)


def test_without_the_library_the_whole_is_decoded(monkeypatch: pytest.MonkeyPatch):
    data = by_opencv(photo(np.random.default_rng(0), 60, 80))
    box = Box(3, 5, 40, 50)
    want = part(data, box)
    monkeypatch.setattr(jpeg, "library", lambda: None)
    assert jpeg.decode_part(data, wanting(box)) is None
    np.testing.assert_array_equal(part(data, box), want)


def test_it_is_loaded_by_many_threads_at_once_in_silence():
    """It would tell of each missing GPU library, and its variables would stay."""
    program = """
import os, threading
from concurrent.futures import ThreadPoolExecutor
from vit_jax.data import jpeg
before = dict(os.environ)
ready = threading.Barrier(8)
def load(_):
    ready.wait()
    return jpeg.library()
with ThreadPoolExecutor(8) as pool:
    found = list(pool.map(load, range(8)))
assert None not in found
assert dict(os.environ) == before
jpeg._decoder(found[0])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('__version__ = "0.8.0"', "None"),
        (
            "import no_such_cuda",
            "cannot be loaded (No module named 'no_such_cuda'): re",
        ),
    ],
    ids=["older", "broken"],
)
def test_a_library_that_will_not_do(text: str, said: str, tmp_path: Path):
    module = tmp_path / "nvidia" / "nvimgcodec" / "__init__.py"
    module.parent.mkdir(parents=True)
    (module.parent.parent / "__init__.py").touch()
    module.write_text(text)
    program = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from vit_jax.data import jpeg
from vit_jax.errors import UserError
try:
    print(jpeg.library())
except UserError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert said in done.stdout


def test_many_threads_decode_at_once():
    rng = np.random.default_rng(0)
    files = [by_opencv(photo(rng, 200, 300)) for _ in range(8)]
    boxes = [random_box(rng, 200, 300) for _ in range(400)]
    want = [whole(data) for data in files]

    def same(i: int) -> bool:
        image = want[i % 8]
        assert image is not None
        got = part(files[i % 8], boxes[i])
        return got is not None and np.array_equal(got, cut(image, wanting(boxes[i])))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(same, range(400)))


CROPPED: dict[str, dict[str, str]] = {
    "tfds, JPEG": {"name": "animals", "folder": "tfrecord"},
    "tfds, PNG": {"name": "animals", "folder": "array_record", "image_key": "small"},
    "in memory": {"name": "fashion_mnist_mini"},
}


def crop_inside(height: int, width: int) -> Box:
    return Box(1, 2, height - 3, width - 2)


@pytest.mark.parametrize("kind", CROPPED)
def test_a_source_reads_the_part_that_is_wanted(kind: str, tfds_dir: Path):
    keys: dict[str, Any] = dict(CROPPED[kind])
    folder = keys.pop("folder", None)
    data_dir = str(tfds_dir / folder) if folder else None
    source = open_source(data_dir=data_dir, split="train", **keys)
    image, label = source.read(5)
    got, same_label = source.read(5, crop_inside)
    assert same_label == label
    np.testing.assert_array_equal(got, cut(image, crop_inside))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder of JPEGs: plain ones, and of kinds that are decoded whole."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(24):
        path = root / "train" / f"class{i % 2}" / f"{i:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = photo(rng, 90 + i, 120 - i)
        other = list(OTHERS.values())[i % len(OTHERS)]
        path.write_bytes(by_pil(image, **other) if i % 4 == 0 else by_opencv(image))
    return root


@pytest.mark.parametrize("parts", [False, True], ids=["folder", "mixture"])
def test_training_sees_the_same_pixels(
    parts: bool, photos: Path, monkeypatch: pytest.MonkeyPatch
):
    """By the parts, and by the whole images where the library is not installed."""
    part = {"name": "folder", "data_dir": str(photos)}
    keys: dict[str, Any] = part
    if parts:
        keys = {"name": "mixture", "mixture": {"a": part, "b": part}}
    dataset = data.make(**keys, image_size=48, train={}, eval={})

    def images() -> np.ndarray:
        batches = dataset.train_batches(
            batch_size=24, seed=3, start_step=0, total_steps=2
        )
        return np.concatenate([batch["image"] for batch in batches])

    taken = []
    real = jpeg.decode_part

    def counted(file: bytes, crop: Crop) -> np.ndarray | None:
        taken.append(real(file, crop) is not None)
        return real(file, crop)

    monkeypatch.setattr(jpeg, "decode_part", counted)
    want = images()
    assert len(taken) == 48 and 24 <= sum(taken) <= 40
    monkeypatch.setattr(jpeg, "decode_part", real)
    monkeypatch.setattr(jpeg, "library", lambda: None)
    np.testing.assert_array_equal(images(), want)
