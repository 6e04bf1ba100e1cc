"""The sources whose images lie in memory: the embedded ones, IDX files, npz files."""

import gzip
import hashlib
import struct
from typing import Any

import numpy as np
import pytest

from vit_jax import data
from vit_jax.data import open_source
from vit_jax.data.sources import idx, npz
from vit_jax.errors import UserError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 5, 6), np.uint8)
LABELS = RNG.integers(0, 4, 12).astype(np.uint8)


def opened(name, data_dir=None, split="train", **keys):
    known: dict[str, Any] = {"image_key": "image", "label_key": "label"}
    data_dir = None if data_dir is None else str(data_dir)
    return open_source(name=name, data_dir=data_dir, split=split, **(known | keys))


def write_idx(path, array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    data = header + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def all_of(source):
    images, labels = zip(*(source.read(i) for i in range(len(source))), strict=True)
    return np.stack(images), np.array(labels)


def test_fashion_mnist_mini():
    """The digests are of the unpacked files' contents, by md5sum."""
    train, test = (idx.open_fashion_mnist_mini(split) for split in ("train", "test"))
    assert (len(train), len(test)) == (8000, 2000)
    images = np.concatenate([train.images, test.images])
    labels = np.concatenate([train.labels(), test.labels()])
    assert images.shape == (10_000, 28, 28, 1)
    assert hashlib.md5(images.tobytes()).hexdigest() == MINI_IMAGES_MD5
    assert hashlib.md5(labels.astype(np.uint8).tobytes()).hexdigest() == MINI_LABELS_MD5
    assert np.bincount(labels).tolist() == [1000] * 10
    assert train.num_classes == 10
    assert train.label_names is not None
    assert train.label_names[9] == "Ankle boot"
    assert labels[:3].tolist() == [9, 2, 1]  # an ankle boot, a pullover, trousers
    image, label = test.read(5)
    np.testing.assert_array_equal(image, images[8005].repeat(3, 2))
    assert label == labels[8005]
    assert test.describe(5) == "fashion_mnist_mini, split test, record 5"


MINI_IMAGES_MD5 = "b7656a891b218fc13e45205c48a92cae"
MINI_LABELS_MD5 = "8dea97a4e78c1bd1b5a6e8efbb870b6e"


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx(tmp_path, suffix):
    write_idx(tmp_path / f"train-images-idx3-ubyte{suffix}", IMAGES[:9])
    write_idx(tmp_path / f"train-labels-idx1-ubyte{suffix}", LABELS[:9])
    write_idx(tmp_path / f"t10k-images-idx3-ubyte{suffix}", IMAGES[9:])
    write_idx(tmp_path / f"t10k-labels-idx1-ubyte{suffix}", LABELS[9:])
    for split, want in (
        ("train", slice(0, 9)),
        ("test", slice(9, 12)),
        ("train[3:-1]", slice(3, 8)),
        ("train[2:]+test", slice(2, 12)),
    ):
        images, labels = all_of(opened("idx", tmp_path, split))
        np.testing.assert_array_equal(images, IMAGES[want, :, :, None].repeat(3, 3))
        np.testing.assert_array_equal(labels, LABELS[want])
    assert (
        opened("idx", tmp_path, "train[2:]+test")
        .describe(7)
        .endswith("split test, record 0")
    )


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_bad_idx(tmp_path, suffix):
    images = tmp_path / f"train-images-idx3-ubyte{suffix}"
    labels = tmp_path / f"train-labels-idx1-ubyte{suffix}"

    def refused(message):
        with pytest.raises(UserError, match=message):
            opened("idx", tmp_path)

    with pytest.raises(UserError, match=r'nowhere" is not a folder'):
        opened("idx", tmp_path / "nowhere")
    refused("has no train-images-idx3-ubyte")
    write_idx(images, IMAGES)
    refused("has the images of train but no train-labels")
    write_idx(labels, LABELS[:-1])
    refused("12 images but 11 labels")
    write_idx(labels, IMAGES)
    refused(
        r"labels.* is not an IDX file .* with 1 dim.* 00 00 08 03, expected 00 00 08 01"
    )
    write_idx(labels, LABELS)
    assert len(opened("idx", tmp_path)) == 12
    with pytest.raises(UserError, match=r'no split "test".*\(it has: train\)'):
        opened("idx", tmp_path, "test")
    cut(images)
    refused(r"images.* cut short or damaged: copy it again")
    images.write_bytes(b"")
    refused("starts with nothing|cut short")
    images.write_bytes(b"<html>not found</html>")
    refused(r"is not an IDX file|cannot be unpacked \(Not a gzipped file")


@pytest.mark.parametrize("names", ["x_{}/y_{}", "{}_images/{}_labels"])
def test_npz(tmp_path, names):
    path = tmp_path / "data.npz"
    rgb = RNG.integers(0, 256, (12, 5, 6, 3), np.uint8)
    image, label = names.split("/")
    arrays = {
        image.format("train"): rgb[:8],
        label.format("train"): LABELS[:8, None].astype(np.int64),
        image.format("val"): rgb[8:],
        label.format("val"): LABELS[8:].astype(np.int64),
    }
    np.savez_compressed(path, **arrays)
    for split, want in (("train", slice(0, 8)), ("train[5:]+val[:1]", slice(5, 9))):
        images, labels = all_of(opened("npz", path, split))
        np.testing.assert_array_equal(images, rgb[want])
        np.testing.assert_array_equal(labels, LABELS[want])
    assert len(opened("npz", path, "test")) == 4  # there is none: it is val
    with pytest.raises(UserError, match=r'no split "fold".*\(it has: train, val\)'):
        opened("npz", path, "fold")


def test_npz_multi_hot(tmp_path):
    path = tmp_path / "data.npz"
    hot = RNG.integers(0, 2, (12, 4))
    np.savez(path, x_train=IMAGES, y_train=hot)
    source = npz.open_npz(str(path), "train")
    assert (source.multi_hot, source.num_classes) == (True, 4)
    assert source.labels().dtype == np.float32
    np.testing.assert_array_equal(all_of(source)[1], hot)


HOT = np.eye(12, 4)


def changed(array: np.ndarray, value: float) -> np.ndarray:
    """The same with another value in record 7."""
    array = array.copy()
    array[7] = value
    return array


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": IMAGES}, "has the arrays a; expected x_train and y_train"),
        ({"x_train": IMAGES}, "has the arrays x_train; expected"),
        ({"x_train": IMAGES / 255 - 1, "y_train": LABELS}, r"float64 .* -1\.\..* 0..1"),
        (
            {"x_train": IMAGES // 16 / 1, "y_train": LABELS},
            r"0\.\.15; .* 0..1 or 0..255",
        ),
        ({"x_train": IMAGES * 9.0, "y_train": LABELS}, r"float64 with values 0\.\.2"),
        ({"x_train": IMAGES * np.nan, "y_train": LABELS}, r"with values nan\.\.nan"),
        ({"x_train": IMAGES.astype(int) * 300, "y_train": LABELS}, "int64 with values"),
        ({"x_train": IMAGES[:, 0], "y_train": LABELS}, r"images are uint8 \[12, 6\]"),
        (
            {"x_train": np.zeros((12, 3072), np.uint8), "y_train": LABELS},
            r"32x32 pixels of 3 colours: give them the shape \[n, 32, 32, 3\]",
        ),
        ({"x_train": IMAGES[0], "y_train": LABELS}, r"images are uint8 \[5, 6\]"),
        ({"x_train": IMAGES[..., None, None], "y_train": LABELS}, "images are uint8"),
        ({"x_train": IMAGES, "y_train": LABELS / 2}, r"labels are float64 \[12\]"),
        ({"x_train": IMAGES, "y_train": LABELS[1:]}, "12 images but 11 labels"),
        ({"x_train": IMAGES[:0], "y_train": LABELS[:0]}, "is empty"),
        (
            {"x_train": np.array([{}]), "y_train": LABELS},
            "x_train holds Python objects",
        ),
        ({"x_train": IMAGES, "y_train": np.array([{}] * 12)}, "y_train holds Python"),
        ({"x_train": IMAGES, "y_train": IMAGES[:, 0]}, "vectors with values 0..2"),
        *(
            (
                {
                    "x_train": IMAGES,
                    "y_train": changed(LABELS.astype(np.int64), number),
                },
                f"train, record 7: label {number} is no class number",
            )
            for number in (2**32 + 1, 2**31, -(2**40))
        ),
        (
            {"x_train": IMAGES, "y_train": np.full(12, 2**63 + 1, np.uint64)},
            r"record 0: label 9223372036854775809 .*\(12 of 12 labels",
        ),
        *(
            (
                {"x_train": IMAGES, "y_train": changed(HOT, value)},
                "labels are vectors with values .*; expected 0..1",
            )
            for value in (np.nan, np.inf, -5.0, 1.5, 255.0)
        ),
    ],
)
def test_bad_npz(tmp_path, arrays, message):
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=message):
        opened("npz", path)


