"""Sources made by PIL, tarfile, csv and pyarrow; what is written is read by TFDS."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.prepared import (
    Files,
    built,
    contents,
    encoded,
    expected,
    folder,
    prepare,
    records,
    report,
    some,
    tar,
    under,
)
from vit_jax import data
from vit_jax.errors import UserError


def test_folder_is_what_tfds_and_we_read(tmp_path):
    files = some()
    prepare(tmp_path, folder(tmp_path / "photos", files), "--num_shards=3")
    assert records(tmp_path) == expected(files)
    builder = built(tmp_path)
    assert builder.info.features["label"].names == ["a", "b"]
    assert builder.info.splits["train"].shard_lengths == [4, 4, 4]
    for record in builder.as_data_source("test"):  # decoded by TFDS
        content = files[f"test/{record['file_name'].decode()}"]
        pixels = np.asarray(Image.open(io.BytesIO(content)))
        assert np.abs(record["image"].astype(int) - pixels).max() <= 3
    dataset = data.make(
        name="mine",
        data_dir=str(tmp_path / "data"),
        split="train",
        image_size=16,
        train={},
        eval={},
    )
    assert dataset.num_examples == 12
    assert dataset.label_names == ("a", "b")
    ours = {
        int(label)
        for batch in dataset.eval_batches(batch_size=4)
        for label in batch["label"]
    }
    assert ours == {0, 1}


@pytest.mark.slow
def test_tfrecord_is_what_tfds_reads(tmp_path):
    import tensorflow_datasets as tfds

    files = some()
    prepare(tmp_path, folder(tmp_path / "photos", files), "--file_format=tfrecord")
    builder = built(tmp_path)
    decoders = {"image": tfds.decode.SkipDecoding()}
    found = builder.as_dataset(split="train", decoders=decoders, shuffle_files=False)
    read = {
        "train/" + r["file_name"].decode(): (r["image"], r["label"])
        for r in found.as_numpy_iterator()
    }
    assert read == expected({n: c for n, c in files.items() if n.startswith("train")})
    ours = data.make(
        name="mine", data_dir=str(tmp_path / "data"), split="test", train={}, eval={}
    )
    assert ours.num_examples == 5 and ours.source.read(0)[0].dtype == np.uint8
    with_pixels = next(builder.as_dataset(split="train").as_numpy_iterator())
    assert with_pixels["image"].shape[-1] == 3


def test_records_are_in_an_order_that_mixes_classes_and_depends_on_names(tmp_path):
    files = {f"train/{c}/{i}.png": encoded(i, "PNG") for c in "ab" for i in range(20)}
    prepare(tmp_path, folder(tmp_path / "photos", files), name="first")
    changed = {n: encoded(99 + i, "PNG") for i, n in enumerate(files)}
    prepare(tmp_path, folder(tmp_path / "others", changed), name="second")
    first = [label for _, label in records(tmp_path, "first").values()]
    assert 4 <= sum(first[:20]) <= 16  # sorted, it would be 0
    assert list(records(tmp_path, "first")) == list(records(tmp_path, "second"))


def as_imagenet_tar(tmp_path: Path, files: Files) -> list[str]:
    """A tar of class tars; the test images alone in a tar, labels in a file."""
    train = under(files, "train/")
    inner = {
        f"whole/{c}.tar": tar(tmp_path / f"{c}.tar", under(train, f"{c}/"))
        for c in "ba"
    }
    tar(tmp_path / "train.tar", inner)
    flat = {n.rpartition("/")[2]: c for n, c in under(files, "test/").items()}
    tar(tmp_path / "test.tar", flat)
    of = {n.rpartition("/")[2]: n.split("/")[0] for n in under(files, "test/")}
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"{of[n]}\n" for n in sorted(of)))
    return [
        f"train={tmp_path}/train.tar",
        f"test={tmp_path}/test.tar",
        f"--labels={labels}",
    ]


def as_class_tars(tmp_path: Path, files: Files) -> list[str]:
    for split in ("train", "test"):
        for c in "ab":
            inside = {f"./{n}": x for n, x in under(files, f"{split}/{c}/").items()}
            tar(tmp_path / split / f"{c}.tar", inside)
    return [f"{split}={tmp_path}/{split}" for split in ("train", "test")]


def as_tar_of_folders(tmp_path: Path, files: Files) -> list[str]:
    tar(tmp_path / "all.tar", {f"./{n}": c for n, c in files.items()})
    return [f"{tmp_path}/all.tar"]


def as_compressed_tars(tmp_path: Path, files: Files) -> list[str]:
    tar(tmp_path / "train.tar.gz", under(files, "train/"), "w:gz")
    tar(tmp_path / "test.tar.xz", under(files, "test/"), "w:xz")
    return [f"train={tmp_path}/train.tar.gz", f"test={tmp_path}/test.tar.xz"]


def as_flat_folders(tmp_path: Path, files: Files) -> list[str]:
    return [
        f"{s}={folder(tmp_path / s, under(files, f'{s}/'))}" for s in ("test", "train")
    ]


@pytest.mark.parametrize(
    "make",
    [as_class_tars, as_tar_of_folders, as_compressed_tars, as_flat_folders],
)
def test_all_layouts_of_the_same_images_give_the_same_files(make, tmp_path):
    files = some()
    prepare(tmp_path, folder(tmp_path / "photos", files), name="mine")
    wanted = contents(tmp_path)
    (tmp_path / "data").rename(tmp_path / "before")
    (tmp_path / "source").mkdir()
    prepare(tmp_path, *make(tmp_path / "source", files))
    found = contents(tmp_path)
    assert len(wanted) == 9
    for name in wanted:
        if name not in ("dataset_info.json", "manifest.json"):  # they name the source
            assert found[name] == wanted[name], name


def test_of_a_tar_of_splits_one_can_be_chosen(tmp_path):
    files = some()
    tar(tmp_path / "all.tar", files)
    prepare(tmp_path, f"test={tmp_path}/all.tar")
    wanted = {n: c for n, c in files.items() if n.startswith("test")}
    assert records(tmp_path) == expected(wanted)


def test_imagenets_own_tar_files(tmp_path):
    files = some()
    prepare(tmp_path, *as_imagenet_tar(tmp_path, files))
    read = records(tmp_path)
    wanted = {
        n if n.startswith("train") else f"test/{n.rpartition('/')[2]}": value
        for n, value in expected(files).items()
    }
    assert read == wanted


def test_labels_of_imagenets_development_kit(tmp_path):
    """Its numbers are in an order of their own, which only meta.mat tells."""
    from scipy import io as matlab

    flat = {f"ILSVRC2012_val_{i:08d}.JPEG": encoded(i) for i in range(1, 5)}
    tar(tmp_path / "val.tar", flat)
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")]
    rows = [(1, "n09", 0), (2, "n02", 0), (3, "n05", 0), (4, "n00", 2)]
    mat = io.BytesIO()
    matlab.savemat(mat, {"synsets": np.array(rows, fields).reshape(-1, 1)})
    kit = {
        "ILSVRC2012_devkit_t12/data/meta.mat": mat.getvalue(),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": (
            b"2\n3\n1\n2\n"
        ),
    }
    tar(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", kit, "w:gz")
    source = f"validation={tmp_path}/val.tar"
    prepare(tmp_path, source, f"--labels={tmp_path}/ILSVRC2012_devkit_t12.tar.gz")
    labels = {n[-6]: int(label) for n, (_, label) in records(tmp_path).items()}
    assert labels == {"1": 0, "2": 1, "3": 2, "4": 0}  # n02 < n05 < n09

    (tmp_path / "truth.txt").write_text("2\n3\n1\n2\n")
    with pytest.raises(UserError, match=r"numbers from 1 to 3: in which order"):
        prepare(tmp_path, source, f"--labels={tmp_path}/truth.txt", name="other")


def write_csv(path: Path, header: list[str], rows: list[list[str]]) -> str:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def test_csv_with_columns_of_other_names(tmp_path):
    files = some()
    folder(tmp_path / "images", files)
    rows = [[n, n.split("/")[1], n.split("/")[0]] for n in files]
    table = write_csv(tmp_path / "labels.csv", ["file", "class", "part"], rows)
    columns = ["--path_column=file", "--label_column=class", "--split_column=part"]
    prepare(tmp_path, table, *columns, f"--image_root={tmp_path}/images")
    wanted = {f"{n.split('/')[0]}/{n}": value for n, value in expected(files).items()}
    assert records(tmp_path) == wanted
    with pytest.raises(UserError, match=r'no column "clas".*did you mean "class"'):
        prepare(tmp_path, table, "--path_column=file", "--label_column=clas", name="x")


def test_a_file_that_a_table_names_and_that_is_not_there(tmp_path):
    folder(tmp_path, {"0.png": encoded(0, "PNG")})
    rows = [["0.png", "a"], ["gone.png", "a"]]
    table = write_csv(tmp_path / "t.csv", ["path", "label"], rows)
    with pytest.raises(UserError, match=r"1 images do not decode") as caught:
        prepare(tmp_path, f"train={table}")
    assert "gone.png cannot be read: No such file or directory" in str(caught.value)


@pytest.mark.parametrize("several_columns", [False, True])
def test_several_labels(several_columns, tmp_path):
    """Multi-hot vectors, in what we read, of the labels that TFDS reads."""
    labels = {"0.png": ["cat", "dog"], "1.png": ["cow"], "2.png": []}
    files = {n: encoded(i, "PNG") for i, n in enumerate(labels)}
    folder(tmp_path, files)
    names = ["cat", "cow", "dog"]
    if several_columns:
        header = ["path", "split", *names]
        rows = [
            [n, "train", *(str(int(c in of)) for c in names)]
            for n, of in labels.items()
        ]
        flags = ["--label_column=cat,cow,dog"]
    else:
        header = ["path", "split", "label"]
        rows = [[n, "train", "|".join(of)] for n, of in labels.items()]
        flags = []
    prepare(tmp_path, write_csv(tmp_path / "labels.csv", header, rows), *flags)
    read = records(tmp_path, label="labels")
    found = {n.split("/")[1]: [names[i] for i in of] for n, (_, of) in read.items()}
    assert found == labels
    source = data.make(
        name="mine",
        data_dir=str(tmp_path / "data"),
        label_key="labels",
        image_size=8,
        train={},
        eval={},
    ).source
    vectors = sorted(source.read(i)[1].tolist() for i in range(3))  # type: ignore
    assert vectors == [[0, 0, 0], [0, 1, 0], [1, 0, 1]]
    assert source.label_names == tuple(names)


def test_one_missing_label_does_not_make_it_multi_label(tmp_path):
    folder(tmp_path, {"0.png": encoded(0, "PNG"), "1.png": encoded(1, "PNG")})
    table = write_csv(
        tmp_path / "t.csv", ["path", "label"], [["0.png", "a"], ["1.png", ""]]
    )
    with pytest.raises(UserError, match=r"1 images have no label, such as 1\.png"):
        prepare(tmp_path, f"train={table}")


def write_parquet(path: Path, rows: list[tuple[bytes, Any]], names: list[str]) -> None:
    """As Hugging Face's `datasets` writes it."""
    import pyarrow as pa
    from pyarrow import parquet

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = {
        "image": {"_type": "Image"},
        "label": {"names": names, "_type": "ClassLabel"},
    }
    described = json.dumps({"info": {"features": features}})
    table = pa.table(
        {
            "image": pa.array(
                [{"bytes": c, "path": f"{i}.jpg"} for i, (c, _) in enumerate(rows)],
                image,
            ),
            "label": pa.array([label for _, label in rows], pa.int64()),
        }
    ).replace_schema_metadata({"huggingface": described})
    path.parent.mkdir(exist_ok=True, parents=True)
    parquet.write_table(table, path, row_group_size=3)


