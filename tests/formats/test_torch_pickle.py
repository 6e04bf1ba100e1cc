"""Pickles are interpreted: PyTorch's rightly, all others without harm."""

import argparse
import collections
import contextlib
import io
import pickle
import struct
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vit_jax.checkpoints.formats import torch_pickle
from vit_jax.checkpoints.formats.torch_pickle import GARBLED, Named, load


def read(data: bytes, **functions: Any) -> Any:
    return load(
        io.BytesIO(data),
        functions={"collections.OrderedDict": lambda *_: {}, **functions},
        persistent=lambda name: ("kept", name),
    )


class Odd:
    """With a state, and called with arguments when it is unpickled."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        return Odd, (self.value,), {"state": 1}


class OddDict(dict):
    pass


VALUE = {
    "text": "größe",
    "long": "x" * 300,
    "numbers": (1, 255, 256, 65536, -1, 2**31, -(2**80), 2**3000, 1.5, True, False),
    "none": None,
    "bytes": b"abc",
    "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
    "list": [1, [2], {"a": 3}],
    "many": list(range(3000)),
    "dicts": {f"{i}": i for i in range(3000)},
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_values_as_pickle_reads_them(protocol: int) -> None:
    value = {**VALUE, "again": VALUE["list"]}
    if protocol == 2:
        del value["bytes"]  # Python 2 had none: a call of a codec
    assert read(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_objects_are_names(protocol: int) -> None:
    state = collections.OrderedDict(a=1)
    setattr(state, "_metadata", {"version": 1})  # noqa: B010  as PyTorch's
    value = {
        "namespace": argparse.Namespace(a=1),
        "path": Path("/x"),
        "set": {1, 2},
        "frozenset": frozenset({1}),
        "scalar": np.float64(1),
        "array": np.arange(3),
        "type": np.float32,
        "odd": Odd(3),
        "dict": OddDict(a=1),
        "function": struct.pack,
        "state": state,
        "keys": {1: 2, (1, 2): 3, None: 4, "a": 5},
        "last": "here",
    }
    found = read(pickle.dumps(value, protocol))
    assert list(found) == list(value)
    assert found["namespace"].name == "argparse.Namespace"
    assert found["odd"].name == f"{__name__}.Odd"
    assert found["set"].name.endswith(".set")
    names = [v for v in found.values() if isinstance(v, Named)]
    assert len(names) == len(value) - 3
    assert found["state"] == {} or found["state"] == {"a": 1}
    assert found["keys"] == {"a": 5} and found["last"] == "here"


def test_nothing_is_imported_or_called(tmp_path: Path) -> None:
    (tmp_path / "evil_module.py").write_text("raise SystemExit('it was imported')")
    marker = tmp_path / "marker"
    sys.path.insert(0, str(tmp_path))
    try:
        for call in (
            b"cevil_module\nf\n)R.",
            b"cevil_module\nf\n)\x81.",
            b"(cevil_module\nf\no.",
            b"\x8c\x0bevil_module\x8c\x01f\x93)R.",
            b"cos\nmkdir\n(X" + struct.pack("<I", len(str(marker))),
        ):
            data = call if call.endswith(b".") else call + str(marker).encode() + b"tR."
            assert isinstance(read(b"\x80\x04" + data), Named)
    finally:
        sys.path.remove(str(tmp_path))
    assert "evil_module" not in sys.modules and not marker.exists()
    # An object of a class that is there: its methods are not asked.
    found = read(b"\x80\x02cpathlib\nPath\n)\x81}X\x01\x00\x00\x00aK\x01sb.")
    assert isinstance(found, Named)


def test_what_takes_no_more_memory_than_it_has() -> None:
    """An index of the memo, a length, a number of steps: none is taken on trust."""
    bombs = [
        b"\x80\x02Nr" + struct.pack("<I", index) + b"."
        for index in (0x0FFFFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
    ]
    bombs += [
        b"\x80\x04" + opcode + struct.pack("<I", 2**31 - 1) + b"x"
        for opcode in (b"X", b"B", b"T", b"\x8b")
    ]
    bombs += [
        b"\x80\x04" + opcode + struct.pack("<Q", 2**62) + b"x"
        for opcode in (b"\x8d", b"\x8e", b"\x96", b"\x95")
    ]
    bombs += [b"\x80\x02" + b"(" * 100_000, b"\x80\x02]" + b"2" * 100_000]
    bombs += [b"\x80\x02" + b")" * 3 + b"\x85" * 100_000 + b"."]
    tracemalloc.start()
    try:
        for bomb in bombs:
            with contextlib.suppress(*GARBLED):
                read(bomb)
            assert tracemalloc.get_traced_memory()[1] < 32 * 2**20, bomb[:20]
    finally:
        tracemalloc.stop()


def test_a_program_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_pickle, "MAX_STEPS", 1000)
    with pytest.raises(ValueError, match="more than 1,000 steps"):
        read(b"\x80\x02" + b"N0" * 1000 + b"N.")
    monkeypatch.undo()
    # Lists of lists of ... twice each: 2^1000 if they were copied.
    doubling = b"\x80\x02]" + b"2\x86" * 1000 + b"."
    start = time.monotonic()
    read(doubling)
    assert time.monotonic() - start < 60


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"\x80\x02",
        b"a.",
        b"u.",
        b"(u.",
        b"}(NNNu.",
        b"R.",
        b"N)R.",
        b"]]R.",
        b"h\x05.",
        b"t.",
        b"0.",
        b"1.",
        b"K\x01Q.N",
        b"\x93.",
        b"NN\x93.",
        b"cos\nsystem",
        b"c" + b"a" * 5000 + b"\n",
        b"cos\n\x00\n.",
        b"X\xff\xff\xff\xff.",
        b"X\x01\x00\x00\x00\xff.",
        b"\x8a\xff.",
        b"\x82\x01.",  # of the registry of extensions
        b"P1\n.",
        b"I1\n.",
        b"(o.",
        b"b.",
        b"q\x00.",
        b"\x94.",
    ],
)
def test_what_is_garbled(data: bytes) -> None:
    try:
        read(data)
    except GARBLED:
        return
    assert data in (b"K\x01Q.N",)
