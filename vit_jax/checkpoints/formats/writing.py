"""Our parameters as the files of other libraries.

Whatever is written is read back and compared, bit for bit. What a format cannot say is
refused: a file that another library would read as another model is worse than none.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vit_jax import models
from vit_jax.checkpoints.adapt import with_table
from vit_jax.checkpoints.formats import huggingface, published, timm
from vit_jax.checkpoints.formats.containers import write_safetensors
from vit_jax.checkpoints.formats.layouts import Entry
from vit_jax.checkpoints.formats.opened import Opened, open_checkpoint, shapes_of
from vit_jax.errors import UserError

Format = Literal["npz", "big_vision", "timm", "huggingface"]
# What readers of a format take for granted, since it cannot say it.
_GRANTED: dict[str, dict[str, Any]] = {
    "npz": {"gelu": "tanh", "layer_norm_epsilon": 1e-6},
    "big_vision": {"gelu": "tanh", "layer_norm_epsilon": 1e-6},
    "timm": {"gelu": "erf", "layer_norm_epsilon": 1e-6},
    "huggingface": {},
}

_POSEMBS: dict[str, tuple[str, ...]] = {
    "npz": ("learn",),
    "big_vision": ("learn", "sincos2d"),
    "timm": ("learn", "none"),
    "huggingface": ("learn",),
}


def write_checkpoint(
    path: Path,
    to: Format,
    *,
    model: Mapping[str, Any],
    params: Mapping[str, np.ndarray],
    image_size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    label_names: Sequence[str] | None = None,
    allow: Collection[str] = (),
) -> Opened:
    """Writes a checkpoint, reads it back and compares it.

    Args:
      path: a new file that ends in .npz or .safetensors, or a new directory for
        "huggingface".
      to: "npz", as the paper's authors publish; "big_vision", the same with `params/`
        and Linen's names; "timm", a state dict; "huggingface", a directory for
        `from_pretrained`.
      model: keywords of `models.create`.
      params: by path, layers in a loop, float32.
      image_size: (height, width).
      mean: of the channels, for Hugging Face; and `std`.
      std: likewise.
      label_names: of the classes, for Hugging Face.
      allow: fields of the model that may be lost, such as "gelu".

    Returns:
      What was written, opened.

    Raises:
      UserError: if the format cannot say what the model is, or the path is taken.
    """
    suffix = {"timm": ".safetensors", "huggingface": ""}.get(to, ".npz")
    if path.suffix != suffix and to != "huggingface":
        raise UserError(f"{path}: a checkpoint for {to} ends in {suffix}")
    built: Any = models.create(**model)
    for key, granted in _GRANTED[to].items():
        if hasattr(built, key) and getattr(built, key) != granted and key not in allow:
            raise UserError(
                f"{to} cannot say model.{key}={getattr(built, key)}: its readers take "
                f"{granted} for granted. Allow it ({key}) if yours do not"
            )
    posemb = getattr(built, "posemb", "learn")
    fields = fields_of(built)
    if posemb == "sincos2d" and posemb not in _POSEMBS[to]:
        fields, params = with_table(fields, params, image_size)
    elif posemb not in _POSEMBS[to]:
        raise UserError(
            f"{to} cannot say model.posemb={posemb}, only {', '.join(_POSEMBS[to])}: "
            "choose another format"
        )
    entries = entries_of(fields, to, params)
    refuse_unsaid(to, entries, params)
    arrays = {e.theirs: _maker(e, params) for e in entries}
    shapes = {
        e.theirs: e.layout.shape([params[p].shape for p in e.ours]) for e in entries
    }
    with in_one_piece(path) as temporary:
        if to == "timm":
            write_safetensors(temporary, arrays, shapes)
        elif to == "huggingface":
            temporary.mkdir()
            write_safetensors(temporary / "model.safetensors", arrays, shapes)
            config = huggingface.config(fields, image_size, label_names)
            (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
            about = huggingface.preprocessor(image_size, mean, std)
            text = json.dumps(about, indent=2) + "\n"
            (temporary / "preprocessor_config.json").write_text(text)
        else:
            with open(temporary, "wb") as file:
                made = {name: make() for name, make in arrays.items()}
                np.savez(file, **made)  # type: ignore[arg-type]
        compare(temporary, fields, image_size, params)
    return open_checkpoint(path, image_size=image_size, model=_hints(fields))


@contextlib.contextmanager
def in_one_piece(path: Path) -> Iterator[Path]:
    """A place for a file or folder that gets its name once all of it is there.

    Args:
      path: a new name.

    Yields:
      Another name beside it, with the same suffix; what is there is removed where an
      error ends the writing.

    Raises:
      UserError: if the path is taken or cannot be written.
    """
    if path.exists():
        raise UserError(f"{path} exists: give a new name")
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.rename(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        elif temporary.exists():
            temporary.unlink()


def fields_of(built: Any) -> dict[str, Any]:
    """The fields of a model that say what it computes, not how, by name.

    >>> vit = models.create(variant="Ti/16", num_classes=2, scan=True, write_norms=True)
    >>> {"scan", "write_norms", "width"} & set(fields_of(vit))
    {'width'}
    """
    names = {kind: name for name, kind in models.MODELS.items()}
    about = {"parent", "name", "constrain", "attend", "classify", "remat_names"}
    about |= {"scan", "remat_policy", "write_norms", "recompute_gelu", "attention"}
    about |= {"dtype", "param_dtype"}
    values = {k: v for k, v in vars(built).items() if not k.startswith("_")}
    kept = {k: v for k, v in values.items() if k not in about and v is not None}
    return {"name": names[type(built)], **kept}


def _hints(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a reader cannot find in some format, though it matters to nobody else."""
    keys = ("num_heads", "gelu", "layer_norm_epsilon", "layer_scale")
    keys += ("standardization", "group_norm_epsilon")
    return {key: fields[key] for key in keys if key in fields}


