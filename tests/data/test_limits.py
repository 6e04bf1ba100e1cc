"""Files that are made to fill the machine, or to keep it busy for ever."""

import bz2
import gzip
import io
import lzma
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.data.prepared import encoded, folder, prepare
from tests.formats import drawn, files
from vit_jax import limits
from vit_jax.checkpoints.formats.opening import open_checkpoint
from vit_jax.data.sources import idx, layout, npz, open_source
from vit_jax.errors import UserError

MUCH = 4 * 2**20  # zeros, of which 4 kB are left when they are compressed


@pytest.fixture(autouse=True)
def small_slack(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what fills a machine can be small."""
    monkeypatch.setattr(limits, "ARCHIVE_SLACK", 2**20)


def test_an_npz_archive_of_zeros(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    images = np.zeros((MUCH // 64, 8, 8), np.uint8)
    np.savez_compressed(path, x=images, y=np.arange(len(images)) % 2)
    with pytest.raises(UserError, match="over 200 times as many"):
        npz.open_npz(str(path), "train")
    np.savez(path, x=images, y=np.arange(len(images)) % 2)  # as large as it claims
    assert len(npz.open_npz(str(path), "train")) == len(images)


def test_an_idx_file_of_zeros(tmp_path: Path) -> None:
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    shape = (MUCH // 64, 8, 8)
    with gzip.open(path, "wb") as file:
        file.write(struct.pack(">HBB3I", 0, 8, 3, *shape) + bytes(MUCH))
    with pytest.raises(UserError, match="over 200 times as many"):
        idx.read_idx(str(path), ndim=3)


def test_what_is_larger_than_all_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, path = np.zeros((100, 32, 32), np.uint8), tmp_path / "images"
    header = struct.pack(">HBB3I", 0, 8, 3, *images.shape)
    path.write_bytes(header + images.tobytes())
    assert (idx.read_idx(str(path), ndim=3) == images).all()
    monkeypatch.setattr(os, "sysconf", lambda name: 2**8)  # pages, and bytes of each
    with pytest.raises(UserError, match=r"it takes 0\.0 GiB, and this machine has"):
        idx.read_idx(str(path), ndim=3)


@pytest.mark.parametrize(
    "ending, compress",
    [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)],
)
def test_a_compressed_tar_of_zeros(
    tmp_path: Path, ending: str, compress: Callable[[bytes], bytes]
) -> None:
    path, file = tmp_path / f"s.tar.{ending}", io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        info = tarfile.TarInfo("a/0.png")
        info.size = MUCH
        tar.addfile(info, io.BytesIO(bytes(MUCH)))
    path.write_bytes(compress(file.getvalue()))
    with pytest.raises(UserError, match="over 200 times as many"):
        prepare(tmp_path, f"train={path}")
    assert not list((tmp_path / "data").rglob("*.tar*"))


@pytest.mark.parametrize("line", [b"x.png,a,train\n", b"x" * 99])
def test_a_compressed_table_of_the_same(
    tmp_path: Path, line: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "l.csv.gz"
    with gzip.open(path, "wb") as file:
        file.write(b"path,label,split\n" + line * (MUCH // len(line)))
    with pytest.raises(UserError, match="times as many"):
        prepare(tmp_path, str(path))
    monkeypatch.setattr(limits, "LINE", 2**18)
    with pytest.raises(UserError, match=r"times as many|line 2 has 262,144 characters"):
        prepare(tmp_path, str(path))


def test_links_that_lead_to_the_same_folder_many_times(tmp_path: Path) -> None:
    """Two in each of 40 folders to the next: 2^40 ways to the last one."""
    folder(tmp_path, {f"train/{name}/0.png": encoded(0, "PNG") for name in "ab"})
    for i in range(40):
        (tmp_path / f"train/a/{i}").mkdir()
    for i in range(39):
        for link in "xy":
            (tmp_path / f"train/a/{i}/{link}").symlink_to(tmp_path / f"train/a/{i + 1}")
    found, left_out = layout.images(str(tmp_path / "train/a"))
    assert found == ["0.png"]
    assert left_out == {layout.LINK_AGAIN: 78}
    source = open_source(name="folder", data_dir=str(tmp_path), split="train")
    assert "78 links to a folder that is read already" in source.notes[0]


def test_a_folder_is_found_by_the_first_of_its_links(tmp_path: Path) -> None:
    """Whatever order the system lists them in; all that is no link comes first."""
    folder(tmp_path, {"c/deep/0.png": b"", "elsewhere/1.png": b""})
    for link, target in (("z", "c/deep"), ("b", "elsewhere"), ("a", "elsewhere")):
        (tmp_path / "c" / link).symlink_to(tmp_path / target)
    found, left_out = layout.images(str(tmp_path / "c"))
    assert found == ["a/1.png", "deep/0.png"]
    assert left_out == {layout.LINK_AGAIN: 2}


@pytest.mark.parametrize("name", ["x.tar", "x.parquet", "x.jpg"])
def test_pipes_in_folders_are_not_waited_for(tmp_path: Path, name: str) -> None:
    (tmp_path / "s").mkdir()
    os.mkfifo(tmp_path / "s" / name)
    with pytest.raises(UserError, match=r"no regular file|no images"):
        prepare(tmp_path, f"train={tmp_path}/s")


def test_pipes_in_tables_are_listed(tmp_path: Path) -> None:
    folder(tmp_path / "t", {"0.png": encoded(0, "PNG")})
    os.mkfifo(tmp_path / "t/1.png")
    table = tmp_path / "t/l.csv"
    rows = ("0.png,a", "1.png,b", "/dev/zero,b", "/proc/kmsg,b")
    table.write_text("\n".join(("path,label", *rows)) + "\n")
    with pytest.raises(UserError, match="3 images do not decode"):
        prepare(tmp_path, f"train={table}")


@pytest.mark.parametrize(
    "index, message",
    [
        ("{}", "no weight_map"),
        ('{"weight_map": null}', "no weight_map"),
        ('{"weight_map": []}', "no weight_map"),
        ('{"weight_map": {"a": []}}', "outside its directory"),
        ('{"weight_map": {"a": 1}}', "outside its directory"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "outside its directory"),
    ],
)
def test_an_index_of_weights_that_is_none(
    tmp_path: Path, index: str, message: str
) -> None:
    names = drawn.fixture_names()
    name = next(n for n in names if "model_type" in str(drawn.fixture(n)))
    path = files.of_fixture(name, tmp_path)
    (path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=message):
        open_checkpoint(path)


HEADER = "{'descr': '|u1', 'fortran_order': False, 'shape': (%s), }\n"


@pytest.mark.parametrize(
    "header",
    ["{'descr': '|u1', 'shape': (2,", "no header", HEADER % "2**60,", HEADER % "-1,"],
)
@pytest.mark.parametrize("magic", [b"\x93NUMPY\x01\0", b"\x93NUMPY\x09\0", b""])
def test_arrays_that_are_none(tmp_path: Path, header: str, magic: bytes) -> None:
    path = tmp_path / "a.npz"
    text = header.replace("2**60", str(2**60)).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("x_train", "y_train"):
            length = struct.pack("<H", len(text)) if magic else b""
            archive.writestr(f"{name}.npy", magic + length + text)
    with pytest.raises(UserError, match=r"cannot be read|no array"):
        npz.open_npz(str(path), "train")
