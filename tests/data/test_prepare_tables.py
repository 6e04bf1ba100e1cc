"""CSV and Parquet files as people's programs write them; bad ones are one message."""

import csv
import gzip
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.data.prepared import encoded, folder, prepare, records, tar
from vit_jax.data.prepare import __main__ as command
from vit_jax.data.sources.folder import open_folder
from vit_jax.errors import UserError

HEADER = ("path", "label", "split")
ROWS = [(f"{i}.png", ("käfer", "b")[i % 2], "train") for i in range(4)]


def images(root: Path, n: int = 4) -> None:
    folder(root, {f"{i}.png": encoded(i, "PNG") for i in range(n)})


def table(path: Path, rows: Any = ROWS, header: Any = HEADER, **how: Any) -> str:
    """Written by Python's csv module."""
    images(path.parent)
    encoding = how.pop("encoding", "utf-8")
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", newline="", encoding=encoding) as file:
        writer = csv.writer(file, **how)
        writer.writerows([header, *rows])
    return str(path)


@pytest.mark.parametrize(
    "name, how",
    [
        ("l.csv", {}),
        ("l.csv", {"delimiter": ";"}),
        ("l.tsv", {"delimiter": "\t"}),
        ("l.csv", {"encoding": "utf-8-sig"}),
        ("l.csv", {"encoding": "utf-16"}),
        ("l.csv", {"quoting": csv.QUOTE_ALL, "lineterminator": "\n"}),
        ("l.csv.gz", {}),
    ],
)
def test_whatever_wrote_it(tmp_path: Path, name: str, how: dict[str, Any]) -> None:
    prepare(tmp_path, table(tmp_path / "t" / name, **how))
    names = ["b", "käfer"]
    found = {n: names[label] for n, (_, label) in records(tmp_path).items()}
    assert found == {f"train/{n}": label for n, label, _ in ROWS}


def refused(tmp_path: Path, *arguments: str) -> str:
    with pytest.raises(UserError) as error:
        prepare(tmp_path, *arguments)
    return str(error.value)


@pytest.mark.parametrize(
    "row, column, value, message",
    [
        (1, 2, "", 'line 3: column "split" is empty'),
        (1, 0, "", 'line 3: column "path" is empty'),
        (2, 0, "0.png", "lines 2 and 4 are of one image, 0.png: give each one row"),
        (0, 2, "te[:1]st", "'te[:1]st' cannot be the name of a split"),
        (0, 1, "a\nb", r"the name of the class 'a\nb' has a line break"),
    ],
)
def test_cells_are_named_by_line_and_column(
    tmp_path: Path, row: int, column: int, value: str, message: str
) -> None:
    rows = [list(row) for row in ROWS]
    rows[row][column] = value
    assert message in refused(tmp_path, table(tmp_path / "t" / "l.csv", rows))


def test_other_encodings_are_named_with_the_line(tmp_path: Path) -> None:
    path = table(tmp_path / "t" / "l.csv", encoding="latin-1")
    message = refused(tmp_path, path)
    assert f"{path}, line 2 (byte 0xe4) is not UTF-8" in message
    assert "iconv -f latin1 -t utf-8" in message


def test_a_row_with_too_few_cells(tmp_path: Path) -> None:
    path = table(tmp_path / "t" / "l.csv", [*ROWS, ("9.png", "b")])
    assert "line 6: 2 cells, but the first line names 3" in refused(tmp_path, path)


@pytest.mark.parametrize("text", ['a.png,"b,train\n', "a\0.png,b,train\n"])
def test_what_the_csv_module_refuses_has_its_line(tmp_path: Path, text: str) -> None:
    path = Path(table(tmp_path / "t" / "l.csv"))
    path.write_text("path,label,split\n" + text)
    assert f"{path}, line 2: " in refused(tmp_path, str(path))


def test_a_field_of_any_length_is_no_traceback(tmp_path: Path) -> None:
    rows = [("x" * 200_000, "b", "train")]
    assert "line 2: field larger" in refused(
        tmp_path, table(tmp_path / "t" / "l.csv", rows)
    )