def entries_of(
    fields: Mapping[str, Any], to: Format, params: Mapping[str, np.ndarray]
) -> list[Entry]:
    """What maps to what, of the parameters that there are."""
    shapes = {path: array.shape for path, array in params.items()}
    if to == "timm":
        found = timm.entries(dict(fields), {})
    elif to == "huggingface":
        kind = huggingface.model_type(dict(fields))
        if kind is None:
            raise UserError(
                "no model of Hugging Face says what this one computes: they have no "
                "pre_logits and no ResNet; with LayerScale (dinov2) or map pooling "
                "(siglip) also no head"
            )
        has_head = any(path.startswith("head/") for path in params)
        prefix = huggingface.PREFIXES[kind] if has_head else ""
        found = huggingface.entries(dict(fields), kind, prefix)
    elif to == "npz":
        names = published.Names(style="published", bit=fields["name"] == "resnet")
        found = published.entries(names, shapes, {})
    else:
        names = published.Names(style="big_vision", prefix="params/")
        found = published.entries(names, shapes, {})
    return [entry for entry in found if all(path in params for path in entry.ours)]


def refuse_unsaid(
    to: Format, entries: Sequence[Entry], params: Mapping[str, np.ndarray]
) -> None:
    """Refuses parameters that the format has no name for."""
    said = {path for entry in entries for path in entry.ours}
    if unsaid := [path for path in params if path not in said]:
        more = f" and {len(unsaid) - 4} more" if len(unsaid) > 4 else ""
        raise UserError(
            f"{to} has no place for {', '.join(unsaid[:4])}{more}: choose another "
            "format"
        )


def _maker(entry: Entry, params: Mapping[str, np.ndarray]) -> Callable[[], np.ndarray]:
    return lambda: entry.layout.write([params[path] for path in entry.ours])


def compare(
    path: Path,
    fields: Mapping[str, Any],
    image_size: tuple[int, int],
    params: Mapping[str, np.ndarray],
) -> None:
    """Reads a checkpoint back: the same model, and the same bits.

    Raises:
      UserError: if another model would be read from it.
    """
    opened = open_checkpoint(path, image_size=image_size, model=_hints(fields))
    opened.check_complete()
    if opened.shapes != shapes_of(fields, image_size):
        raise UserError(
            f"{opened.format} would be read as another model: {opened.model}"
        )
    built = models.create(**opened.model)
    again, wanted = fields_of(built), dict(fields)
    for key in ("pool", "final_norm", "registers", "mlp", "gelu", "distilled"):
        if key in wanted and again[key] != wanted[key]:
            raise UserError(
                f"{opened.format} cannot say model.{key}={wanted[key]}: it would be "
                f"read as {again[key]}"
            )

    def check(name: str, array: np.ndarray) -> None:
        if array.tobytes() != np.ascontiguousarray(params[name]).tobytes():
            raise AssertionError(f"{name} came back with other bits")

    opened.read(convert=check)
