"""Our parameters as the files of other libraries.

Whatever is written is read back and compared, bit for bit, and says of the model what
weights do not tell. What a format cannot say to the library that it is of is refused: a
file that another library would read as another model is worse than none.
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
from vit_jax.checkpoints.formats import (
    huggingface,
    huggingface_config,
    metadata,
    processors,
    published,
    timm,
    timm_config,
)
from vit_jax.checkpoints.formats.containers import write_safetensors
from vit_jax.checkpoints.formats.layouts import Entry
from vit_jax.checkpoints.formats.opened import Opened, shapes_of
from vit_jax.checkpoints.formats.opening import open_checkpoint
from vit_jax.checkpoints.position_embeddings import with_table
from vit_jax.errors import UserError
from vit_jax.preprocessing import Preprocessing

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


# What a format says to every reader.
_SAID_BY_ALL = ("pool", "class_token", "final_norm", "registers", "mlp", "gelu")
_SAID_BY_ALL += ("distilled",)


def write_checkpoint(
    path: Path,
    to: Format,
    *,
    model: Mapping[str, Any],
    params: Mapping[str, np.ndarray],
    image_size: tuple[int, int],
    preprocessing: Preprocessing,
    label_names: Sequence[str] | None = None,
    loss: str = "softmax_xent",
    allow: Collection[str] = (),
) -> Opened:
    """Writes a checkpoint, reads it back and compares it.

    Args:
      path: a new file that ends in .npz or .safetensors, or a new directory for
        "huggingface" and "timm".
      to: "npz", as the paper's authors publish; "big_vision", the same with `params/`
        and Linen's names; "timm", a directory for `create_model("local-dir:...")`, or a
        state dict alone where the path ends in .safetensors; "huggingface", a directory
        for `from_pretrained`.
      model: keywords of `models.create`.
      params: by path, layers in a loop, float32.
      image_size: (height, width).
      preprocessing: of the images.
      label_names: of the classes.
      loss: that the model was trained with.
      allow: fields of the model that may be lost, such as "gelu".

    Returns:
      What was written, opened.

    Raises:
      UserError: if the format cannot say what the model is, or the path is taken.
    """
    is_directory = _is_directory(path, to)
    built: Any = models.create(**model)
    _refuse_granted(built, to, is_directory=is_directory, allow=allow)
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
    about = metadata.About(
        model=fields,
        image_size=image_size,
        preprocessing=preprocessing,
        label_names=None if label_names is None else tuple(label_names),
        loss="sigmoid_xent" if loss == "sigmoid_xent" else "softmax_xent",
    )
    of_ours = {metadata.KEY: about.as_text()}
    with in_one_piece(path) as temporary:
        file = temporary
        if is_directory:
            temporary.mkdir()
            file = temporary / "model.safetensors"
        if to in ("timm", "huggingface"):
            write_safetensors(file, arrays, shapes, metadata=of_ours)
        else:
            with open(file, "wb") as opened:
                made = {name: make() for name, make in arrays.items()}
                np.savez(opened, **made)  # type: ignore[arg-type]
            metadata.add_to_npz(file, about)
        if to == "timm" and is_directory:
            config = timm_config.write(
                fields,
                image_size,
                pretrained_cfg=timm_config.pretrained_cfg(fields, about),
                label_names=label_names,
            )
            (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        elif to == "huggingface":
            config = huggingface_config.config(fields, image_size, label_names, loss)
            (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
            processor, _ = processors.to_transformers(preprocessing)
            text = json.dumps(processor, indent=2) + "\n"
            (temporary / "preprocessor_config.json").write_text(text)
        compare(temporary, fields, image_size, params, allow=allow)
    return open_checkpoint(path)


def _is_directory(path: Path, to: Format) -> bool:
    """Whether the path names a directory.

    Raises:
      UserError: if it has another ending than files of the format.
    """
    if to == "huggingface":
        return True
    suffix = ".safetensors" if to == "timm" else ".npz"
    if to == "timm" and not path.suffix:
        return True
    if path.suffix != suffix:
        more = ", or in nothing: a directory with config.json" if to == "timm" else ""
        raise UserError(f"{path}: a checkpoint for {to} ends in {suffix}{more}")
    return False


def _refuse_granted(
    built: Any, to: Format, *, is_directory: bool, allow: Collection[str]
) -> None:
    """Refuses what the format's other readers would take to be something else."""
    for key, granted in _GRANTED[to].items():
        is_said = to == "timm" and key == "gelu" and hasattr(built, "mlp")
        if (is_directory and is_said) or key in allow or not hasattr(built, key):
            continue
        if getattr(built, key) != granted:
            instead = ""
            if is_said:
                instead = ". A directory says it: give DST without an ending"
            raise UserError(
                f"{to} cannot say model.{key}={getattr(built, key)}: its readers take "
                f"{granted} for granted. --allow={key} if yours do not{instead}"
            )


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
    """What other readers are told in another way, or take for granted."""
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
        kind = huggingface_config.model_type(dict(fields))
        if kind is None:
            raise UserError(
                "no model of Hugging Face says what this one computes: they have no "
                "pre_logits and no ResNet; with LayerScale (dinov2) or map pooling "
                "(siglip) also no head"
            )
        has_head = any(path.startswith("head/") for path in params)
        prefix = huggingface.PREFIXES[kind] if has_head else ""
        found = huggingface.entries(dict(fields), kind, prefix, {})
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
    *,
    allow: Collection[str] = (),
) -> None:
    """Reads a checkpoint back: the same model, and the same bits.

    Twice: as others read it, who know nothing of what vit_jax says of it, and with no
    more than what is written.

    Raises:
      UserError: if another model would be read from it.
    """
    known = {key: fields[key] for key in allow if key in fields}
    for_others = open_checkpoint(
        path,
        image_size=image_size,
        model={**_hints(fields), **known},
        as_others=True,
    )
    for_others.check_complete()
    if for_others.shapes != shapes_of(fields, image_size):
        raise UserError(
            f"{for_others.format} would be read as another model: {for_others.model}"
        )
    again, wanted = fields_of(models.create(**for_others.model)), dict(fields)
    for key in _SAID_BY_ALL:
        if key in wanted and again[key] != wanted[key]:
            raise UserError(
                f"{for_others.format} cannot say model.{key}={wanted[key]}: it would be"
                f" read as {again[key]}. --allow={key} if yours is told in another way"
            )
    opened = open_checkpoint(path)
    opened.check_complete()
    again = fields_of(models.create(**opened.model))
    differ = [k for k in again if k not in metadata.TRAINING and again[k] != wanted[k]]
    if differ or opened.image_size != image_size:
        raise AssertionError(f"{differ} came back as {opened.model}")

    def check(name: str, array: np.ndarray) -> None:
        if array.tobytes() != np.ascontiguousarray(params[name]).tobytes():
            raise AssertionError(f"{name} came back with other bits")

    opened.read(convert=check)