def test_a_table_of_pixels_lists_few_columns(tmp_path: Path) -> None:
    header = ["label", *(f"pixel{i}" for i in range(784))]
    message = refused(
        tmp_path, table(tmp_path / "t" / "l.csv", [range(785)], header), "train="
    )
    assert len(message) < 300


@pytest.mark.parametrize("label", ["2000000000", "10000000000"])
def test_identifiers_are_no_numbers_of_classes(tmp_path: Path, label: str) -> None:
    rows = [("0.png", "0", "train"), ("1.png", label, "train")]
    message = refused(tmp_path, table(tmp_path / "t" / "l.csv", rows))
    assert f"label {label} is too large for the number of a class" in message
    lines = tmp_path / "labels.txt"
    lines.write_text(f"0\n{label}\n")
    folder(tmp_path / "flat", {f"{i}.png": encoded(i, "PNG") for i in range(2)})
    source = f"train={tmp_path}/flat"
    assert f"label {label} is too" in refused(tmp_path, source, f"--labels={lines}")


def test_an_empty_separator_is_no_separator() -> None:
    with pytest.raises(UserError, match="--label_separator="):
        command.parse(["a.csv", "--data_dir=d", "--name=n", "--label_separator="])


@pytest.mark.parametrize("name", ["l.csv", "x.tar", "x.parquet"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    assert "is no regular file" in refused(tmp_path, f"train={tmp_path}/{name}")


def test_devices_and_pipes_are_no_images(tmp_path: Path) -> None:
    path = tmp_path / "t" / "l.csv"
    rows = [*ROWS, ("/dev/zero", "b", "train"), ("pipe.png", "b", "train")]
    source = table(path, rows)
    os.mkfifo(path.parent / "pipe.png")
    said = prepare(tmp_path, source, "--on_bad=skip")
    assert any(line.startswith("2 images do not decode") for line in said)


# Parquet. --------------------------------------------------------------------------


def as_parquet(path: Path, labels: Any, metadata: dict[bytes, bytes] | None) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": encoded(i, "PNG"), "path": None} for i in range(len(labels))]
    found = pa.table({"image": cells, "label": labels})
    parquet.write_table(found.replace_schema_metadata(metadata), path)
    return f"train={path}"


@pytest.mark.parametrize(
    "labels, message",
    [
        ([0.0, float("nan")], "row 1 has no label (nan)"),
        ([{"a": 1}, {"a": 2}], "row 0: the label is \"{'a': 1}\""),
        ([0, 2_000_000_000], "label 2000000000 is too large"),
        ([0, -1], "row 1 has no label (-1)"),
    ],
)
def test_labels_that_are_none(tmp_path: Path, labels: Any, message: str) -> None:
    source = as_parquet(tmp_path / "x.parquet", labels, None)
    assert message in refused(tmp_path, source)


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"info": {"features": {}}}'])
def test_a_schema_of_another_kind_says_nothing(tmp_path: Path, text: bytes) -> None:
    source = as_parquet(tmp_path / "x.parquet", [0.0, 1.0], {b"huggingface": text})
    prepare(tmp_path, source)
    assert sorted(label for _, label in records(tmp_path).values()) == [0, 1]


# Folders and tar files. ------------------------------------------------------------


def test_links_in_a_tar_file_are_followed(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    tar(path, {f"a/{i}.png": encoded(i, "PNG") for i in range(3)})
    with tarfile.open(path, "a") as file:
        for name, kind, target in (
            ("b/soft.png", tarfile.SYMTYPE, "../a/0.png"),
            ("b/softer.png", tarfile.SYMTYPE, "soft.png"),
            ("b/hard.png", tarfile.LNKTYPE, "a/1.png"),
            ("b/gone.png", tarfile.SYMTYPE, "../../elsewhere.png"),
            ("b/loop.png", tarfile.SYMTYPE, "loop.png"),
            ("c", tarfile.SYMTYPE, "a"),
            ("a/pipe.png", tarfile.FIFOTYPE, ""),
            ("a/disk.png", tarfile.CHRTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            file.addfile(member)
    said = prepare(tmp_path, f"train={path}")
    (left_out,) = (line for line in said if line.startswith("Left out"))
    for what in (
        *("2 links to no file", "1 links to folders of a tar file"),
        "2 pipes or devices",
    ):
        assert what in left_out
    found = {name: content for name, (content, _) in records(tmp_path).items()}
    assert len(found) == 6
    assert found["train/b/softer.png"] == found["train/a/0.png"]
    assert found["train/b/hard.png"] == found["train/a/1.png"]


def test_what_class_tars_lack_is_counted(tmp_path: Path) -> None:
    inner = tmp_path / "a.tar"
    tar(inner, {"0.png": encoded(0, "PNG"), "notes.txt": b"x", "._0.png": b"x"})
    with tarfile.open(inner, "a") as file:
        for name, target in (("1.png", "0.png"), ("2.png", "../elsewhere.png")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            file.addfile(member)
    tar(tmp_path / "whole.tar", {"a.tar": inner.read_bytes()})
    with tarfile.open(tmp_path / "whole.tar", "a") as file:
        member = tarfile.TarInfo("b.tar")
        member.type, member.linkname = tarfile.SYMTYPE, "/elsewhere/b.tar"
        file.addfile(member)
    said = prepare(tmp_path, f"train={tmp_path}/whole.tar")
    (left_out,) = (line for line in said if line.startswith("Left out"))
    assert "2 links to no file" in left_out and "1 .txt" in left_out
    assert sorted(records(tmp_path)) == ["train/a/0.png", "train/a/1.png"]


def test_dangling_links_and_loops_in_a_folder_are_counted(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    folder(
        root, {f"train/{c}/{i}.png": encoded(i, "PNG") for c in "ab" for i in (0, 1)}
    )
    (root / "train" / "a" / "gone.png").symlink_to("nowhere.png")
    (root / "train" / "b" / "again").symlink_to(root)  # not the images of class a
    os.mkfifo(root / "train" / "b" / "pipe.png")
    said = prepare(tmp_path, str(root))
    (left_out,) = (line for line in said if line.startswith("Left out"))
    for kind in ("links to no file", "pipes or devices", "links to a folder above"):
        assert f"1 {kind}" in left_out
    names = [f"train/{c}/{i}.png" for c in "ab" for i in (0, 1)]
    assert sorted(records(tmp_path)) == names


NESTED = (
    *("train/a/1.png", "train/a/2024/may/2.png", "train/b/x.jpg/3.png"),
    *("test/a/deep/4.png", "test/b/5.png"),
)


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_images_are_found_at_any_depth_below_a_class(kind: str, tmp_path: Path) -> None:
    """Those that data.name=folder finds, under the same classes."""
    files = {name: encoded(i, "PNG") for i, name in enumerate(NESTED)}
    root = folder(tmp_path / "photos", files)
    others = ("train/a/2024/notes.txt", "train/b/x.jpg/.hidden.png")
    for name in (*others, "train/__MACOSX/a/6.png"):
        (Path(root) / name).parent.mkdir(parents=True, exist_ok=True)
        (Path(root) / name).write_bytes(b"")
    if kind == "tar":
        path = tmp_path / "photos.tar"
        tar(path, {f"photos/{name}": content for name, content in files.items()})
        prepare(tmp_path, str(path))
    else:
        said = prepare(tmp_path, root)
        assert "Left out 2 files: 1 .txt, 1 hidden" in said
    found = records(tmp_path)
    assert {name: content for name, (content, _) in found.items()} == files
    for split in ("train", "test"):
        source = open_folder(root, split)
        labels = {
            source.describe(i).removeprefix(f"{root}/"): int(source.labels()[i])
            for i in range(len(source))
        }
        assert labels == {
            name: label for name, (_, label) in found.items() if name.startswith(split)
        }


def test_folders_beside_loose_images_are_counted(tmp_path: Path) -> None:
    files = {f"{i}.png": encoded(i, "PNG") for i in range(3)}
    root = folder(tmp_path / "photos", {**files, "more/3.png": encoded(3, "PNG")})
    (tmp_path / "labels.txt").write_text("".join(f"{i}.png a\n" for i in range(3)))
    flag = f"--labels={tmp_path / 'labels.txt'}"
    said = prepare(tmp_path, f"train={root}", flag)
    assert any("1 folders beside images that lie in none" in line for line in said)
    assert len(records(tmp_path)) == 3


def test_a_folder_that_is_no_split_is_asked_about(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    folder(root, {f"images/{c}/0.png": encoded(1, "PNG") for c in "ab"})
    message = refused(tmp_path, str(root))
    assert f"train={root}/images" in message and "none is a split" in message
    for name in ("Training", "validation", "train2017", "my-test"):
        (root / "images").rename(root / name)
        prepare(tmp_path, str(root), name=name.lower().replace("-", "_"))
        (root / name).rename(root / "images")


def test_a_class_whose_name_is_not_utf8_is_named_first(tmp_path: Path) -> None:
    for c in (b"caf\xe9", b"tee"):
        folder = tmp_path / "lat" / "train" / os.fsdecode(c)
        folder.mkdir(parents=True)
        (folder / "0.png").write_bytes(encoded(0, "PNG"))
    message = refused(tmp_path, str(tmp_path / "lat"))
    assert r"b'caf\xe9' is not UTF-8" in message
    message.encode()
    assert not list((tmp_path / "data").rglob("*array_record*"))


def test_a_number_of_thousands_of_digits(tmp_path: Path) -> None:
    """Python itself refuses to read it."""
    rows = [("0.png", "0", "train"), ("1.png", "9" * 10_000, "train")]
    message = refused(tmp_path, table(tmp_path / "t" / "l.csv", rows))
    assert f"label {'9' * 20}... is too large for the number of a class" in message


def parquet_file(path: Path, labels: list[Any], names: Any = None) -> str:
    """As Hugging Face's `datasets` writes it, with the names of classes or without."""
    cells = [{"bytes": encoded(i, "PNG"), "path": f"{i}.png"} for i in range(9)]
    found = pa.table({"image": cells[: len(labels)], "label": labels})
    if names is not None:
        feature = {"label": {"_type": "ClassLabel", "names": names}}
        told = json.dumps({"info": {"features": feature}})
        found = found.replace_schema_metadata({"huggingface": told})
    parquet.write_table(found, path)
    return f"train={path}"


@pytest.mark.parametrize(
    "labels, names, message",
    [
        ([], None, "has no rows"),
        ([0, 1, 2], ["a", "b"], "has label 2, and its schema names 2 classes, from 0"),
        ([0, 1], ["a", "a"], "class 'a' is named twice"),
        ([0, 1.5], None, "the label is '1.5'; expected the number or the name"),
        ([0, 1e300], None, r"label 10000000000000000525... is too large"),
        ([{"a": 1}], None, "the label is \"{'a': 1}\"; expected the number"),
        ([0.0, float("nan")], None, "row 1 has no label"),
    ],
)
def test_labels_of_parquet_that_are_none(
    tmp_path: Path, labels: list[Any], names: Any, message: str
) -> None:
    path = parquet_file(tmp_path / "t.parquet", labels, names)
    assert message in refused(tmp_path, path)


@pytest.mark.parametrize("names", ["ab", [1, 2], [None, None], {}, 7])
def test_names_of_parquet_that_are_none(tmp_path: Path, names: Any) -> None:
    """The numbers are all that is known."""
    prepare(tmp_path, parquet_file(tmp_path / "t.parquet", [1, 0], names))
    written = tmp_path / "data/mine/1.0.0"
    (labels,) = written.glob("label.labels.txt")
    assert labels.read_text().split() == ["0", "1"]