SQUARES = RNG.integers(0, 256, (12, 6, 6), np.uint8)
NAMES = np.array(["cat", "a dog", "cow", "ant"])


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (SQUARES.astype(np.float32) / 255, SQUARES),
        (SQUARES / 255, SQUARES),
        (SQUARES.astype(np.float64), SQUARES),
        (SQUARES.astype(np.int64), SQUARES),
        (SQUARES.reshape(12, 36), SQUARES),  # as scikit-learn has images
        (SQUARES.reshape(12, 36) / 255, SQUARES),
        (SQUARES.astype(np.uint16) * 257, SQUARES),
        (SQUARES > 99, (SQUARES > 99) * np.uint8(255)),
        (SQUARES[:, None], SQUARES),  # as PyTorch has them
        (np.repeat(SQUARES[:, None], 3, axis=1), SQUARES),
        (np.stack([*[SQUARES] * 3, np.full_like(SQUARES, 255)], -1), SQUARES),
    ],
    ids=lambda x: f"{x.dtype}{list(x.shape)}",
)
def test_images_of_other_types_and_shapes(tmp_path, images, expected):
    np.savez(tmp_path / "x.npz", x_train=images, y_train=LABELS)
    found, labels = all_of(opened("npz", tmp_path / "x.npz"))
    np.testing.assert_array_equal(found, expected[..., None].repeat(3, 3))
    np.testing.assert_array_equal(labels, LABELS)


