import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from vit_jax.data import open_source
from vit_jax.data.sources import records
from vit_jax.data.sources.example import parse_example
from vit_jax.errors import BadExample, UserError

FORMATS = ("array_record", "tfrecord")


def opened(data_dir, **keys):
    defaults: dict[str, Any] = {
        "split": "train",
        "image_key": "small",
        "label_key": "label",
    }
    given: dict[str, Any] = {"name": "animals"} | defaults | keys
    return open_source(**given, data_dir=str(data_dir))


def by_tfds(root: Path, file_format: str, split: str) -> list[Any]:
    """The records as TFDS reads them, each dataset in the only way it allows."""
    builder: Any = tfds.builder_from_directory(
        str(root / file_format / "animals" / "1.2.0")
    )
    if file_format == "array_record":
        return list(builder.as_data_source(split))
    read = tfds.ReadConfig(interleave_cycle_length=1)  # in the files' order
    return list(tfds.as_numpy(builder.as_dataset(split=split, read_config=read)))


@pytest.mark.parametrize(
    "split", ["train", "train[3:-2]", "test[10%:80%]", "test+train"]
)
@pytest.mark.parametrize("file_format", FORMATS)
def test_records_are_those_tfds_reads(tfds_dir, file_format, split):
    source = opened(tfds_dir / file_format, split=split)
    soft = opened(tfds_dir / file_format, split=split, label_key="soft")
    several = opened(tfds_dir / file_format, split=split, label_key="labels")
    number = opened(tfds_dir / file_format, split=split, label_key="number")
    want = by_tfds(tfds_dir, file_format, split)
    assert len(source) == len(want) > 0
    for i, record in enumerate(want):
        image, label = source.read(i)
        np.testing.assert_array_equal(image, record["small"].repeat(3, 2))
        assert label == record["label"]
        np.testing.assert_array_equal(soft.read(i)[1], record["soft"])
        multi_hot = np.isin(np.arange(3), record["labels"])
        np.testing.assert_array_equal(several.read(i)[1], multi_hot)
        assert number.read(i)[1] == record["number"]


@pytest.mark.parametrize("file_format", FORMATS)
def test_jpegs(tfds_dir, file_format):
    """On noise, the worst case, JPEG decoders differ by a few steps of 255."""
    source = opened(tfds_dir / file_format, image_key="image")
    for i, record in enumerate(by_tfds(tfds_dir, file_format, "train")):
        image = source.read(i)[0]
        assert image.shape == record["image"].shape
        assert np.abs(image.astype(int) - record["image"]).mean() <= 2


@pytest.mark.parametrize("file_format", FORMATS)
def test_what_a_source_knows(tfds_dir, file_format):
    source = opened(tfds_dir / file_format)
    assert (source.num_classes, source.multi_hot) == (3, False)
    assert source.label_names == ("cat", "dog", "cow")
    assert source.labels() is None
    assert not source.in_memory
    several = opened(tfds_dir / file_format, label_key="labels")
    assert (several.num_classes, several.multi_hot) == (3, True)
    soft = opened(tfds_dir / file_format, label_key="soft")
    assert (soft.num_classes, soft.multi_hot) == (3, True)
    number = opened(tfds_dir / file_format, label_key="number")
    assert (number.num_classes, number.multi_hot) == (None, False)
    nested = opened(
        tfds_dir / file_format, image_key="nested/image", label_key="nested/label"
    )
    assert nested.read(0)[0].shape == (4, 30, 3)
    assert nested.read(0)[1] == 2
    assert len({s.fingerprint for s in (source, several, soft, number)}) == 4
    assert (
        opened(tfds_dir / file_format, split="test").fingerprint != source.fingerprint
    )


def test_config_and_version_folders(tmp_path):
    """As written by store_as_tfds_dataset, with two configs and two versions."""
    rng = np.random.default_rng(0)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(4, 4, 3)),
            "label": tfds.features.ClassLabel(num_classes=4),
        }
    )
    for config, version, count in (
        ("big", "1.0.0", 3),
        ("big", "1.10.0", 4),
        ("big", "1.9.0", 5),
        ("small", "1.0.0", 6),
    ):
        examples = [
            (i, {"image": rng.integers(0, 256, (4, 4, 3), np.uint8), "label": 0})
            for i in range(count)
        ]
        tfds.dataset_builders.store_as_tfds_dataset(
            name="things",
            config=config,
            version=version,
            features=features,
            split_datasets={"train": examples},
            data_dir=tmp_path,
            file_format="array_record",
        )
    sizes = {
        name: len(opened(tmp_path, name=name, image_key="image"))
        for name in ("things/big", "things/big:1.0.0", "things/small")
    }
    assert sizes == {"things/big": 4, "things/big:1.0.0": 3, "things/small": 6}
    for name, message in (
        ("things", "several configs in .*big, small; choose one, as things/big"),
        ("things/huge", r'no config "huge" \(it has: big, small\)'),
        ("things/big:2.0.0", r"no version 2.0.0 .*\(it has: 1.0.0, 1.9.0, 1.10.0\)"),
    ):
        with pytest.raises(UserError, match=message):
            opened(tmp_path, name=name, image_key="image")


