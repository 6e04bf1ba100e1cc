"""What is bad, what is not, and what becomes of it: the table of docs/design.

Files are written by PIL, TFDS and TensorFlow; PIL says what good ones look like.
"""

import io
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from vit_jax import data
from vit_jax.data import sampler
from vit_jax.errors import BadExample, UserError

FORMATS = ("array_record", "tfrecord")
SIZE: tuple[int, int] = (12, 16)
RNG = np.random.default_rng(0)
SMOOTH = Image.fromarray(RNG.integers(0, 256, (3, 4, 3), np.uint8)).resize((16, 12))
ALPHA = Image.fromarray(RNG.integers(0, 256, SIZE, np.uint8))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rotated(kind: str) -> bytes:
    """Stored on its side, with EXIF's word that it is to be turned back."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(SMOOTH.rotate(90, expand=True), kind, exif=exif)


def with_alpha(mode: str) -> Image.Image:
    image = SMOOTH.convert(mode)
    image.putalpha(ALPHA)
    return image


PNG, JPEG = encoded(SMOOTH, "PNG"), encoded(SMOOTH, "JPEG", quality=95)
DEEP = Image.fromarray(RNG.integers(0, 2**16, SIZE, np.uint16))
OUT_OF_RANGE = 99
# name: (bytes of the file, label, what is said of it, "" if it is good)
EXAMPLES = {
    "png": (PNG, 0, ""),
    "truncated jpeg": (JPEG[:-40], 1, "cannot be decoded"),
    "cmyk": (encoded(SMOOTH.convert("CMYK"), "JPEG", quality=95), 2, ""),
    "16 bits": (encoded(DEEP, "PNG"), 0, ""),
    "grey and alpha": (encoded(with_alpha("L"), "PNG"), 1, ""),
    "palette": (encoded(SMOOTH.quantize(16), "PNG"), 2, ""),
    "clear palette": (encoded(SMOOTH.quantize(16), "PNG", transparency=3), 0, ""),
    "zero bytes": (b"", 1, "is empty (0 bytes)"),
    "turned jpeg": (rotated("JPEG"), 2, ""),
    "turned png": (rotated("PNG"), 0, ""),
    "turned webp": (rotated("WEBP"), 1, ""),
    "label": (PNG, OUT_OF_RANGE, "has label 99, out of range 0..2"),
    "no image": (b"<html>404</html>", 0, "cannot be decoded"),
    "truncated png": (PNG[: len(PNG) // 2], 1, "cannot be decoded"),
    "trailing garbage": (JPEG + b"\0garbage", 2, ""),
    "negative label": (PNG, -1, "has label -1, out of range 0..2"),
    "jpeg": (JPEG, 1, ""),
}
NAMES = list(EXAMPLES)
BAD = [i for i, (_, _, said) in enumerate(EXAMPLES.values()) if said]
N = len(EXAMPLES)


@pytest.fixture(scope="session")
def bad_dir(tmp_path_factory) -> Path:
    """{array_record,tfrecord}/bad/1.0.0, 3 files, in the order of EXAMPLES."""
    import tensorflow_datasets as tfds

    root = tmp_path_factory.mktemp("bad")
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(), "label": np.int64}
    )
    examples = [
        (f"{i:02}", {"image": image, "label": label})
        for i, (image, label, _) in enumerate(EXAMPLES.values())
    ]
    for file_format in FORMATS:
        tfds.dataset_builders.store_as_tfds_dataset(
            name="bad",
            version="1.0.0",
            features=features,
            split_datasets={"train": examples},
            data_dir=root / file_format,
            file_format=file_format,
            download_config=tfds.download.DownloadConfig(num_shards=3),
            disable_shuffling=True,
        )
    return root


def opened(data_dir: Path, **keys: Any) -> data.Dataset:
    keys = {"on_bad_example": "skip", "train": {"crop": "resize"}, "eval": {}} | keys
    return data.make(name="bad", data_dir=str(data_dir), image_size=SIZE, **keys)


def of_evaluation(dataset, *, batch_size=N, rows=None):
    batches = dataset.eval_batches(batch_size=batch_size, rows=rows, num_classes=3)
    all_of_them = list(batches)
    joined = {k: np.concatenate([b[k] for b in all_of_them]) for k in all_of_them[0]}
    return joined, batches.skipped


def by_pil(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    if image.mode.startswith("I;16"):
        grey = np.round(np.asarray(image) / 257).astype(np.uint8)
        return grey[..., None].repeat(3, 2)
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("file_format", FORMATS)
def test_bad_ones_are_left_out_and_odd_ones_are_not(bad_dir, file_format):
    got, skipped = of_evaluation(opened(bad_dir / file_format))
    assert np.flatnonzero(~got["mask"]).tolist() == BAD
    for i, (image, label, said) in enumerate(EXAMPLES.values()):
        if said:
            assert not got["image"][i].any() and got["label"][i] == 0
            continue
        assert got["label"][i] == label
        difference = np.abs(got["image"][i].astype(int) - by_pil(image))
        assert difference.max() <= 3, NAMES[i]  # of JPEG decoders
    assert [s["example"] for s in skipped] == BAD
    for told in skipped:
        assert told["step"] == 1
        assert EXAMPLES[NAMES[told["example"]]][2] in told["why"]
        assert f"bad-train.{file_format}-0000" in told["why"]
        assert ", record " in told["why"]


@pytest.mark.parametrize("file_format", FORMATS)
def test_by_default_the_first_bad_one_is_an_error(bad_dir, file_format):
    dataset = opened(bad_dir / file_format, on_bad_example="error")
    with pytest.raises(
        BadExample, match=r"record 1 cannot be decoded: .* cut short"
    ) as e:
        of_evaluation(dataset)
    assert "--config.data.on_bad_example=skip" in str(e.value)
    assert "remove" not in str(e.value)  # without it the run cannot go on
    for name, how in (("label", "has label 99, out of"), ("zero bytes", "is empty")):
        i = NAMES.index(name)
        dataset = opened(
            bad_dir / file_format, on_bad_example="error", split=f"train[{i}:{i + 1}]"
        )
        with pytest.raises(BadExample, match=how):
            of_evaluation(dataset)


@pytest.mark.parametrize("file_format", FORMATS)
def test_padding_is_not_bad(bad_dir, file_format):
    dataset = opened(bad_dir / file_format)
    got, skipped = of_evaluation(dataset, batch_size=10)
    assert len(got["mask"]) == 20
    assert np.flatnonzero(~got["mask"]).tolist() == [*BAD, *range(N, 20)]
    assert [s["example"] for s in skipped] == BAD
    assert [s["step"] for s in skipped] == [1 + i // 10 for i in BAD]
    assert dataset.num_examples - got["mask"].sum() == len(BAD)


@pytest.mark.parametrize("workers", [0, 1, pytest.param(2, marks=pytest.mark.slow)])
def test_any_hosts_and_workers_leave_the_same_out(bad_dir, workers):
    """Two epochs and a half, also from the middle on."""
    whole = train(opened(bad_dir / "tfrecord"))
    records = sampler.record_numbers(np.arange(8 * 6), N, seed=3)
    np.testing.assert_array_equal(whole[0]["mask"], ~np.isin(records, BAD))
    assert [s["example"] for s in whole[1]] == np.flatnonzero(
        np.isin(records, BAD)
    ).tolist()
    threads = {"num_workers": workers, "num_threads": 3}
    many = opened(bad_dir / "array_record", **threads)
    splits = (
        [[np.arange(8)]] if workers else [np.split(np.arange(8), n) for n in (2, 4)]
    )
    for hosts in splits:
        parts = [train(many, rows=rows) for rows in hosts]
        for key in whole[0]:
            by_step = [p[0][key].reshape(6, -1, *p[0][key].shape[1:]) for p in parts]
            joined = np.concatenate(by_step, axis=1).reshape(whole[0][key].shape)
            np.testing.assert_array_equal(joined, whole[0][key])
        told = sorted((s for _, t in parts for s in t), key=lambda s: s["example"])
        assert without_format(told) == without_format(whole[1])
    late, skipped = train(many, start_step=4)
    for key in late:
        np.testing.assert_array_equal(late[key], whole[0][key][4 * 8 :])
    assert without_format(skipped) == without_format(
        [s for s in whole[1] if s["step"] > 4]
    )


def train(dataset, *, start_step=0, rows=None):
    batches = dataset.train_batches(
        batch_size=8,
        seed=3,
        start_step=start_step,
        total_steps=6,
        rows=rows,
        num_classes=3,
    )
    all_of_them = list(batches)
    joined = {k: np.concatenate([b[k] for b in all_of_them]) for k in all_of_them[0]}
    return joined, batches.skipped


def without_format(skipped):
    return [{**s, "why": s["why"].rpartition(", record")[2]} for s in skipped]


@pytest.mark.parametrize("file_format", FORMATS)
def test_damaged_files_are_errors_whatever_the_policy(bad_dir, file_format, tmp_path):
    """They may be whole on another host."""
    shutil.copytree(bad_dir / file_format, tmp_path / "copy")
    (file,) = (tmp_path / "copy").rglob(f"*.{file_format}-00001-of-00003")
    whole = file.read_bytes()
    for share in (0.0, 0.3, 0.99):
        file.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(UserError, match=r"00001-of-00003.*copy the dataset again"):
            opened(tmp_path / "copy")
    os.remove(file)
    with pytest.raises(UserError, match=r"00001-of-00003 is missing, one of 3 files"):
        opened(tmp_path / "copy")
    if file_format == "tfrecord":  # cut, or gone, after it was opened
        file.write_bytes(whole)
        dataset, gone = opened(tmp_path / "copy"), opened(tmp_path / "copy")
        file.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match=r"00001.* cannot be read: it ends in") as e:
            of_evaluation(dataset)
        assert not isinstance(e.value, BadExample)
        os.remove(file)
        with pytest.raises(UserError, match=r"00001.* cannot be read: .*No such file"):
            of_evaluation(gone)


def test_a_file_that_is_gone_is_an_error_and_an_empty_one_is_bad(tmp_path):
    for name in "abc":
        path = tmp_path / "train" / name / "x.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"" if name == "b" else PNG)
    keys: dict[str, Any] = {"image_size": SIZE, "train": {}, "eval": {}}
    dataset = data.make(
        name="folder", data_dir=str(tmp_path), on_bad_example="skip", **keys
    )
    got, (told,) = of_evaluation(dataset, batch_size=3)
    assert got["mask"].tolist() == [True, False, True]
    assert "b/x.png is empty" in told["why"]
    os.remove(tmp_path / "train/c/x.png")
    with pytest.raises(UserError, match=r"c/x\.png cannot be read: No such file"):
        of_evaluation(dataset, batch_size=3)


def test_flipped_bits(bad_dir, tmp_path):
    """array_record has checksums; in a tfrecord PNG's own are what there is."""
    for file_format in FORMATS:
        shutil.copytree(bad_dir / file_format, tmp_path / file_format)
        (file,) = (tmp_path / file_format).rglob("*-00000-of-00003")
        content = bytearray(file.read_bytes())
        at = content.index(PNG) + PNG.index(b"IDAT") + 20  # of record 0
        content[at] ^= 4
        file.write_bytes(content)
        got, skipped = of_evaluation(opened(tmp_path / file_format))
        assert np.flatnonzero(~got["mask"]).tolist() == [0, *BAD]
        assert "00000-of-00003, record 0 cannot be" in skipped[0]["why"]


