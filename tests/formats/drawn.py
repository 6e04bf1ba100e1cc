"""Weights that need no file: drawn from their names, the same for every library."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

FIXTURES = Path(__file__).parent / "fixtures"


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A float32 array for a name: around 1 where it scales, else around 0."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    # Names of scales: of LayerNorm and GroupNorm, and LayerScale's.
    around_one = ("norm" in name and name.endswith("weight")) or name.endswith(
        ("scale", "gamma", "lambda1")
    )
    array = rng.normal(size=shape) * 0.2 + around_one
    return array.astype(np.float32)


def draw_all(shapes: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: draw(name, tuple(shape)) for name, shape in shapes.items()}


def images(size: tuple[int, int]) -> np.ndarray:
    """Two normalised images [2, height, width, 3]."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, *size, 3)).astype(np.float32)


def fixture(name: str) -> dict[str, Any]:
    """What another library said: shapes by name, image_size, outputs, and more."""
    return json.loads((FIXTURES / f"{name}.json").read_text())


def fixture_names() -> list[str]:
    return sorted(path.stem for path in FIXTURES.glob("*.json"))