def test_parquet(tmp_path):
    rows = [(encoded(i), i % 2) for i in range(8)]
    for i in range(2):
        path = tmp_path / f"hub/data/train-0000{i}-of-00002.parquet"
        write_parquet(path, rows[4 * i : 4 * i + 4], ["zebra", "ape", "unseen"])
    write_parquet(
        tmp_path / "hub/data/test-00000-of-00001.parquet",
        rows[:1],
        ["zebra", "ape", "unseen"],
    )
    prepare(tmp_path, f"{tmp_path}/hub")
    read = records(tmp_path)
    assert len(read) == 9
    assert read["train/train-00001-of-00002/0000002/2.jpg"] == rows[6]
    assert sorted(read.values()) == sorted([*rows, rows[0]])
    names = contents(tmp_path)["label.labels.txt"].decode().split()
    assert names == ["zebra", "ape", "unseen"]  # in the order of their numbers
    write_parquet(tmp_path / "bad.parquet", [(encoded(0), -1)], ["zebra"])
    with pytest.raises(UserError, match=r"bad\.parquet, row 0 has no label \(-1\)"):
        prepare(tmp_path, f"train={tmp_path}/bad.parquet", name="bad")


KINDS: Mapping[str, tuple[Mapping[str, Any], bool]] = {
    "grey.jpg": ({"mode": "L"}, True),
    "cmyk.jpg": ({"mode": "CMYK"}, True),
    "progressive.jpg": ({"progressive": True}, True),
    "alpha.png": ({"kind": "PNG", "mode": "LA"}, True),
    "palette.png": ({"kind": "PNG", "mode": "P"}, True),
    "deep.png": ({"kind": "PNG", "mode": "I;16"}, False),
    "a.webp": ({"kind": "WEBP", "lossless": True}, False),
    "animated.webp": ({"kind": "WEBP", "lossless": True, "save_all": True}, False),
    "a.bmp": ({"kind": "BMP"}, False),
    "a.gif": ({"kind": "GIF"}, False),
    "a.tiff": ({"kind": "TIFF"}, False),
}