def test_a_flipped_length_of_a_tfrecord_is_an_error(bad_dir, tmp_path):
    shutil.copytree(bad_dir / "tfrecord", tmp_path / "copy")
    (file,) = (tmp_path / "copy").rglob("*-00000-of-00003")
    content = bytearray(file.read_bytes())
    (length,) = struct.unpack_from("<Q", content)
    struct.pack_into("<Q", content, 0, length + 1)
    file.write_bytes(content)
    with pytest.raises(UserError, match="record 0, at byte 0, is cut short or damaged"):
        opened(tmp_path / "copy")


def test_labels_of_arrays(tmp_path):
    """Whole batches at a time; all labels are known before the first."""
    labels = np.array([0, 1, 2, 3, -1, 0])
    path = tmp_path / "x.npz"
    images = RNG.integers(1, 256, (6, *SIZE, 3), np.uint8)
    np.savez(path, x_train=images, y_train=labels)

    def make(**keys):
        return data.make(
            **({"name": "npz", "data_dir": str(path), "image_size": SIZE} | keys),
            train={"crop": "none"},
            eval={},
        )

    with pytest.raises(UserError, match=r"record 3: label 3 is out of range 0\.\.2"):
        make().check(num_classes=3, train=True, batch_size=4)
    dataset = make(on_bad_example="skip")
    dataset.check(num_classes=3, train=True, batch_size=4)
    got, skipped = of_evaluation(dataset, batch_size=8)
    assert np.flatnonzero(got["mask"]).tolist() == [0, 1, 2, 5]
    assert not got["image"][[3, 4]].any() and not got["label"][[3, 4]].any()
    assert [s["example"] for s in skipped] == [3, 4]
    few = make(on_bad_example="skip", max_bad_examples=1)
    with pytest.raises(UserError, match=r"record 3: label 3 is out of range 0\.\.2"):
        few.check(num_classes=3, train=True, batch_size=4)


