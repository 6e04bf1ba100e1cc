"""Position embeddings for images of another size (arXiv:2010.11929, section 3.2)."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import models
from vit_jax.checkpoints.formats.layouts import Shape
from vit_jax.checkpoints.formats.opened import flatten, nest
from vit_jax.errors import UserError
from vit_jax.models.inputs import check_divides
from vit_jax.state import Params

Interpolation = Literal["linear", "cubic", "cubic_no_antialias"]


POSEMB = "Transformer/posembed_input/pos_embedding"


def create(fields: Mapping[str, Any]) -> Any:
    """A model from the fields of a config, or of one that was kept as JSON."""
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in fields.items()
    }
    return models.create(**values)


def grid_of(model: Mapping[str, Any], image_size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the patches of an image.

    >>> grid_of({"variant": "B/16"}, (224, 384))
    (14, 24)
    """
    return models.patch_grid(create(model), image_size)


def with_table(
    fields: Mapping[str, Any],
    params: Mapping[str, np.ndarray],
    image_size: tuple[int, int],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The same model with its fixed position embeddings as a parameter.

    Args:
      fields: of the model, with posemb="sincos2d".
      params: by path.
      image_size: (height, width).
    """
    grid = grid_of(fields, image_size)
    table = models.sincos2d(*grid, dim=create(fields).width)
    own = sum(name in params for name in ("cls", "dist"))  # have no position
    table = np.pad(table, ((own, 0), (0, 0)))[None]
    return {**fields, "posemb": "learn"}, {**params, POSEMB: table}


def resample_all(
    stored: Mapping[str, np.ndarray],
    wanted: Mapping[str, Shape],
    old: tuple[int, int],
    new: tuple[int, int],
    posemb: Interpolation,
) -> np.ndarray:
    """Of the patches resampled, of class tokens as they are, 0 for a new one.

    Whether there is a class token is told by the parameters, not by numbers: 196 is a
    grid of 14 x 14 without one.
    """
    table = stored[POSEMB][0]
    names = [name for name in ("cls", "dist") if name in stored]
    tokens, patches = table[: len(names)], table[len(names) :]
    if len(patches) != old[0] * old[1]:
        raise UserError(
            f"init_from: {len(patches)} position embeddings of patches, but images of "
            f"its size have {old[0]} x {old[1]}"
        )
    by_name = dict(zip(names, tokens, strict=True))
    kept = [
        by_name.get(name, np.zeros_like(table[0]))
        for name in ("cls", "dist")
        if name in wanted
    ]
    grid = resample(patches.reshape(*old, -1), new, method=posemb)
    return np.concatenate([*[k[None] for k in kept], grid.reshape(-1, table.shape[1])])[
        None
    ]


def resample(
    grid: np.ndarray, size: tuple[int, int], *, method: Interpolation = "linear"
) -> np.ndarray:
    """Position embeddings [rows, columns, d] of one grid, for another.

    Args:
      grid: float32.
      size: rows and columns of the result.
      method: "linear" between the values at the corners, which stay where they are, as
        the paper's code does it (`scipy.ndimage.zoom` with `order=1`); or "cubic" with
        antialiasing, as `jax.image.resize`, PIL and timm do it; or "cubic_no_antialias"
        as PyTorch (A = -0.75) and with it DINOv2, ViT and SigLIP of transformers.

    >>> line = np.array([[[0.0], [1.0]]], np.float32)
    >>> resample(line, (1, 3)).ravel().tolist()
    [0.0, 0.5, 1.0]
    """
    if method == "cubic":
        shape = (*size, grid.shape[2])
        return np.asarray(jax.image.resize(jnp.asarray(grid), shape, "cubic"))
    weights = _WEIGHTS[method]
    rows, columns = (
        weights(old, new) for old, new in zip(grid.shape[:2], size, strict=True)
    )
    resampled = np.einsum("jc,rcd->rjd", columns, grid.astype(np.float64))
    resampled = np.einsum("ir,rjd->ijd", rows, resampled)
    return resampled.astype(np.float32)


def _linear(old: int, new: int) -> np.ndarray:
    """The matrix [new, old] of linear interpolation with fixed ends."""
    at = np.linspace(0, old - 1, new)
    return np.maximum(1 - np.abs(at[:, None] - np.arange(old)), 0)


def _cubic(old: int, new: int) -> np.ndarray:
    """The matrix [new, old] of cubic convolution at half-pixel centres, edges repeated.

    Four values make a new one, also where the grid becomes coarser.
    """
    at = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(at).astype(np.int64) - 1
    matrix = np.zeros((new, old))
    for tap in range(4):
        weight = _keys(np.abs(at - (first + tap)))
        np.add.at(matrix, (np.arange(new), (first + tap).clip(0, old - 1)), weight)
    return matrix


def _keys(x: np.ndarray, a: float = -0.75) -> np.ndarray:
    """Keys' kernel (IEEE Trans. ASSP 29, 1981), of distances of at most 2."""
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    return np.where(x <= 1, near, ((x - 5) * x + 8) * x * a - 4 * a)


def _cubic_antialiased(old: int, new: int) -> np.ndarray:
    """The matrix [new, old] of `jax.image.resize`."""
    return np.asarray(
        jax.image.resize(np.eye(old, dtype=np.float32), (new, old), "cubic")
    )


_WEIGHTS: dict[Interpolation, Callable[[int, int], np.ndarray]] = {
    "linear": _linear,
    "cubic": _cubic_antialiased,
    "cubic_no_antialias": _cubic,
}


def at_size(
    params: Params,
    model: Any,
    old: tuple[int, int],
    new: tuple[int, int],
    *,
    posemb: Interpolation = "linear",
) -> Params:
    """A model's parameters for images of another size; may be traced.

    Args:
      params: of the model, layers in a loop or stacked.
      model: a Linen module.
      old: (height, width) of the images that they are for.
      new: of the images that are wanted.
      posemb: how position embeddings are resampled; see `resample`.

    Raises:
      UserError: if the model cannot take images of that size, as a Mixer.
    """
    before, after = models.patch_grid(model, old), models.patch_grid(model, new)
    flat = flatten(params)
    if isinstance(model, models.MODELS["resnet"]):
        return params
    check_divides(new, (old[0] // before[0], old[1] // before[1]))
    if before == after:
        return params
    if isinstance(model, models.MODELS["mixer"]):
        raise UserError(
            f"a Mixer's layers are of {before[0]} x {before[1]} patches: it takes "
            f"images of {old[0]} x {old[1]} alone, and image_size is {new}"
        )
    if POSEMB not in flat:
        return params
    table = jnp.asarray(flat[POSEMB])[0]
    own = sum(name in flat for name in ("cls", "dist"))
    rows, columns = (
        jnp.asarray(_WEIGHTS[posemb](*pair), table.dtype)
        for pair in zip(before, after, strict=True)
    )
    grid = table[own:].reshape(*before, -1)
    with jax.default_matmul_precision("highest"):
        grid = jnp.einsum("ir,jc,rcd->ijd", rows, columns, grid)
    flat[POSEMB] = jnp.concatenate([table[:own], grid.reshape(-1, table.shape[1])])[
        None
    ]
    return nest(flat)