@pytest.mark.parametrize(
    "labels",
    [
        LABELS.astype(np.float64),
        LABELS[:, None].astype(np.float32),
        LABELS.astype(np.int64),
        NAMES[LABELS],
        NAMES.astype("S")[LABELS][:, None],
    ],
    ids=lambda x: f"{x.dtype}{list(x.shape)}",
)
@pytest.mark.parametrize("keys", ["x y", "X_train y_train", "data target"])
def test_labels_of_other_types(tmp_path, labels, keys):
    x, y = keys.split()
    np.savez(tmp_path / "x.npz", **{x: IMAGES, y: labels})
    source = opened("npz", tmp_path / "x.npz")
    found = np.asarray(source.labels())
    if labels.dtype.kind in "US":
        assert source.label_names is not None
        assert source.label_names == tuple(np.unique(NAMES[LABELS]).tolist())
        assert [source.label_names[i] for i in found] == NAMES[LABELS].tolist()
        assert source.num_classes == len(source.label_names)
    else:
        np.testing.assert_array_equal(found, LABELS)
        assert source.label_names is None


def test_names_that_training_does_not_know(tmp_path):
    path = tmp_path / "x.npz"
    arrays: dict[str, Any] = {
        "x_train": IMAGES,
        "x_test": IMAGES[:1],
        "y_train": NAMES[LABELS],
    }
    np.savez(path, **arrays, y_test=["emu"])
    with pytest.raises(UserError, match="test has classes that train has not: emu"):
        opened("npz", path)
    np.savez(path, **arrays, y_test=[1])
    with pytest.raises(UserError, match="of one split are names, of another numbers"):
        opened("npz", path)


@pytest.mark.parametrize("name", ["npz", "idx"])
def test_labels_say_how_many_classes_there_are(tmp_path, name):
    """All of them, of all splits: a slice of sorted records need not have the last."""
    labels = np.sort(LABELS)
    arrays = {"x_train": IMAGES, "y_train": labels, "x_test": IMAGES, "y_test": labels}
    path = write_arrays(tmp_path, name, arrays)

    def num_classes(split="train"):
        return make(name, path, split=split).num_classes

    assert num_classes() == num_classes("test") == num_classes("train[:3]") == 4
    arrays["y_test"] = np.append(labels[:-1], np.uint8(6))
    write_arrays(tmp_path, name, arrays)
    assert num_classes() == 7
    if name == "npz":  # not classes, or all the more of them
        write_arrays(tmp_path, name, arrays | {"y_train": labels.astype(int) + 2020})
        assert num_classes() is None