@pytest.mark.parametrize("train", [True, False])
def test_a_check_of_the_data_needs_one_good_example(bad_dir, train):
    dataset = opened(bad_dir / "tfrecord")
    dataset.check(num_classes=3, train=train, batch_size=N)
    i = NAMES.index("no image")
    dataset = opened(bad_dir / "tfrecord", split=f"train[{i}:{i + 2}]")
    with pytest.raises(UserError, match="none of the first 2 examples can be used: "):
        dataset.check(num_classes=3, train=train, batch_size=N)
    dataset = opened(bad_dir / "tfrecord", on_bad_example="error")
    with pytest.raises(BadExample, match="record 1 cannot be decoded"):
        dataset.check(num_classes=3, train=train, batch_size=N)


def test_how_many_are_allowed(bad_dir):
    few = opened(bad_dir / "tfrecord", max_bad_examples=7)
    assert [few.bad_examples_allowed(seen) for seen in (1, 10**9)] == [7, 7]
    default = opened(bad_dir / "tfrecord")
    allowed = [default.bad_examples_allowed(s) for s in (1, 10_000, 10_100, 10**9)]
    assert allowed == [100, 100, 101, 10**7]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"on_bad_example": "skp"}, "expected one of error, skip"),
        ({"max_bad_examples": -1}, "max_bad_examples=-1; expected 0 to 2,147,483,648"),
        (
            {"max_bad_examples": 5, "on_bad_example": "error"},
            'has no effect with config.data.on_bad_example="error"',
        ),
    ],
    ids=str,
)
def test_bad_keys(bad_dir, keys, message):
    with pytest.raises(UserError, match=message):
        opened(bad_dir / "tfrecord", **keys)