def test_default_folder(tfds_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_dir / "tfrecord"))
    source = open_source(
        name="animals",
        data_dir=None,
        split="test",
        image_key="small",
        label_key="label",
    )
    assert len(source) == 7


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "animal"}, r'no such dataset .*did you mean "animals".*prepare'),
        ({"name": "mnist"}, r"\(it has: animals\).*download_and_prepare"),
        (
            {"name": "imagenet2012"},
            "it has: animals.*vit_jax.data.prepare train=ILSVRC2012_img_train.tar ",
        ),
        ({"name": "imagenet21k_winter21"}, "vit_jax.data.prepare train=winter21_whole"),
        (
            {"name": "ani mals"},
            "is not understood; expected fashion_mnist_mini, folder",
        ),
        ({"name": "animals:3.0.0"}, r"no version 3.0.0 .*\(it has: 1.2.0\)"),
        ({"split": "valid"}, r'has no split "valid".*\(it has: train, test\)'),
        ({"split": "train[23:]"}, 'is empty: "train" has 23 records'),
        ({"image_key": "imag"}, 'image_key="imag".* did you mean "image"'),
        (
            {"image_key": "text"},
            'image_key="text" is of type Text, .*expected an Image',
        ),
        ({"label_key": "labl"}, 'label_key="labl".* did you mean "label"'),
        (
            {"label_key": "text"},
            'label_key="text" is of type Text; expected a ClassLabel',
        ),
        ({"label_key": "objects"}, "is of type Sequence; expected a ClassLabel"),
        ({"label_key": "image"}, "is of type Image; expected a ClassLabel"),
        ({"label_key": "objects/labl"}, 'no such feature; did you mean "label"'),
        ({"label_key": "objects/number"}, "is of type Tensor, in a sequence; expected"),
        ({"label_key": "objects/labels"}, "is of type Sequence, in a sequence;"),
        ({"label_key": "label/x"}, 'nothing below "label", which is of type ClassLab'),
        ({"image_key": "objects/image"}, "is of type Image, uint8, in a sequence;"),
    ],
    ids=str,
)
def test_bad_keys(tfds_dir, keys, message):
    with pytest.raises(UserError, match=message):
        opened(tfds_dir / "tfrecord", **keys)


@pytest.mark.parametrize("file_format", FORMATS)
def test_hidden_labels(tfds_dir, file_format):
    source = opened(tfds_dir / file_format, label_key="hidden")
    with pytest.raises(
        UserError, match=r"train\.\w+-00000-of-00003, record 0 has label -1, out of"
    ):
        source.read(0)


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("key", ["objects/label", "objects/deep/label"])
def test_labels_in_a_sequence_of_features(tfds_dir, file_format, key):
    """As COCO's objects have them: each image gets the set of its objects' classes."""
    source = opened(tfds_dir / file_format, label_key=key)
    assert (source.num_classes, source.multi_hot) == (3, True)
    assert source.label_names == ("cat", "dog", "cow")
    counts = set()
    for i, record in enumerate(by_tfds(tfds_dir, file_format, "train")):
        objects = record["objects"]
        found = objects if isinstance(objects, dict) else {}
        for part in key.split("/")[1:]:
            found = found[part]
        counts.add(len(found))
        np.testing.assert_array_equal(
            source.read(i)[1], np.isin(np.arange(3), np.asarray(found))
        )
    assert counts == {0, 1, 2, 3}


@pytest.mark.parametrize("file_format", FORMATS)
def test_vectors_that_are_no_labels(tfds_dir, file_format):
    source = opened(tfds_dir / file_format, label_key="point")
    for i, record in enumerate(by_tfds(tfds_dir, file_format, "train")[:3]):
        values = f"{record['point'][0]:g}, -3, nan"
        message = f'record {i} has the values {values} as "point", and a label of'
        with pytest.raises(BadExample, match=message):
            source.read(i)


