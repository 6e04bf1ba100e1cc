"""Weights for another model than the one that they were trained in: fine-tuning.

Another head, other classes, another resolution (arXiv:2010.11929, section 3.2), with or
without a class token, layers in a loop or in a scan. What starts anew or is left out is
said; all else that differs is an error.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from etils import epath

from vit_jax import class_names, models, workdirs
from vit_jax.checkpoints.choosing import choose, is_run
from vit_jax.checkpoints.formats.layouts import Shape
from vit_jax.checkpoints.formats.opened import flatten, nest, shapes_of
from vit_jax.checkpoints.formats.opening import open_checkpoint
from vit_jax.checkpoints.matching import refuse_differences
from vit_jax.checkpoints.position_embeddings import (
    POSEMB,
    Interpolation,
    create,
    grid_of,
    resample_all,
    with_table,
)
from vit_jax.checkpoints.reading import read_arrays, read_config, read_label_names
from vit_jax.errors import UserError
from vit_jax.state import Params

Head = Literal["auto", "keep", "new"]
_HEAD = r"(head|head_dist)/.*"
_BIAS = "head/bias"
_FUNCTION = (
    "gelu",
    "layer_norm_epsilon",
    "num_heads",
    "standardization",
    "group_norm_epsilon",
)
# What may start anew, and what may be left out.
_NEW = rf"{_HEAD}|pre_logits/.*|cls|dist|Transformer/registers"
_DROPPED = rf"{_NEW}|{POSEMB}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """Parameters by path, layers in a loop, and the model that they are of.

    Attributes:
      path: that they were read from.
      arrays: float32, on the host.
      model: keywords of `models.create`.
      image_size: (height, width).
      normalization: mean and standard deviation of the channels, where it says them.
      label_names: of the classes, where it says them.
      said: what was chosen of a file and left out, for the user.
    """

    path: epath.Path | None = None
    arrays: Mapping[str, np.ndarray]
    model: Mapping[str, Any]
    image_size: tuple[int, int]
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None
    label_names: tuple[str, ...] | None = None
    said: tuple[str, ...] = ()


def read_weights(
    path: epath.Path,
    *,
    weights: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Weights:
    """The weights of a workdir of ours, or of another library's checkpoint.

    Args:
      path: of either.
      weights: which of several in a file of `torch.save`; see `vit_jax.load`.
      progress: called with the bytes read so far and in all, of another library's.

    Raises:
      UserError: if there is none, it is broken, or of an unknown model.
    """
    if not is_run(path):
        opened = open_checkpoint(workdirs.local(path), weights=weights)
        opened.check_complete()
        about = opened.preprocessing
        return Weights(
            path=path,
            arrays=opened.read(progress=progress),
            model=opened.model,
            image_size=opened.image_size,
            normalization=None if about is None else (about.mean, about.std),
            label_names=opened.label_names,
            said=opened.said,
        )
    if weights is not None:
        raise UserError(f"weights={weights}: {path} is a workdir, which has no more")
    directory = choose(path)
    config = read_config(directory)
    data = config["data"]
    size = data["image_size"]
    return Weights(
        path=path,
        arrays=flatten(models.layers.scan_to_loop(nest(read_arrays(directory)))),
        model={
            key: tuple(value) if isinstance(value, list) else value  # as JSON has them
            for key, value in config["model"].items()
        },
        image_size=(size, size) if isinstance(size, int) else tuple(size),
        normalization=(tuple(data["mean"]), tuple(data["std"])),
        label_names=read_label_names(directory),
        said=(f"taken from step {directory.name}: {_which(directory)}",),
    )


def head_width(source: Weights) -> int:
    """The number of classes of the head; 0 without one."""
    return len(source.arrays[_BIAS]) if _BIAS in source.arrays else 0


def _which(directory: epath.Path) -> str:
    """Which parameters of a checkpoint `read_arrays` takes."""
    if (directory / "ema_params").exists():
        return "the average of its parameters (EMA)"
    return "its parameters; it has no average (EMA)"


def adapt(
    source: Weights,
    model: Mapping[str, Any],
    image_size: tuple[int, int],
    *,
    head: Head = "auto",
    posemb: Interpolation = "linear",
    label_names: Sequence[str] | None = None,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The weights as another model takes them.

    Args:
      source: the weights.
      model: keywords of `models.create` that make the other model.
      image_size: (height, width) of its images.
      head: "keep" it, start a "new" one, or "auto": keep it if its shape is the same,
        and its classes are, as far as both sides have names; they are put in order.
      posemb: how position embeddings are resampled; see
        `position_embeddings.resample`.
      label_names: of the other model's classes, if they are known.

    Returns:
      Arrays by path, layers in a loop, without what starts anew; and a line for each
      thing that is not as it was.

    Raises:
      UserError: if the models differ in something else; it lists what.
    """
    _refuse_other_functions(source.model, model)
    wanted = shapes_of(model, image_size)
    head, stored, of_head = _head_by_name(source, wanted, head, label_names)
    said = list(source.said)
    fixed = getattr(create(source.model), "posemb", None) == "sincos2d"
    if fixed and POSEMB in wanted:
        _, stored = with_table(source.model, stored, source.image_size)
        said.append("fixed position embeddings are where learned ones start")
    if POSEMB in stored and POSEMB in wanted:
        old = grid_of(source.model, source.image_size)
        new = grid_of(model, image_size)
        tokens = "cls" in stored, "cls" in wanted
        if old != new or tokens[0] != tokens[1]:
            stored[POSEMB] = resample_all(stored, wanted, old, new, posemb)
        if old != new:
            said.append(
                f"position embeddings resampled from {old[0]} x {old[1]} to "
                f"{new[0]} x {new[1]} ({posemb})"
            )
    anew = {p for p in wanted if p not in stored and re.fullmatch(_NEW, p)}
    for path in wanted:
        if re.fullmatch(_HEAD, path) and path in stored:
            same = stored[path].shape == wanted[path]
            if head == "new" or (head == "auto" and not same):
                anew.add(path)
    dropped = {p for p in stored if p not in wanted and re.fullmatch(_DROPPED, p)}
    given = {p: a for p, a in stored.items() if p not in anew | dropped}
    refuse_differences(
        "init_from",
        {p: (tuple(a.shape), "float32") for p, a in given.items()},
        {p: (shape, "float32") for p, shape in wanted.items() if p not in anew},
        advice="the parts of the model that were pre-trained must be the same",
    )
    for paths, what in ((anew, "starts anew"), (dropped, "left out")):
        if paths:
            said.append(f"{what}: {', '.join(_parts(paths))}")
    return given, said + of_head


