"""Opening a checkpoint of any format, and reading its weights as our parameters."""

import dataclasses
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vit_jax import models
from vit_jax.checkpoints.formats import (
    families,
    huggingface,
    metadata,
    published,
    timm,
    timm_config,
)
from vit_jax.checkpoints.formats.inferred import Fields, Inferred
from vit_jax.checkpoints.formats.layouts import Entry, Shape
from vit_jax.checkpoints.formats.state_dicts import StateDict, open_state_dict
from vit_jax.checkpoints.formats.tensors import MAX_HEADER, Tensors, broken
from vit_jax.errors import UserError
from vit_jax.sharding import path_name
from vit_jax.state import abstract_params

# What timm's files may hold that no model of ours has.
_TIMM_IGNORED = (r"mask_token|masked_embed", r"(.*\.)?num_batches_tracked")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a checkpoint's images are prepared: keys of `config.data` and its `eval`.

    Attributes:
      mean: of the channels, in [0, 1].
      std: likewise.
      resize: pixels of the short side before a central crop; None resizes both sides
        to the image size.
      interpolation: of the resizing.
    """

    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    resize: int | None = None
    interpolation: str = "bicubic"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """A checkpoint whose index has been read, and its weights not.

    Attributes:
      path: as given.
      format: "npz", "big_vision", "timm" or "huggingface".
      model: keywords of `models.create`.
      image_size: (height, width) that the parameters are for.
      preprocessing: of the images; None where the checkpoint does not say.
      label_names: of the classes; None where it does not say.
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
    preprocessing: Preprocessing | None
    label_names: tuple[str, ...] | None
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
        missing = [n for n in self.missing if not (_is_bias(n) and _any(allow, n))]
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
        left_over = [n for n in self.left_over if not _any(allow, n)]
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


def _any(patterns: Collection[str], name: str) -> bool:
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


def open_checkpoint(
    path: Path,
    *,
    image_size: tuple[int, int] | None = None,
    model: Mapping[str, Any] | None = None,
    weights: str | None = None,
    as_others: bool = False,
) -> Opened:
    """Reads the index of other people's checkpoint and finds out what model it is.

    Args:
      path: a .npz or .safetensors file, one of `torch.save` (.pth, .pt, .bin, .ckpt,
        .pth.tar), or a directory with config.json.
      image_size: (height, width), where the format does not say and it is no square.
      model: fields of the model that win over what is inferred, such as `num_heads`.
      weights: which of several in a file of `torch.save`; see `open_state_dict`.
      as_others: reads it as another program does, without what vit_jax wrote of it.

    Raises:
      UserError: if it is none of the formats, broken, or of an unknown model.
    """
    if path.is_dir():
        return _open_directory(path, image_size, model or {}, weights, as_others)
    found = open_state_dict([path], weights=weights)
    about = None if as_others else metadata.find(path)
    return _open(path, found, {}, image_size, model or {}, about)


def _open_directory(
    path: Path,
    image_size: tuple[int, int] | None,
    model: Mapping[str, Any],
    weights: str | None,
    as_others: bool,
) -> Opened:
    """A directory as `save_pretrained` or timm's hub writes it."""
    if not (path / "config.json").exists():
        raise UserError(
            f"{path} is neither a workdir, with checkpoints/ in it, nor a directory of "
            "Hugging Face or timm, with config.json"
        )
    config = _read_json(path / "config.json")
    found = open_state_dict(
        _weight_files(path), weights=weights, named="model_type" not in config
    )
    about = None if as_others else metadata.find(path)
    return _open(path, found, config, image_size, model, about)