def make(name, path, **keys):
    return data.make(
        **{"name": name, "data_dir": str(path), "image_size": 6, **keys},
        train={"crop": "resize"},
        eval={},
    )


def write_arrays(folder, name, arrays):
    if name == "npz":
        np.savez(folder / "x.npz", **arrays)
        return folder / "x.npz"
    for split, prefix in (("train", "train"), ("test", "t10k")):
        if f"x_{split}" in arrays:
            write_idx(folder / f"{prefix}-images-idx3-ubyte", arrays[f"x_{split}"])
            write_idx(folder / f"{prefix}-labels-idx1-ubyte", arrays[f"y_{split}"])
    return folder


@pytest.mark.parametrize("name", ["npz", "idx", "x and y"])
def test_a_part_is_held_out(tmp_path, name):
    images = np.arange(100, dtype=np.uint8)[:, None, None].repeat(6, 1).repeat(6, 2)
    labels = np.repeat(np.arange(4, dtype=np.uint8), [50, 30, 18, 2])
    keys = ("x", "y") if name == "x and y" else ("x_train", "y_train")
    kind = "idx" if name == "idx" else "npz"
    path = write_arrays(tmp_path, kind, dict(zip(keys, (images, labels), strict=True)))
    train, test = (
        open_source(name=kind, data_dir=str(path), split=split, held_out=0.1)
        for split in ("train", "test")
    )
    assert np.bincount(np.asarray(test.labels())).tolist() == [5, 3, 2, 1]
    both = [*(int(s.read(i)[0][0, 0, 0]) for s in (train, test) for i in range(len(s)))]
    assert sorted(both) == list(range(100))
    assert "train is 0.9 of each class (89 images), test 0.1 (11)" in train.notes[0]
    if name != "x and y":
        with pytest.raises(UserError, match=r'"test".*--config\.data\.holdout=0\.1'):
            opened(kind, path, "test")
        arrays = dict.fromkeys(("x_train", "x_test"), images)
        write_arrays(tmp_path, kind, arrays | {"y_train": labels, "y_test": labels})
        with pytest.raises(UserError, match=r"holdout=0\.1 has no effect: "):
            open_source(name=kind, data_dir=str(path), split="train", held_out=0.1)
    else:
        assert len(opened(kind, path, "test")) == 100


def test_not_an_npz(tmp_path):
    path = tmp_path / "data.npz"
    with pytest.raises(UserError, match=r"is not a file; .* the \.npz file itself"):
        opened("npz", path)
    with pytest.raises(
        UserError, match=r"needs config\.data\.data_dir: the \.npz file"
    ):
        opened("npz")
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"is not a readable \.npz file"):
        opened("npz", path)
    np.savez(path, x_train=IMAGES, y_train=LABELS)
    cut(path)
    with pytest.raises(UserError, match=r"data\.npz"):
        opened("npz", path)
    with path.open("wb") as file:
        np.save(file, IMAGES)
    with pytest.raises(UserError, match="is a single array"):
        opened("npz", path)


def test_fingerprints(tmp_path):
    """The same for the same records wherever they lie; else another."""
    changed = IMAGES.copy()
    changed[3] += 1
    prints = {}
    for name, images, labels in (
        ("a", IMAGES, LABELS),
        ("b", IMAGES, LABELS),
        ("images", changed, LABELS),
        ("labels", IMAGES, LABELS[::-1]),
    ):
        path = tmp_path / f"{name}.npz"
        np.savez(path, x_train=images, y_train=labels)
        prints[name] = opened("npz", path).fingerprint
        prints[f"{name} cut"] = opened("npz", path, "train[1:]").fingerprint
    assert prints["a"] == prints["b"]
    assert len(set(prints.values())) == 6


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"data_dir": "/x"}, 'data_dir="/x" has no effect .* or choose .*"idx"'),
        ({"image_key": "img"}, 'image_key="img" has no effect'),
        ({"label_key": "fine"}, 'label_key="fine" has no effect'),
        ({"split": "trian"}, 'did you mean "train"'),
    ],
)
def test_keys_without_effect(keys, message):
    with pytest.raises(UserError, match=message):
        opened("fashion_mnist_mini", **keys)


def test_object_stores_are_refused():
    with pytest.raises(UserError, match="copy the dataset to a local disk"):
        opened("imagenet2012", "gs://bucket/data")
