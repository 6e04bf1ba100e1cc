"""Files of array_record without dataset_info.json, written by array_record and TF."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tensorflow as tf
from array_record.python.array_record_module import ArrayRecordWriter

from vit_jax import data
from vit_jax.data.sources import open_source
from vit_jax.errors import UserError


def serialized(number: int, **lists: Any) -> bytes:
    """A tf.train.Example with a picture that says its number."""
    png = cv2.imencode(".png", np.full((5, 6, 3), number, np.uint8))[1].tobytes()
    feature = {"image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[png]))}
    for name, values in lists.items():
        if isinstance(values[0], float):
            made = tf.train.Feature(float_list=tf.train.FloatList(value=values))
        else:
            made = tf.train.Feature(int64_list=tf.train.Int64List(value=values))
        feature[name] = made
    features = tf.train.Features(feature=feature)
    return tf.train.Example(features=features).SerializeToString()


def one_hot(number: int) -> list[int]:
    return [int(c in (number % 5, 4)) for c in range(5)]


def write(path: Path, numbers: range) -> None:
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for n in numbers:
        soft = [float(v) / 2 for v in one_hot(n)]
        writer.write(serialized(n, label=[n % 5], many=one_hot(n), soft=soft))
    writer.close()


NAMES = {
    "TFDS": "jft-{}.array_record-{:05d}-of-{:05d}",
    "plain": "{}-{:05d}-of-{:05d}.array_record",
    "Grain": "my_set-{}-{:05d}-of-{:05d}.arrayrecord",
}


@pytest.fixture(params=list(NAMES))
def folder(request, tmp_path) -> Path:
    """Ten records in 3 files of `train`, 4 in one of `val`; and another file."""
    for i, numbers in enumerate((range(4), range(4, 5), range(5, 10))):
        write(tmp_path / NAMES[request.param].format("train", i, 3), numbers)
    write(tmp_path / NAMES[request.param].format("val", 0, 1), range(20, 24))
    (tmp_path / "README.md").write_text("not a record")
    return tmp_path


def opened(folder: Path, **keys: Any) -> Any:
    section: dict[str, Any] = {"name": "array_record", "split": "train"}
    return open_source(**{**section, "data_dir": str(folder), **keys})


def test_class_numbers(folder):
    source = opened(folder)
    assert len(source) == 10
    assert (source.multi_hot, source.num_classes) == (False, None)
    for i in range(10):
        image, label = source.read(i)
        np.testing.assert_array_equal(image, np.full((5, 6, 3), i))
        assert label == i % 5


@pytest.mark.parametrize(("key", "scale"), [("many", 1), ("soft", 0.5)])
def test_vectors(folder, key, scale):
    source = opened(folder, label_key=key)
    assert (source.multi_hot, source.num_classes) == (True, 5)
    np.testing.assert_array_equal(source.read(7)[1], scale * np.array(one_hot(7)))


@pytest.mark.parametrize("split", ["train[3:6]", "val", "train[-1:]+val[:2]"])
def test_splits(folder, split):
    numbers = {
        "train[3:6]": [3, 4, 5],
        "val": [20, 21, 22, 23],
        "train[-1:]+val[:2]": [9, 20, 21],
    }
    source = opened(folder, split=split)
    got = [source.read(i)[0][0, 0, 0].item() for i in range(len(source))]
    assert got == numbers[split]


def test_batches(folder):
    dataset = data.make(
        name="array_record",
        data_dir=str(folder),
        label_key="many",
        image_size=4,
        train={},
        eval={},
    )
    dataset.check(num_classes=5, train=True, batch_size=8)
    assert dataset.label_classes == 5
    batches = dataset.train_batches(batch_size=5, seed=0, start_step=0, total_steps=2)
    shown = np.concatenate([b["image"][:, 0, 0, 0] for b in batches])
    assert sorted(shown.tolist()) == list(range(10))


def test_what_it_is_known_by(folder):
    prints = [
        opened(folder).fingerprint,
        opened(folder, split="train[:9]").fingerprint,
        opened(folder, label_key="many").fingerprint,
        opened(folder, split="val").fingerprint,
    ]
    assert len(set(prints)) == 4


def test_folders_that_cannot_be(folder, tmp_path):
    with pytest.raises(UserError, match=r'no split "valid".*did you mean "val"'):
        opened(folder, split="valid")
    with pytest.raises(UserError, match=r'label_key="lable": .* no such numbers'):
        opened(folder, label_key="lable")
    with pytest.raises(UserError, match=r'label_key="image": .* no such numbers'):
        opened(folder, label_key="image")
    with pytest.raises(UserError, match="is not a folder"):
        opened(folder / "README.md")
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no array_record files"):
        opened(empty)
    with pytest.raises(UserError, match=r"needs config\.data\.data_dir"):
        open_source(name="array_record", data_dir=None, split="train")


def test_files_that_are_missing_or_cut(folder):
    cut, gone = sorted(folder.glob("*train*"))[1:]
    cut.write_bytes(cut.read_bytes()[:100])
    with pytest.raises(UserError, match=r"00001-of-00003.* cannot be read"):
        opened(folder)
    gone.unlink()
    with pytest.raises(UserError, match=r'2 files of split "train".*say 3.*number 2'):
        opened(folder)


def test_records_that_are_no_examples(tmp_path):
    writer = ArrayRecordWriter(str(tmp_path / "train.array_record"), "group_size:1")
    writer.write(b"\x0a\xff")
    writer.close()
    with pytest.raises(UserError, match=r"is not a tf\.train\.Example"):
        opened(tmp_path)
