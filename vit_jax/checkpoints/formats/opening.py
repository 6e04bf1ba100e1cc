"""Opening a checkpoint of any format, and finding out what model it is."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from vit_jax import limits
from vit_jax.checkpoints.formats import (
    families,
    huggingface,
    metadata,
    processors,
    published,
    timm,
    timm_config,
)
from vit_jax.checkpoints.formats.inferred import Fields, Inferred
from vit_jax.checkpoints.formats.layouts import Entry, Shape
from vit_jax.checkpoints.formats.opened import Opened, matches_any, shapes_of
from vit_jax.checkpoints.formats.state_dicts import StateDict, open_state_dict
from vit_jax.checkpoints.formats.tensors import broken
from vit_jax.errors import UserError
from vit_jax.preprocessing import Preprocessing

# What timm's files may hold that no model of ours has.
_TIMM_IGNORED = (r"mask_token|masked_embed", r"(.*\.)?num_batches_tracked")


def open_checkpoint(
    path: Path,
    *,
    image_size: tuple[int, int] | None = None,
    resolution: tuple[int, int] | None = None,
    model: Mapping[str, Any] | None = None,
    weights: str | None = None,
    as_others: bool = False,
) -> Opened:
    """Reads the index of other people's checkpoint and finds out what model it is.

    Args:
      path: a .npz or .safetensors file, one of `torch.save` (.pth, .pt, .bin, .ckpt,
        .pth.tar), or a directory with config.json.
      image_size: (height, width) that the parameters are for, where the format does not
        say it.
      resolution: (height, width) to use it at; default: as its images are prepared. It
        is taken for `image_size` too where the format does not say it and it is no
        square.
      model: fields of the model that win over what is inferred, such as `num_heads`.
      weights: which of several in a file of `torch.save`; see `open_state_dict`.
      as_others: reads it as another program does, without what vit_jax wrote of it.

    Raises:
      UserError: if it is none of the formats, broken, or of an unknown model.
    """
    if path.is_dir():
        sizes = image_size, resolution
        return _open_directory(path, sizes, model or {}, weights, as_others)
    found = open_state_dict([path], weights=weights)
    about = None if as_others else metadata.find(path)
    return _open(path, found, {}, (image_size, resolution), model or {}, about)


# The size of a checkpoint's images, and the one to use it at, where they are given.
_GivenSizes = tuple[tuple[int, int] | None, tuple[int, int] | None]


def _open_directory(
    path: Path,
    sizes: _GivenSizes,
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
    return _open(path, found, config, sizes, model, about)


def _weight_files(path: Path) -> list[Path]:
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = path / f"{name}.index.json"
        if index.exists():
            of_each = _read_json(index).get("weight_map")
            if not isinstance(of_each, dict) or not of_each:
                raise broken(index, "it has no weight_map from tensors to files")
            # Names come from a file: they are of files in this directory, or refused.
            if any(Path(str(n)).name != n for n in of_each.values()):
                raise broken(index, "it names files outside its directory")
            return [path / n for n in sorted(set(of_each.values()))]
        if (path / name).exists():
            return [path / name]
    raise UserError(
        f"{path} has no model.safetensors, no pytorch_model.bin and no index of their "
        "parts"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > limits.HEADER_BYTES:
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
    sizes: _GivenSizes,
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
    size, resolution, preprocessing = _sizes(path, inferred, config, sizes, about)
    shapes = shapes_of(fields, size)
    entries, covered = {}, set()
    for entry in entries_of(fields, shapes):
        if entry.theirs in theirs and all(path in shapes for path in entry.ours):
            entries[entry.theirs] = entry
            covered |= set(entry.ours)
    rest = [name for name in theirs if name not in entries]
    ignored = [n for n in rest if matches_any(patterns, n)]
    ignored += found.ignored
    left_out = [*rest, *found.beside]
    labels, loss = _labels(config), _loss(config)
    if about is not None:
        labels, loss = about.label_names or labels, about.loss
    return Opened(
        path=path,
        format=format_,
        model=fields,
        image_size=size,
        resolution=resolution,
        posemb=_posemb_of(format_, config),
        preprocessing=preprocessing,
        label_names=labels,
        loss=loss,
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


def _labels(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """What the classes are called."""
    if timm_config.is_timm(config):
        return timm_config.label_names(config)
    names = config.get("id2label")
    if not isinstance(names, dict):
        return None
    try:
        return tuple(str(names[str(i)]) for i in range(len(names)))
    except KeyError:
        return None


def _loss(config: Mapping[str, Any]) -> Literal["softmax_xent", "sigmoid_xent"]:
    """As the classification pipeline of transformers chooses."""
    labels = config.get("id2label")
    one = isinstance(labels, dict) and len(labels) == 1
    several = config.get("problem_type") == "multi_label_classification"
    return "sigmoid_xent" if one or several else "softmax_xent"


def _posemb_of(
    format_: str, config: Mapping[str, Any]
) -> Literal["linear", "cubic", "cubic_no_antialias"]:
    if format_ == "timm":
        return "cubic"
    if format_ != "huggingface":
        return "linear"
    antialias = config["model_type"] == "dinov2_with_registers"
    return "cubic" if antialias else "cubic_no_antialias"


def _sizes(
    path: Path,
    inferred: Inferred,
    config: Mapping[str, Any],
    given: _GivenSizes,
    of_ours: metadata.About | None,
) -> tuple[tuple[int, int], tuple[int, int], Preprocessing | None]:
    """The size that the parameters are for, the one to use, and the preprocessing."""
    image_size, resolution = given
    if image_size is None and of_ours is not None:
        image_size = inferred.if_fits(of_ours.image_size)
    about = None if of_ours is None else of_ours.preprocessing
    if "model_type" in config:
        size = inferred.image_size(image_size)
        about = _of_transformers(path, str(config["model_type"]), size) or about
        resolution = resolution or (None if about is None else about.size)
        return size, resolution or size, about
    if timm_config.is_timm(config):
        about = processors.of_timm(config, str(path / "config.json"))
    if image_size is None:
        image_size = _size_said(inferred, about, resolution)
    size = inferred.image_size(image_size)
    return size, resolution or size, about


def _size_said(
    inferred: Inferred,
    about: Preprocessing | None,
    resolution: tuple[int, int] | None,
) -> tuple[int, int] | None:
    """The size of the images, where the parameters do not tell it."""
    said = None if about is None else about.size
    if inferred.patches is None:
        return resolution or said
    if inferred.grid is not None:
        return None
    if said is not None and inferred.if_fits(said) is not None:
        return said
    square = round(inferred.patches**0.5) ** 2 == inferred.patches
    return None if square else resolution


def _of_transformers(
    path: Path, model_type: str, image_size: tuple[int, int]
) -> Preprocessing | None:
    """From the file beside a config.json, or from the newer one with all processors."""
    for name, key in (
        ("processor_config.json", "image_processor"),
        ("preprocessor_config.json", None),
    ):
        file = path / name
        if path.is_dir() and file.exists():
            found = _read_json(file)
            found = found if key is None else found.get(key)
            if isinstance(found, dict):
                return processors.of_transformers(
                    found, model_type, image_size, str(file)
                )
    return None
