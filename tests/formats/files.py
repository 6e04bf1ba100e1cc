"""Writes checkpoints as other libraries do; nothing of vit_jax."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from tests.formats import drawn


def safetensors(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """As https://huggingface.co/docs/safetensors describes the format."""
    types = {"float32": "F32", "float16": "F16", "int64": "I64", "bfloat16": "BF16"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": types[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [end, end + array.nbytes],
        }
        end += array.nbytes
    text = json.dumps(header).encode()
    data = b"".join(array.tobytes() for array in arrays.values())
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def index(path: Path, shapes: dict[str, Any]) -> Path:
    """A file with the header of a model of any size, and a hole where weights are."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape, dtype=np.int64))
        offsets = [end, end + size]
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": offsets}
        end += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


def of_fixture(name: str, folder: Path) -> Path:
    """The checkpoint of a fixture, as its library would have written it."""
    record = drawn.fixture(name)
    arrays = drawn.draw_all(record["shapes"])
    if name.startswith("npz-"):
        path = folder / "weights.npz"
        np.savez(path, **arrays)  # type: ignore[arg-type]
        return path
    if name.startswith("timm-") and "config" not in record:
        return safetensors(folder / "model.safetensors", arrays)
    (folder / "config.json").write_text(json.dumps(record["config"]))
    safetensors(folder / "model.safetensors", arrays)
    return folder