@pytest.mark.parametrize("file_format", FORMATS)
def test_missing_file(tfds_dir, file_format, tmp_path):
    shutil.copytree(tfds_dir / file_format, tmp_path / "copy")
    file = f"animals-train.{file_format}-00001-of-00003"
    os.remove(tmp_path / "copy/animals/1.2.0" / file)
    with pytest.raises(UserError, match=f"{file} is missing, one of 3 files"):
        opened(tmp_path / "copy")
    assert len(opened(tmp_path / "copy", split="train[:5]")) == 5  # not needed


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_truncated_tfrecord(tfds_dir, tmp_path, share):
    shutil.copytree(tfds_dir / "tfrecord", tmp_path / "copy")
    file = tmp_path / "copy/animals/1.2.0/animals-train.tfrecord-00001-of-00003"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match=r"00001-of-00003: record \d.*cut short"):
        opened(tmp_path / "copy")


def test_damaged_header_of_a_tfrecord(tfds_dir, tmp_path):
    shutil.copytree(tfds_dir / "tfrecord", tmp_path / "copy")
    file = tmp_path / "copy/animals/1.2.0/animals-train.tfrecord-00001-of-00003"
    data = bytearray(file.read_bytes())
    data[0] ^= 1  # a length that is one off
    file.write_bytes(data)
    with pytest.raises(UserError, match="record 0, at byte 0, is cut short or damaged"):
        opened(tmp_path / "copy")


def test_truncated_array_record(tfds_dir, tmp_path):
    shutil.copytree(tfds_dir / "array_record", tmp_path / "copy")
    file = tmp_path / "copy/animals/1.2.0/animals-train.array_record-00001-of-00003"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"00001-of-00003 has 0 records, but .* 7; it"):
        opened(tmp_path / "copy")


@pytest.mark.parametrize("file_format", FORMATS)
def test_wrong_number_of_records(tfds_dir, tmp_path, file_format):
    shutil.copytree(tfds_dir / file_format, tmp_path / "copy")
    file = tmp_path / "copy/animals/1.2.0/dataset_info.json"
    info = json.loads(file.read_text())
    info["splits"][0]["shardLengths"][0] = "5"
    file.write_text(json.dumps(info))
    with pytest.raises(
        UserError, match=r"has .* records, but dataset_info\.json says 5"
    ):
        opened(tmp_path / "copy").read(0)


def test_other_file_formats_are_refused(tfds_dir, tmp_path):
    shutil.copytree(tfds_dir / "tfrecord", tmp_path / "copy")
    file = tmp_path / "copy/animals/1.2.0/dataset_info.json"
    file.write_text(file.read_text().replace('"tfrecord"', '"riegeli"'))
    with pytest.raises(
        UserError, match="stored as riegeli; supported are array_record"
    ):
        opened(tmp_path / "copy")


def test_datasets_older_than_features_json(tfds_dir, tmp_path):
    shutil.copytree(tfds_dir / "tfrecord", tmp_path / "copy")
    os.remove(tmp_path / "copy/animals/1.2.0/features.json")
    old, new = opened(tmp_path / "copy"), opened(tfds_dir / "tfrecord")
    assert (old.num_classes, old.label_names) == (3, new.label_names)
    assert old.read(5)[1] == new.read(5)[1]


def test_offsets_are_kept_and_renewed(tfds_dir, tmp_path, cache_home):
    shutil.copytree(tfds_dir / "tfrecord", tmp_path / "copy")
    first = opened(tmp_path / "copy")
    (kept,) = (cache_home / "vit_jax").iterdir()
    second = opened(tmp_path / "copy")
    np.testing.assert_array_equal(first.read(9)[0], second.read(9)[0])
    kept.write_bytes(kept.read_bytes()[:100])  # damaged: made again
    np.testing.assert_array_equal(
        opened(tmp_path / "copy").read(9)[0], first.read(9)[0]
    )
    # A file that changed under the same name is not read at the old offsets.
    file = tmp_path / "copy/animals/1.2.0/animals-train.tfrecord-00000-of-00003"
    os.utime(file, (0, 0))
    opened(tmp_path / "copy")
    assert len(list((cache_home / "vit_jax").iterdir())) == 2


