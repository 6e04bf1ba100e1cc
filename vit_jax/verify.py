"""What another library computes from a checkpoint, beside what we do.

Needs that library: timm or transformers, and PyTorch with either.
"""

import dataclasses
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.loading import Model

# Both compute in float32, in other orders: more is a difference of meaning.
TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Verified:
    """How far apart two implementations are.

    Attributes:
      library: its name and version.
      images: how many were looked at.
      off: the largest difference of an output.
      largest: the largest output.
    """

    library: str
    images: int
    off: float
    largest: float

    def __str__(self) -> str:
        return (
            f"{self.library} gives the same on {self.images} images: off by at most "
            f"{self.off:.1e} where the largest is {self.largest:.3g}"
        )


def verify(
    model: Model, path: Path, images: np.ndarray, *, timm_name: str | None
) -> Verified:
    """Compares a model of ours with the library that its checkpoint is for.

    Args:
      model: as we read it.
      path: of the checkpoint: a directory of Hugging Face, or of timm, or a file that
        timm reads.
      images: uint8 [n, height, width, 3] as from `model.preprocess`.
      timm_name: of the model in timm, which its files do not say.

    Raises:
      UserError: if the library is not installed, does not know the model, or computes
        something else.
    """
    mean, std = np.asarray(model.mean, np.float32), np.asarray(model.std, np.float32)
    pixels = (images / np.float32(255) - mean) / std
    library, run = _reader(model, path, timm_name)
    theirs = run(pixels.transpose(0, 3, 1, 2))
    ours = np.asarray(model(pixels))
    if theirs.shape != ours.shape:
        raise UserError(
            f"{path}: {library} gives outputs of shape {list(theirs.shape)}, and we of "
            f"{list(ours.shape)}"
        )
    off, largest = float(np.abs(theirs - ours).max()), float(np.abs(theirs).max())
    if not off <= TOLERANCE * largest:
        raise UserError(
            f"{path}: {library} computes something else: off by {off:.2g} where the "
            f"largest is {largest:.3g}. Which GELU, epsilon or number of heads does "
            "this model have? --model.KEY=VALUE says them"
        )
    return Verified(library, len(images), off, largest)


def _reader(
    model: Model, path: Path, timm_name: str | None
) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
    """The library's name, and its model as a function of pixels [n, 3, h, w]."""
    config: dict[str, Any] = {}
    if path.is_dir():
        config = json.loads((path / "config.json").read_text())
    if "model_type" in config:
        transformers = _library("transformers")
        name = config["architectures"][0]
        theirs = getattr(transformers, name).from_pretrained(path)
        return f"transformers {transformers.__version__}", _function(theirs)
    name = timm_name or config.get("architecture")
    if name is None:
        raise UserError(
            f"--verify: {path} does not say which model of timm it is: add --timm=NAME"
        )
    timm = _library("timm")
    file = path / "model.safetensors" if path.is_dir() else path
    classes = model.module.num_classes or 0
    try:
        theirs = timm.create_model(name, num_classes=classes, checkpoint_path=str(file))
    except RuntimeError as error:  # an unknown name, or weights of another shape
        raise UserError(f"--timm={name}: {error}") from error
    return f"timm {timm.__version__}", _function(theirs)


def _library(name: str) -> Any:
    try:
        importlib.import_module("torch")
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"--verify needs {name}, which is not installed: pip install torch {name}"
        ) from error


def _function(theirs: Any) -> Callable[[np.ndarray], np.ndarray]:
    torch = importlib.import_module("torch")

    def run(pixels: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            found = theirs.eval()(torch.from_numpy(np.ascontiguousarray(pixels)))
        if not hasattr(found, "numpy"):  # transformers names its outputs
            has_logits = hasattr(found, "logits")
            found = found.logits if has_logits else found.pooler_output
        return found.numpy()

    return run
