"""Damaged weights, and what is written beside them, are read or refused."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.formats import drawn, files
from tests.fuzz import mutation
from vit_jax.checkpoints.formats.opening import open_checkpoint
from vit_jax.checkpoints.formats.state_dicts import open_state_dict

pytestmark = pytest.mark.slow

ARRAYS = {
    "a/kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
}


def archives(tmp_path: Path) -> list[bytes]:
    """By NumPy."""
    found = []
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(file, **ARRAYS)  # type: ignore[arg-type]
        found.append(file.getvalue())
    return found


def safetensors(tmp_path: Path) -> list[bytes]:
    """As the format's description says."""
    arrays = {"x": np.ones((2, 3), np.float32), "n": np.arange(3)}
    return [files.safetensors(tmp_path / "whole.safetensors", arrays).read_bytes()]


@pytest.mark.parametrize(
    "make, name", [(archives, "a.npz"), (safetensors, "a.safetensors")]
)
def test_files_of_arrays(make: Any, name: str, tmp_path: Path) -> None:
    def use(data: bytes) -> None:
        path = tmp_path / name
        path.write_bytes(data)
        for tensor in open_state_dict([path], named=False).tensors.values():
            assert tensor.read().shape == tensor.shape

    whole = make(tmp_path)
    assert mutation.check(use, iter(whole), tmp_path / "input") == (len(whole), 0)
    used, refused = mutation.check(
        use, mutation.mutations(whole, 3000), tmp_path / "input"
    )
    assert mutation.SECONDS or (used and refused)  # of a few, all may be alike


DIRECTORIES = [
    name for name in drawn.fixture_names() if "config" in drawn.fixture(name)
]


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("name", DIRECTORIES)
def test_directories(name: str, file: str, tmp_path: Path) -> None:
    """Of transformers and timm, with another config.json or processor."""
    folder = files.of_fixture(name, tmp_path)
    path = folder / file
    if file != "config.json":
        path.write_text(json.dumps(PROCESSOR))
    whole = path.read_text()

    def use(data: bytes) -> None:
        path.write_bytes(data)
        opened = open_checkpoint(folder)
        opened.check_complete()

    inputs = (text.encode() for text in mutation.changed(whole, 150))
    mutation.check(use, inputs, tmp_path / "input")
    damaged = mutation.mutations([whole.encode()], 30)
    mutation.check(use, damaged, tmp_path / "input")


PROCESSOR = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "BitImageProcessor",
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 256},
}