def _weight_files(path: Path) -> list[Path]:
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = path / f"{name}.index.json"
        if index.exists():
            names = sorted(set(_read_json(index)["weight_map"].values()))
            # Names come from a file: they are of files in this directory, or refused.
            if any(Path(str(n)).name != n for n in names):
                raise broken(index, "it names files outside its directory")
            return [path / n for n in names]
        if (path / name).exists():
            return [path / name]
    raise UserError(
        f"{path} has no model.safetensors, no pytorch_model.bin and no index of their "
        "parts"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_HEADER:
            raise broken(path, "it is far too long")
        found = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise broken(path, "it is no JSON") from error
    if not isinstance(found, dict):
        raise broken(path, "it is no JSON object")
    return found


def _open(
    path: Path,
    found: StateDict,
    config: Mapping[str, Any],
    image_size: tuple[int, int] | None,
    given: Mapping[str, Any],
    about: metadata.About | None,
) -> Opened:
    known = dict(given)
    if about is not None:  # a head may have been cut off or put on since
        of_ours = {k: v for k, v in about.model.items() if k != "num_classes"}
        known = {**of_ours, **given}
    theirs = {name: tensor.shape for name, tensor in found.tensors.items()}
    try:
        format_, inferred, entries_of, patterns = _recognize(
            path, theirs, config, known
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (KeyError, IndexError, TypeError, ValueError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{path}: cannot tell which model it is: {what}. It may be incomplete, or "
            "of a family that is not known here"
        ) from error
    fields = {**inferred.fields, **known}
    if image_size is None and about is not None:
        image_size = inferred.if_fits(about.image_size)
    size = inferred.image_size(image_size)
    shapes = shapes_of(fields, size)
    entries, covered = {}, set()
    for entry in entries_of(fields, shapes):
        if entry.theirs in theirs and all(path in shapes for path in entry.ours):
            entries[entry.theirs] = entry
            covered |= set(entry.ours)
    rest = [name for name in theirs if name not in entries]
    ignored = [n for n in rest if _any(patterns, n)]
    ignored += found.ignored
    left_out = [*rest, *found.beside]
    preprocessing, labels = _around(path, config)
    if about is not None:
        labels = about.label_names or labels
        preprocessing = preprocessing or Preprocessing(mean=about.mean, std=about.std)
    return Opened(
        path=path,
        format=format_,
        model=fields,
        image_size=size,
        preprocessing=preprocessing,
        label_names=labels,
        tensors=found.tensors,
        beside=found.beside,
        entries=entries,
        shapes=shapes,
        missing=tuple(p for p in shapes if p not in covered),
        left_over=tuple(n for n in left_out if n not in ignored),
        ignored=tuple(ignored),
        said=(*found.said, *inferred.guesses),
    )


EntriesOf = Callable[[Fields, Mapping[str, Shape]], Sequence[Entry]]


def _recognize(
    path: Path,
    theirs: Mapping[str, Shape],
    config: Mapping[str, Any],
    known: Mapping[str, Any],
) -> tuple[str, Inferred, EntriesOf, Sequence[str]]:
    """The format, the model, what maps to what, and what may be left over."""
    if "model_type" in config:
        inferred = huggingface.infer(config, theirs, known)
        kind = config["model_type"]
        prefix = huggingface.prefix_of(theirs, kind)
        return (
            "huggingface",
            inferred,
            lambda fields, _: huggingface.entries(fields, kind, prefix, theirs),
            huggingface.ignored(theirs, known),
        )
    names = published.find_names(theirs)
    if names is None:
        families.refuse(theirs)
    if timm.recognizes(theirs):
        return (
            "timm",
            timm_config.complete(theirs, config, known),
            lambda fields, _: timm.entries(fields, theirs),
            _TIMM_IGNORED,
        )
    if names is None:
        first = ", ".join(list(theirs)[:4]) or "nothing"
        raise UserError(f"it is of no model that is known here: it holds {first}, ...")
    ours = published.ours_shapes(names, theirs)
    style = "big_vision" if names.style == "big_vision" else "npz"
    return (
        style,
        published.infer(ours, known),
        lambda _, shapes: published.entries(names, shapes, theirs),
        (r"(?!.*img/).*(txt/.*|/t|/b)", r"opt/.*", r"extra/.*") if names.prefix else (),
    )


def shapes_of(
    fields: Mapping[str, Any], image_size: tuple[int, int]
) -> dict[str, Shape]:
    """The shapes of a model's parameters by path, layers in a loop."""
    model = models.create(**models.looped(dict(fields)))
    tree = abstract_params(model, (*image_size, 3))
    return {path: leaf.shape for path, leaf in flatten(tree).items()}


def _around(
    path: Path, config: Mapping[str, Any]
) -> tuple[Preprocessing | None, tuple[str, ...] | None]:
    """How images are prepared and what the classes are called, from files beside it."""
    labels = None
    if isinstance(config.get("id2label"), dict):
        names = config["id2label"]
        try:
            labels = tuple(str(names[str(i)]) for i in range(len(names)))
        except KeyError:
            labels = None
    if timm_config.is_timm(config):
        labels = timm_config.label_names(config)
    if isinstance(config.get("pretrained_cfg"), dict):
        return _timm_preprocessing(config["pretrained_cfg"]), labels
    if path.is_dir() and (path / "preprocessor_config.json").exists():
        return _hf_preprocessing(_read_json(path / "preprocessor_config.json")), labels
    return None, labels


def _timm_preprocessing(cfg: Mapping[str, Any]) -> Preprocessing:
    size = cfg["input_size"][-1]
    return Preprocessing(
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        resize=int(size / cfg["crop_pct"]),
        interpolation=cfg["interpolation"],
    )


def _hf_preprocessing(cfg: Mapping[str, Any]) -> Preprocessing:
    size = cfg["size"]
    return Preprocessing(
        mean=tuple(cfg["image_mean"]),
        std=tuple(cfg["image_std"]),
        resize=size.get("shortest_edge") if isinstance(size, dict) else None,
        # Numbers of PIL's filters.
        interpolation={2: "bilinear", 3: "bicubic"}.get(cfg["resample"], "bicubic"),
    )
