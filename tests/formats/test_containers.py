"""Files of arrays that are broken or hostile: one clear message, nothing executed."""

import contextlib
import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.formats import drawn, files
from vit_jax.checkpoints.formats.containers import open_dicts, write_safetensors
from vit_jax.checkpoints.formats.state_dicts import open_state_dict
from vit_jax.errors import UserError

ARRAYS = {
    "a/kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "c": np.array(7, np.int64),
}


def npz(path: Path, arrays: dict[str, Any] = ARRAYS, save: Any = np.savez) -> Path:
    save(path, **arrays)
    return path


def read_all(path: Path) -> dict[str, np.ndarray]:
    found = open_state_dict([path], named=False)
    return {name: tensor.read() for name, tensor in found.tensors.items()}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_numpy_archives(save: Any, tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", save=save)
    assert_same(read_all(path), ARRAYS)
    tensors = open_state_dict([path], named=False).tensors
    assert tensors["a/kernel"].shape == (3, 4)


def test_safetensors(tmp_path: Path) -> None:
    arrays = {"x": np.ones((2, 3), np.float32), "n": np.arange(3)}
    path = files.safetensors(tmp_path / "a.safetensors", arrays)
    assert_same(read_all(path), arrays)


def test_safetensors_that_we_write_are_as_the_format_says(tmp_path: Path) -> None:
    arrays = {"b": np.float32([[1, 2], [3, 4]]).T, "a": np.zeros((0, 3), np.float32)}  # type: ignore[arg-type]
    path = tmp_path / "a.safetensors"
    shapes = {name: array.shape for name, array in arrays.items()}
    write_safetensors(path, {k: lambda k=k: arrays[k] for k in arrays}, shapes)
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert length % 8 == 0  # so that the arrays are aligned
    header = json.loads(data[8 : 8 + length])
    assert header["__metadata__"] == {"format": "pt"}
    for name, array in arrays.items():
        first, last = header[name]["data_offsets"]
        assert header[name]["dtype"] == "F32"
        found = np.frombuffer(data[8 + length :][first:last], "<f4")
        np.testing.assert_array_equal(found.reshape(header[name]["shape"]), array)


class Storage:
    """A file's bytes, as the pickle of `torch.save` names them."""

    def __init__(self, key: str, size: int) -> None:
        self.key, self.size = key, size


class Global:
    """A class or function by name, without importing it."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


def torch_file(path: Path, tree: bytes, storages: dict[str, bytes]) -> Path:
    """An archive as `torch.save` writes it, around a pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", tree)
        archive.writestr("archive/byteorder", "little")
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", "3\n")
    return path


def tensor(shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """The pickle of {"w": a float32 tensor of storage "0"}, for sizes that lie."""

    def integers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"J" + struct.pack("<i", v) for v in values) + b"t"

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n"
    storage += text("0") + text("cpu") + b"K\x06tQ"
    arguments = b"(" + storage + b"J" + struct.pack("<i", offset)
    arguments += integers(shape) + integers(stride) + b"\x89)t"
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"
    return b"\x80\x02}" + text("w") + rebuilt + b"s."


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def assert_refused(path: Path, message: str) -> None:
    """One message, and no more memory than 32 MB on the way to it."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=message) as caught:
            read_all(path)
        assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(str(path))


def test_nothing_that_is_pickled_is_run(tmp_path: Path) -> None:
    marker = tmp_path / "run"
    evil = np.array([Evil(marker)], dtype=object)
    path = npz(tmp_path / "a.npz", {"x": evil})
    assert_refused(path, "holds pickled objects")
    tree = pickle.dumps({"w": Evil(marker)})
    assert_refused(torch_file(tmp_path / "a.pth", tree, {}), "'w' is of posix.mkdir")
    (tmp_path / "b.bin").write_bytes(tree)  # a bare pickle
    assert_refused(tmp_path / "b.bin", "no archive as torch.save writes it")
    for name in (b"os\nsystem", b"builtins\neval", b"torch\nload", b"torch._utils\nx"):
        tree = b"c" + name + b"\n(X\x01\x00\x00\x00atR."
        message = f"an object of {name.decode()}".replace("\n", ".")
        assert_refused(torch_file(tmp_path / "a.pth", tree, {}), message)
    assert not marker.exists()


def test_claims_of_more_than_the_file_holds(tmp_path: Path) -> None:
    header = {
        "x": {"dtype": "F32", "shape": [2_500_000_000], "data_offsets": [0, 10**10]}
    }
    text = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    assert_refused(path, "x is not as long as its shape")
    path.write_bytes(struct.pack("<Q", 10**10) + text)
    assert_refused(path, "claim a header of 10,000,000,000")
    tree = tensor((10**5, 10**5), (10**5, 1))
    path = torch_file(tmp_path / "a.pth", tree, {"0": bytes(24)})
    assert_refused(path, "reaches past its storage")
    path = torch_file(tmp_path / "a.pth", tensor((10**9,), (0,)), {"0": bytes(24)})
    assert_refused(path, "repeats its storage")
    npy = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        npy, {"descr": "<f4", "fortran_order": False, "shape": (2_500_000_000,)}
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", npy.getvalue())
    assert_refused(tmp_path / "a.npz", "x.npy is not as long as its shape")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": ["F32"]}, r"type \"\['F32'\]\""),
        ({"dtype": None}, "type 'None'"),
        ({"data_offsets": []}, "no list of arrays"),
        ({"data_offsets": [0, 4, 8]}, "no list of arrays"),
        ({"data_offsets": 4}, "no list of arrays"),
        ({"data_offsets": [0.0, 4.0]}, "has type"),
        ({"data_offsets": [-4, 0]}, "has type"),
        ({"shape": [-1]}, "has type"),
        ({"shape": [0, 2**70]}, "has type"),
        ({"shape": "1"}, "has type"),
        ({"shape": {"1": 1}}, "has type"),
        ({"shape": [1] * 100}, "has type"),
    ],
)
def test_headers_of_safetensors_that_cannot_be(
    entry: dict[str, Any], message: str, tmp_path: Path
) -> None:
    header = {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **entry}}
    text = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    assert_refused(path, message)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1,",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}}",
        "  {'descr': '<f4'\n {",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -1)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 2**70)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}",
        "{'descr': ['<f4'], 'fortran_order': False, 'shape': (1,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1," * 100 + ")}",
        "[" * 200,
        "1",
    ],
)
@pytest.mark.filterwarnings("ignore:Reading `.npy`")  # as NumPy 1 wrote it
def test_headers_of_numpy_that_cannot_be(header: str, tmp_path: Path) -> None:
    text = header.encode()
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(4)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", npy)
    assert_refused(tmp_path / "a.npz", "x.npy")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_damage_in_what_is_packed(method: int, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with (
        zipfile.ZipFile(path, "w", method) as archive,
        archive.open("w.npy", "w") as file,
    ):
        np.lib.format.write_array(file, np.random.default_rng(0).normal(size=500))
    whole = path.read_bytes()
    for position in range(30, len(whole) - 100, 37):
        garbled = bytearray(whole)
        garbled[position] ^= 0x55
        path.write_bytes(garbled)
        with pytest.raises(UserError):
            read_all(path)


def test_what_is_no_array_of_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert_refused(tmp_path / "a.npz", "holds 'readme.txt', not arrays by name")


def test_zip_bombs(tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (2**25,)}
        )
        for _ in range(128):
            file.write(bytes(2**20))
    assert (tmp_path / "a.npz").stat().st_size < 200_000
    assert_refused(tmp_path / "a.npz", r"bytes claim to hold 134,217")


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "a/../b", "a\\..\\b"]
)
def test_names_that_are_paths(name: str, tmp_path: Path) -> None:
    array = np.ones(2, np.float32)
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w") as archive,
        archive.open(f"{name}.npy", "w") as file,
    ):
        np.lib.format.write_array(file, array)
    assert_refused(tmp_path / "a.npz", "it names an array")
    path = files.safetensors(tmp_path / "a.safetensors", {name: array})
    assert_refused(path, "it names an array")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth"])
def test_files_that_were_cut_short_or_garbled(suffix: str, tmp_path: Path) -> None:
    """Wherever they are cut, and whichever byte is another."""
    data = np.arange(6, dtype=np.float32)
    path = tmp_path / f"a{suffix}"
    if suffix == ".npz":
        npz(path, {"w": data})
    elif suffix == ".pth":
        path.write_bytes((drawn.FIXTURES / "torch" / "plain.pth").read_bytes())
    else:
        files.safetensors(path, {"w": data})
    whole = path.read_bytes()
    for size in range(0, len(whole), 7 if len(whole) < 2000 else 70):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError):
            read_all(path)
    rng = np.random.default_rng(0)
    for position in rng.integers(len(whole), size=200).tolist():
        garbled = bytearray(whole)
        garbled[position] ^= 0xFF
        path.write_bytes(garbled)
        with contextlib.suppress(UserError):  # no other error, and no crash
            read_all(path)


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        open_dicts(tmp_path / "a.npz")
    (tmp_path / "a.h5").write_bytes(b"")
    with pytest.raises(UserError, match=r"expected a file that ends in \.npz"):
        open_dicts(tmp_path / "a.h5")
    with pytest.raises(UserError, match="there is no such file"):
        open_dicts(tmp_path / "missing.pth")
    (tmp_path / "a.pth").mkdir()
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        open_dicts(tmp_path / "a.pth")
    for start, message in (
        (b"version https://git-lfs.github.com/spec/v1\noid", "pointer of Git LFS"),
        (b"<!DOCTYPE html><html>", "it is a web page"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "it is an HDF5 file"),
        (b"", "was cut short"),
    ):
        (tmp_path / "b.bin").write_bytes(start)
        assert_refused(tmp_path / "b.bin", message)
    (tmp_path / "b.npz").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert_refused(tmp_path / "b.npz", "is broken or was not made")
