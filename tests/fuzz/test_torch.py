"""Files of `torch.save` with random damage: a UserError or the right tensors."""

import contextlib
import io
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.formats.test_torch_files import FIXTURES, MODEL
from tests.fuzz import mutation
from vit_jax.checkpoints.formats.opening import open_checkpoint
from vit_jax.checkpoints.formats.state_dicts import open_state_dict
from vit_jax.errors import UserError

pytestmark = pytest.mark.slow

# Opcodes that put much on the stack, call, jump about the memo, or end.
OPCODES = (
    b"(.0125BCGHJKMNQRTUXVbcdeghijloqrstu)]}\x80\x81\x82\x84\x85\x86\x87\x88\x8a\x8b"
)
OPCODES += b"\x8c\x8d\x8e\x8f\x90\x91\x92\x93\x94\x95\x96\x97\x98"
SECONDS = 20


def read(path: Path) -> dict[str, np.ndarray] | None:
    """The tensors, or None for a UserError; all else is a failure."""
    message = ""
    try:
        found = open_state_dict([path]).tensors
        arrays = {name: tensor.read() for name, tensor in found.items()}
    except UserError as error:
        message, arrays = str(error), None
    assert message.startswith(str(path)) or arrays is not None
    assert message.isprintable() or not message
    assert len(message) < 2000
    if arrays is not None:
        with contextlib.suppress(UserError):
            open_checkpoint(path, model=MODEL).read()
    return arrays


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].tobytes() == array.tobytes() for name, array in other.items()
    )


def flip(data: bytearray, rng: np.random.Generator) -> None:
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)


def replace(data: bytearray, rng: np.random.Generator) -> None:
    data[rng.integers(len(data))] = rng.choice(list(OPCODES))


def truncate(data: bytearray, rng: np.random.Generator) -> None:
    del data[rng.integers(len(data)) :]


def delete(data: bytearray, rng: np.random.Generator) -> None:
    start = rng.integers(len(data))
    del data[start : start + rng.integers(1, 20)]


def insert(data: bytearray, rng: np.random.Generator) -> None:
    start = rng.integers(len(data))
    numbers = [struct.pack("<I", 2 ** int(rng.integers(32)) - 1), rng.bytes(4)]
    pieces = [bytes([rng.choice(list(OPCODES))]), *numbers]
    data[start:start] = pieces[rng.integers(len(pieces))]


def repeat(data: bytearray, rng: np.random.Generator) -> None:
    start, size = rng.integers(len(data)), rng.integers(1, 60)
    data[start:start] = data[start : start + size]


DAMAGES: tuple[Callable[[bytearray, np.random.Generator], None], ...] = (
    flip,
    replace,
    truncate,
    delete,
    insert,
    repeat,
)


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    found = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        if found:
            DAMAGES[rng.integers(len(DAMAGES))](found, rng)
    return bytes(found)


def with_pickle(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """An archive with another pickle, whole and with right checksums."""
    target = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as source,
        zipfile.ZipFile(target, "w") as archive,
    ):
        for info in source.infolist():
            entry = source.read(info)
            if info.filename.endswith("/data.pkl"):
                entry = change(entry)
            archive.writestr(info.filename, entry)
    return target.getvalue()


def check(use: Callable[[int], dict[str, np.ndarray] | None], keep: Path) -> int:
    """Uses numbers from 0 on, until the time is up; how many gave tensors.

    The first 300 always; `make fuzz` has its own time.
    """
    start = time.monotonic()

    def numbers() -> Iterator[bytes]:
        for i, number in enumerate(mutation.rounds(5000)):
            late = time.monotonic() - start > SECONDS
            if i >= 300 and late and not mutation.SECONDS:
                return
            yield b"%d" % number

    def refusing(number: bytes) -> None:
        if use(int(number)) is None:
            raise UserError("as it should be")

    used, _ = mutation.check(refusing, numbers(), keep)
    return used


@pytest.mark.parametrize("name", ["plain.pth", "averaged.pt", "lightning.ckpt"])
def test_damaged_archives(name: str, tmp_path: Path) -> None:
    """Every entry has a checksum: what is read at all is right."""
    whole = (FIXTURES / name).read_bytes()
    expected, path = read(FIXTURES / name), tmp_path / name
    assert expected

    def use(i: int) -> dict[str, np.ndarray] | None:
        path.write_bytes(damaged(whole, np.random.default_rng(i)))
        found = read(path)
        assert found is None or same(found, expected)
        return found

    assert check(use, tmp_path / "input")


@pytest.mark.parametrize("name", ["plain.pth", "deit.pth", "dino.pth", "compiled.pt"])
def test_damaged_pickles(name: str, tmp_path: Path) -> None:
    """In archives that are whole: no checksum saves the reader."""
    whole, path = (FIXTURES / name).read_bytes(), tmp_path / name

    def use(i: int) -> dict[str, np.ndarray] | None:
        rng = np.random.default_rng(i)
        path.write_bytes(with_pickle(whole, lambda data: damaged(data, rng)))
        return read(path)

    check(use, tmp_path / "input")


def test_damaged_old_files(tmp_path: Path) -> None:
    """Without archives there are no checksums: numbers may differ, nothing else."""
    whole, path = (FIXTURES / "old.pth").read_bytes(), tmp_path / "old.pth"

    def use(i: int) -> dict[str, np.ndarray] | None:
        path.write_bytes(damaged(whole, np.random.default_rng(i)))
        return read(path)

    check(use, tmp_path / "input")
