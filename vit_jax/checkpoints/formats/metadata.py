"""What vit_jax says of a model beside the weights that it writes for other libraries.

A JSON object, where readers of the format do not look: under "vit_jax" in the
`__metadata__` of a .safetensors file, as the comment of a .npz archive.
"""

import dataclasses
import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from vit_jax import limits
from vit_jax.checkpoints.formats import processors
from vit_jax.checkpoints.formats.containers import broken
from vit_jax.checkpoints.formats.inferred import Fields
from vit_jax.preprocessing import Preprocessing

KEY = "vit_jax"
# Bytes that the comment of an archive may have.
_MAX_COMMENT = 2**16 - 1
_LOSSES = ("softmax_xent", "sigmoid_xent")
# Of training alone: a reader gets the function.
TRAINING = ("dropout", "attention_dropout", "stochastic_depth", "head_bias_init")


@dataclasses.dataclass(frozen=True, kw_only=True)
class About:
    """What a reader must know, and weights do not tell.

    Attributes:
      model: keywords of `models.create`.
      image_size: (height, width).
      preprocessing: of the images.
      label_names: of the classes.
      loss: "softmax_xent" where the classes exclude each other, "sigmoid_xent" where
        they do not.
    """

    model: Fields
    image_size: tuple[int, int]
    preprocessing: Preprocessing
    label_names: tuple[str, ...] | None = None
    loss: Literal["softmax_xent", "sigmoid_xent"] = "softmax_xent"

    def as_text(self) -> str:
        """As JSON."""
        model = {k: v for k, v in self.model.items() if k not in TRAINING}
        return json.dumps({**dataclasses.asdict(self), "model": model})


def add_to_npz(path: Path, about: About) -> bool:
    """Writes into an archive; without the names of classes that are too long for it.

    Returns:
      Whether all of it is there.
    """
    text = about.as_text().encode()
    whole = len(text) <= _MAX_COMMENT
    if not whole:
        text = dataclasses.replace(about, label_names=None).as_text().encode()
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = text
    return whole


def find(path: Path) -> About | None:
    """What a checkpoint says, if vit_jax wrote it.

    Args:
      path: of a file, or of a directory as other libraries write it.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    return read(file) if file.exists() else None


def read(path: Path) -> About | None:
    """What a file that vit_jax wrote says; None of others.

    Args:
      path: of a .safetensors or .npz file that can be opened.

    Raises:
      UserError: if it is there and broken.
    """
    if path.suffix not in (".safetensors", ".npz"):
        return None
    try:
        found = _of_npz(path) if path.suffix == ".npz" else _of_safetensors(path)
    except (OSError, struct.error, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise broken(path, "its header cannot be read") from error
    if found is None:
        return None
    try:
        return _parse(json.loads(found))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise broken(path, f'"{KEY}" in its metadata is none of ours') from error


def _of_safetensors(path: Path) -> str | None:
    with open(path, "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(min(size, limits.HEADER_BYTES)))
    metadata = header["__metadata__"] if "__metadata__" in header else {}
    return metadata[KEY] if KEY in metadata else None


def _of_npz(path: Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        comment = archive.comment
    # Other programs write other comments.
    return comment.decode() if comment.startswith(b'{"model": {"name": ') else None


def _parse(found: Mapping[str, Any]) -> About:
    names, loss = found["label_names"], found["loss"]
    if loss not in _LOSSES:
        raise ValueError(loss)
    height, width = found["image_size"]
    return About(
        model={str(k): _field(v) for k, v in found["model"].items()},
        image_size=(int(height), int(width)),
        preprocessing=processors.of_json(found["preprocessing"]),
        label_names=None if names is None else tuple(str(n) for n in names),
        loss=loss,
    )


def _field(value: Any) -> Any:
    """A field of a model: JSON has no tuples."""
    if isinstance(value, list):
        return tuple(int(x) for x in value)
    if value is not None and not isinstance(value, bool | int | float | str):
        raise TypeError(value)
    return value