def _head_by_name(
    source: Weights,
    wanted: Mapping[str, Shape],
    head: Head,
    label_names: Sequence[str] | None,
) -> tuple[Head, dict[str, np.ndarray], list[str]]:
    """What becomes of the head, the weights with its classes in order, and the news."""
    stored = dict(source.arrays)
    shapes = {p: s for p, s in wanted.items() if re.fullmatch(_HEAD, p) and p in stored}
    fits = all(stored[path].shape == shape for path, shape in shapes.items())
    if head == "new" or _BIAS not in shapes or (head == "auto" and not fits):
        return head, stored, []
    found = class_names.match(label_names, source.label_names)
    if found.places is None:
        return head, stored, [f"the head is kept, its classes by number ({found.why})"]
    assert label_names is not None
    if found.unknown:
        listed = class_names.listed([label_names[i] for i in found.unknown])
        if head == "auto":
            return "new", stored, [f"the head does not know the classes {listed}"]
        return head, stored, [f"the head is kept, but does not know {listed}"]
    there, here = len(stored[_BIAS]), shapes[_BIAS][0]
    rest = [i for i in range(there) if i not in found.places]
    order = [*found.places, *rest][:here]  # a head may be wider than there are names
    if order == list(range(there)):
        return head, stored, ["the head is kept: its classes have the same names"]
    said = "the head is kept, its classes in the order of this config's, by name"
    return head, choose_classes(stored, order), [said]


def choose_classes(
    arrays: Mapping[str, np.ndarray], order: Sequence[int]
) -> dict[str, np.ndarray]:
    """Weights whose head has these of its classes, in this order.

    >>> choose_classes({"head/bias": np.arange(3), "cls": np.ones(1)}, [2, 0])
    {'head/bias': array([2, 0]), 'cls': array([1.])}
    """
    return {
        path: array[..., list(order)] if re.fullmatch(_HEAD, path) else array
        for path, array in arrays.items()
    }


def _refuse_other_functions(was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Settings without parameters, with which the same weights mean something else."""
    one, other = create(was), create(now)
    differ = [
        (key, getattr(one, key), getattr(other, key))
        for key in _FUNCTION
        if hasattr(one, key)
        and hasattr(other, key)
        and getattr(one, key) != getattr(other, key)
    ]
    if differ:
        raise UserError(
            "init_from: "
            + ", ".join(f"it has model.{k}={a}, this config {b}" for k, a, b in differ)
            + ": set "
            + " ".join(f"--config.model.{k}={a}" for k, a, _ in differ)
        )


def _parts(paths: set[str]) -> list[str]:
    """Modules, for paths of their leaves."""
    return sorted({re.sub(r"/(kernel|bias)$", "", path) for path in paths})


def place(
    arrays: Mapping[str, np.ndarray], abstract: Params, initial: Params | None
) -> Params:
    """Arrays laid out as `abstract` says; what is not among them is of `initial`.

    Args:
      arrays: by path, layers in a loop, the same on every process.
      abstract: parameters with their shardings, layers in a loop or stacked.
      initial: the parameters at the start; None if all are among the arrays.
    """
    flat = flatten(models.layers.loop_to_scan(nest(arrays)))
    if any("/encoderblock_0/" in path for path in flatten(abstract)):
        flat = dict(arrays)
    start = {} if initial is None else flatten(initial)

    def leaf(path: str, shape: Any) -> jax.Array:
        if path not in flat:
            return start[path]
        array = flat[path].astype(shape.dtype)
        return jax.make_array_from_callback(
            shape.shape, shape.sharding, lambda index: array[index]
        )

    return nest({path: leaf(path, x) for path, x in flatten(abstract).items()})
