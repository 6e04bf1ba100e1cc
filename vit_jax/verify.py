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

from vit_jax.checkpoints.formats import huggingface_config
from vit_jax.errors import UserError, did_you_mean
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
        # From a file that may be a stranger's: a class that we know, or none.
        names = config.get("architectures")
        name = str(names[0]) if isinstance(names, list) and names else ""
        if name not in huggingface_config.ARCHITECTURES:
            hint = did_you_mean(name, huggingface_config.ARCHITECTURES)
            raise UserError(f'{path}: --verify knows no architecture "{name}"; {hint}')
        theirs = getattr(transformers, name).from_pretrained(path)
        pool = model.module.pool
        return f"transformers {transformers.__version__}", _function(theirs, pool)
    timm = _library("timm")
    if path.is_dir() and timm_name is None:
        theirs = timm.create_model(f"local-dir:{path}", pretrained=True)
        return f"timm {timm.__version__}", _function(theirs, "token")
    name = timm_name or ""
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models())
        raise UserError(f'timm has no model "{name}", see --timm=NAME; {hint}')
    files = [path]
    if path.is_dir():
        files = [path / "model.safetensors", path / "pytorch_model.bin"]
    file = next((file for file in files if file.exists()), files[0])
    theirs = timm.create_model(name, num_classes=model.module.num_classes or 0)
    try:
        timm.models.load_checkpoint(theirs, str(file), weights_only=True)
    except RuntimeError as error:  # weights of another shape, or of other names
        raise UserError(f"--timm={name}: {error}") from error
    return f"timm {timm.__version__}", _function(theirs, "token")


def _library(name: str) -> Any:
    try:
        importlib.import_module("torch")
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"--verify needs PyTorch and {name} ({error}): pip install torch {name}"
        ) from error


def _function(theirs: Any, pool: str) -> Callable[[np.ndarray], np.ndarray]:
    """A PyTorch model in float32; `pool` is what ours does where theirs has no head."""
    torch = importlib.import_module("torch")
    theirs = theirs.float().eval()

    def run(pixels: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            found = theirs(torch.from_numpy(np.ascontiguousarray(pixels)))
        if isinstance(found, torch.Tensor):
            return found.numpy()
        if hasattr(found, "logits"):
            return found.logits.numpy()
        if pool == "map":
            return found.pooler_output.numpy()
        tokens = found.last_hidden_state.numpy()
        return tokens[:, 0] if pool == "token" else tokens.mean(axis=1)

    return run
