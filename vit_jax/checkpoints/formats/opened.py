"""Opening a checkpoint of any format, and reading its weights as our parameters."""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from vit_jax import models
from vit_jax.checkpoints.formats.inferred import Fields
from vit_jax.checkpoints.formats.layouts import Entry, Shape
from vit_jax.checkpoints.formats.tensors import Tensors
from vit_jax.errors import UserError
from vit_jax.preprocessing import Preprocessing
from vit_jax.sharding import path_name
from vit_jax.state import abstract_params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """A checkpoint whose index has been read, and its weights not.

    Attributes:
      path: as given.
      format: "npz", "big_vision", "timm" or "huggingface".
      model: keywords of `models.create`.
      image_size: (height, width) that the parameters are for.
      resolution: (height, width) of the images that it is used with: as was asked for,
        else what its processor makes. Position embeddings are resampled for it.
      posemb: how, as its own library does; see `position_embeddings.resample`.
      preprocessing: of the images, as it is written; None where it does not say.
      label_names: of the classes; None where it does not say.
      loss: "sigmoid_xent" where it says that classes do not exclude each other.
      tensors: of the network in it, by the names that it gives them.
      beside: other tensors in the same dict of the file.
      entries: what maps to what, by their names. Each of our parameters stands once.
      missing: our parameters that the file does not have.
      left_over: names of the file that no parameter of ours takes.
      ignored: names that are known to be no part of the network.
      said: what was chosen of the file, left out or assumed; for the user.
    """

    path: Path
    format: str
    model: Fields
    image_size: tuple[int, int]
    resolution: tuple[int, int]
    posemb: Literal["linear", "cubic", "cubic_no_antialias"]
    preprocessing: Preprocessing | None
    label_names: tuple[str, ...] | None
    loss: Literal["softmax_xent", "sigmoid_xent"]
    tensors: Tensors
    beside: Tensors
    entries: dict[str, Entry]
    shapes: dict[str, Shape]
    missing: tuple[str, ...]
    left_over: tuple[str, ...]
    ignored: tuple[str, ...]
    said: tuple[str, ...]

    def check_complete(self, allow: Collection[str] = ()) -> None:
        """Refuses what is missing or left over.

        Args:
          allow: patterns (`re.fullmatch`) of names to allow: theirs that are left over,
            ours of biases that are missing. What else is missing has no substitute.

        Raises:
          UserError: that names the first few.
        """
        missing = [
            n for n in self.missing if not (_is_bias(n) and matches_any(allow, n))
        ]
        if missing:
            advice = ""
            if all(map(_is_bias, missing)):
                advice = (
                    "; if it was trained without these biases, allow their names, and "
                    "they are zeros"
                )
            raise UserError(
                f"{self.path} lacks {_first_of(missing)}: it may be incomplete, or of "
                f"another model{advice}"
            )
        left_over = [n for n in self.left_over if not matches_any(allow, n)]
        if left_over:
            raise UserError(
                f"{self.path} has, and the model has no place for, "
                f"{_first_of(left_over)}: it may be of another model; to go on all the "
                "same, allow these names"
            )

    def read(
        self,
        *,
        wanted: Collection[str] | None = None,
        progress: Callable[[int, int], None] | None = None,
        convert: Callable[[str, np.ndarray], Any] = lambda _, array: array,
    ) -> dict[str, Any]:
        """The parameters by path, float32, read one array after the other.

        Args:
          wanted: our paths; default all.
          progress: called with the bytes read and the bytes to read.
          convert: applied to each array as soon as it is read, so that two copies of
            all never exist at the same time.

        Raises:
          UserError: for an array of a wrong shape, not of numbers, or not finite.

        Biases that are missing are zeros: a layer without one computes the same.
        """
        entries = [
            entry
            for name, entry in self.entries.items()
            if name in self.tensors
            and (wanted is None or any(path in wanted for path in entry.ours))
        ]
        total = sum(_bytes(self.tensors, entry) for entry in entries)
        done, params = 0, {}
        for entry in entries:
            for path, array in self._read_entry(entry).items():
                params[path] = convert(path, array)
            done += _bytes(self.tensors, entry)
            if progress is not None:
                progress(done, total)
        for path in filter(_is_bias, self.missing):
            if wanted is None or path in wanted:
                params[path] = convert(path, np.zeros(self.shapes[path], np.float32))
        return params

    def _read_entry(self, entry: Entry) -> dict[str, np.ndarray]:
        tensor = self.tensors[entry.theirs]
        shapes = [self.shapes[path] for path in entry.ours]
        expected = entry.layout.shape(shapes)
        if tensor.shape != expected:
            raise UserError(
                f"{self.path}: {entry.theirs} has shape {list(tensor.shape)}; this "
                f"model's is {list(expected)}"
            )
        if tensor.dtype.kind not in "fV" and tensor.dtype.name != "bfloat16":
            raise UserError(
                f"{self.path}: {entry.theirs} is of {tensor.dtype}, not of numbers "
                "with a fraction"
            )
        array = tensor.read().astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            bad = int(array.size - np.isfinite(array).sum())
            raise UserError(
                f"{self.path}: {entry.theirs} has {bad:,} values of {array.size:,} "
                "that are not finite (nan or infinity): its training has failed"
            )
        arrays = entry.layout.read(array, shapes)
        return {
            path: np.ascontiguousarray(part)
            for path, part in zip(entry.ours, arrays, strict=True)
        }

    def table(self) -> list[tuple[str, str, str]]:
        """What maps to what: their name, its shape, and our paths or what happens."""
        rows = []
        for name, tensor in (*self.tensors.items(), *self.beside.items()):
            shape = str(list(tensor.shape))
            if name in self.entries:
                rows.append((name, shape, ", ".join(self.entries[name].ours)))
            else:
                place = "ignored" if name in self.ignored else "LEFT OVER"
                rows.append((name, shape, place))
        return rows + [("MISSING", str(list(self.shapes[p])), p) for p in self.missing]


def _is_bias(path: str) -> bool:
    return path.endswith("/bias")


def matches_any(patterns: Collection[str], name: str) -> bool:
    """Whether one of the patterns is of all of the name."""
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _first_of(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Paths such as "head/bias" as a tree of dicts.

    >>> nest({"head/bias": 1, "head/kernel": 2, "cls": 3})
    {'head': {'bias': 1, 'kernel': 2}, 'cls': 3}
    """
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = leaf
    return tree


def flatten(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by path; the inverse of `nest`.

    >>> flatten({"head": {"bias": 1, "kernel": 2}, "cls": 3})
    {'cls': 3, 'head/bias': 1, 'head/kernel': 2}
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): leaf for path, leaf in leaves}


def _bytes(tensors: Tensors, entry: Entry) -> int:
    tensor = tensors[entry.theirs]
    return int(np.prod(tensor.shape, dtype=np.int64)) * tensor.dtype.itemsize


def shapes_of(
    fields: Mapping[str, Any], image_size: tuple[int, int]
) -> dict[str, Shape]:
    """The shapes of a model's parameters by path, layers in a loop."""
    model = models.create(**models.looped(dict(fields)))
    tree = abstract_params(model, (*image_size, 3))
    return {path: leaf.shape for path, leaf in flatten(tree).items()}