def of_kind(name: str) -> bytes:
    how = dict(KINDS[name][0])
    if name == "deep.png":
        file = io.BytesIO()
        pixels = np.arange(0, 65536, 16).astype(np.uint16).reshape(64, 64)
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()
    if name == "animated.webp":
        how["append_images"] = [Image.new("RGB", (32, 24))]
    return encoded(0, **{"kind": "JPEG", **how})


def test_what_is_kept_and_what_is_encoded_anew(tmp_path):
    """JPEG and PNG bytes stay; the rest becomes PNG with the same pixels."""
    files = {f"train/a/{name}": of_kind(name) for name in KINDS}
    prepare(tmp_path, folder(tmp_path / "photos", files))
    read = records(tmp_path)
    for name, (_, kept) in KINDS.items():
        content, stored = files[f"train/a/{name}"], read[f"train/a/{name}"][0]
        assert (stored == content) == kept, name
        if not kept and name != "deep.png":
            with Image.open(io.BytesIO(content)) as before:
                pixels = np.asarray(before.convert("RGB"))
            after = Image.open(io.BytesIO(stored))
            assert after.format == "PNG"
            np.testing.assert_array_equal(np.asarray(after), pixels, name)
    lines = report(tmp_path, "reencoded")
    assert {x["path"] for x in lines} == {
        f"a/{n}" for n, k in KINDS.items() if not k[1]
    }
    builder = built(tmp_path)
    assert len(list(builder.as_data_source("train"))) == len(KINDS)  # TFDS decodes all
    deep = Image.open(io.BytesIO(read["train/a/deep.png"][0]))
    wanted = np.round(np.arange(0, 65536, 16) / 257).reshape(64, 64)
    np.testing.assert_array_equal(np.asarray(deep)[..., 0], wanted)