def test_offsets_that_cannot_be_kept(tfds_dir, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(opened(tfds_dir / "tfrecord")) == 23


def test_more_files_than_are_kept_open(tfds_dir, monkeypatch):
    monkeypatch.setattr(records, "_MAX_OPEN_FILES", 1)
    few = opened(tfds_dir / "tfrecord")
    images = [few.read(i)[0] for i in range(len(few))]
    monkeypatch.undo()
    many = opened(tfds_dir / "tfrecord")
    for i, image in enumerate(images):
        np.testing.assert_array_equal(image, many.read(i)[0])


def test_neither_tensorflow_nor_tfds_is_imported(tfds_dir):
    code = f"""
import sys
from vit_jax.data import open_source
for form in ("array_record", "tfrecord"):
    source = open_source(name="animals", data_dir="{tfds_dir}/" + form, split="train",
                         image_key="image", label_key="label")
    source.read(3)
names = ("tensorflow", "tensorflow_datasets", "jax", "grain")
print([name for name in names if name in sys.modules])
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout == "[]\n"


def test_examples_written_by_tensorflow():
    import tensorflow as tf

    numbers = [0, 1, -1, 127, 128, 2**63 - 1, -(2**63)]
    floats = [0.5, -3.25, 1e30]
    feature = {
        "i": tf.train.Feature(int64_list=tf.train.Int64List(value=numbers)),
        "f": tf.train.Feature(float_list=tf.train.FloatList(value=floats)),
        "b": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"", b"x" * 300])),
        "e": tf.train.Feature(int64_list=tf.train.Int64List()),
        "n": tf.train.Feature(),
        "é": tf.train.Feature(int64_list=tf.train.Int64List(value=[3])),
    }
    example = tf.train.Example(features=tf.train.Features(feature=feature))
    data = example.SerializeToString()
    got = parse_example(data, ["i", "f", "b", "e", "n", "é", "other"])
    assert list(got["i"]) == numbers
    np.testing.assert_array_equal(got["f"], np.array(floats, np.float32))
    assert [bytes(b) for b in got["b"]] == [b"", b"x" * 300]
    assert list(got["e"]) == []
    assert list(got["é"]) == [3]
    assert set(got) == {"i", "f", "b", "e", "é"}
    with pytest.raises(ValueError, match="cut short"):
        parse_example(data[:-4], ["i", "f", "b", "e", "n", "é"])


def test_unpacked_numbers():
    """As proto2 writers may: each number with a tag of its own."""
    values = b"\x08\x05\x08\x96\x01"  # field 1, varint: 5, 150
    entry = b"\x0a\x01a\x12" + bytes([len(values) + 2]) + b"\x1a" + bytes([len(values)])
    entry += values
    body = b"\x0a" + bytes([len(entry)]) + entry
    example = b"\x0a" + bytes([len(body)]) + body
    assert list(parse_example(example, ["a"])["a"]) == [5, 150]


def test_garbage_in_a_record(tmp_path, tfds_dir):
    """Records that TensorFlow frames well, but that are not what is promised."""
    import tensorflow as tf

    def feature(**lists):
        return {
            key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
            if isinstance(value, bytes)
            else tf.train.Feature(int64_list=tf.train.Int64List(value=value))
            for key, value in lists.items()
        }

    def example(**lists):
        features = tf.train.Features(feature=feature(**lists))
        return tf.train.Example(features=features).SerializeToString()

    png = cv2.imencode(".png", np.zeros((8, 9, 3), np.uint8))[1].tobytes()
    bad = [
        (b"\x0a\xff", "is not a tf.train.Example"),
        (example(label=[0]), 'holds no single "small"'),
        (example(small=png), 'holds no single "label"'),
        (example(small=png, label=[0, 1]), "has 2 labels instead of one"),
        (example(small=png, label=[3]), r"has label 3, out of range 0\.\.2"),
        (example(small=png, label=b"cat"), 'has bytes as "label"'),
        (example(small=png[:50], label=[0]), "record 6 cannot be decoded: 50 bytes"),
        (example(small=b"", label=[0]), "record 7 is empty"),
    ]
    shutil.copytree(tfds_dir / "tfrecord", tmp_path / "copy")
    folder = tmp_path / "copy/animals/1.2.0"
    with tf.io.TFRecordWriter(
        str(folder / "animals-train.tfrecord-00000-of-00003")
    ) as w:
        for data, _ in bad:
            w.write(data)
    assert len(bad) == 8  # as many as the file had
    source = opened(tmp_path / "copy")
    for i, (_, message) in enumerate(bad):
        assert source.describe(i).endswith(f"00000-of-00003, record {i}")
        with pytest.raises(UserError, match=message):
            source.read(i)


def test_masked_crc_is_tensorflows(tfds_dir):
    file = tfds_dir / "tfrecord/animals/1.2.0/animals-test.tfrecord-00000-of-00003"
    header = file.read_bytes()[:12]
    (length,) = struct.unpack("<Q", header[:8])
    assert 0 < length < 10_000
    assert records._header_is_good(header)
    assert not records._header_is_good(header[:-1] + b"\0")
