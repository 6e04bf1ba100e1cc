"""Small models, parameters and images for the tests of models/."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import models

FIELDS: dict[str, Any] = {
    "num_classes": 5,
    "patch_size": (4, 8),
    "width": 32,
    "depth": 2,
    "mlp_dim": 48,
    "num_heads": 4,
}


def model(**fields: Any) -> models.VisionTransformer:
    return models.VisionTransformer(**FIELDS | fields)


def images(batch: int = 2, height: int = 12, width: int = 16) -> np.ndarray:
    """Not square, and neither is the grid of 3 x 2 patches."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(batch, height, width, 3)).astype(np.float32)


def shapes(vit: models.VisionTransformer, x: Any = None) -> Any:
    x = images() if x is None else x
    return jax.eval_shape(vit.init, jax.random.key(0), x)["params"]


def params(vit: models.VisionTransformer, scale: float = 0.2) -> Any:
    """Drawn with NumPy and nowhere 0 or 1, so that every part of the model matters.

    They are those of the loop, stacked where the model scans.
    """
    rng = np.random.default_rng(1)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        is_scale = path[-1].key == "scale"
        return (is_scale + scale * rng.normal(size=leaf.shape)).astype(leaf.dtype)

    drawn = jax.tree.map_with_path(draw, shapes(vit.clone(scan=False)))
    return models.layers.loop_to_scan(drawn) if vit.scan else drawn


def apply(
    vit: models.VisionTransformer, params: Any, x: Any = None, key: Any = None, **kwargs
) -> Any:
    x = images() if x is None else x
    rngs = None if key is None else {"dropout": key}
    run = jax.jit(functools.partial(vit.apply, **kwargs))
    return run({"params": params}, jnp.asarray(x), rngs=rngs)


def paths(tree: Any) -> dict[str, Any]:
    """Leaves by path, such as "head/bias"."""
    flat, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(k, simple=True, separator="/"): v for k, v in flat}
