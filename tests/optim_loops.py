"""The optimisers as loops written from the papers, in NumPy float64.

They know nothing of optax: they go through a flat dict of path -> array.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

STEPS, WARMUP, PEAK, END, CLIP, DECAY = 20, 4, 0.02, 0.001, 3.0, 0.3
SHAPES = {
    "cls": (1, 1, 40),
    "embedding/kernel": (3, 3, 3, 40),
    "embedding/bias": (40,),
    "Transformer/posembed_input/pos_embedding": (1, 5, 40),
    "Transformer/encoderblock_0/LayerNorm_0/scale": (40,),
    "Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel": (
        40,
        4,
        36,
    ),
    "Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel": (40, 48),
    "head/kernel": (40, 10),
    "head/bias": (10,),
}
Flat = dict[str, np.ndarray]
Precondition = Callable[[str, np.ndarray, int], np.ndarray]


def nested(flat: Flat) -> dict:
    tree: dict = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = jnp.asarray(value, jnp.float32)
    return tree


def flattened(tree: Any) -> Flat:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(k.key for k in path): np.asarray(leaf) for path, leaf in leaves}


def draw(seed: int, scale: float = 1.0) -> Flat:
    rng = np.random.default_rng(seed)
    return {
        path: (scale * rng.normal(size=shape)).astype(np.float32)
        for path, shape in SHAPES.items()
    }


PARAMS = draw(0)
# Norms from far below CLIP to far above it.
GRADS = [draw(1 + i, scale=0.01 * 1.3**i) for i in range(STEPS)]


def cosine(step: int) -> float:
    if step < WARMUP:
        return PEAK * step / WARMUP
    progress = (step - WARMUP) / (STEPS - WARMUP)
    return END + (PEAK - END) * 0.5 * (1 + math.cos(math.pi * progress))


def adamw(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Precondition:
    m, v = {}, {}

    def precondition(path: str, g: np.ndarray, t: int) -> np.ndarray:
        m[path] = b1 * m.get(path, 0) + (1 - b1) * g
        v[path] = b2 * v.get(path, 0) + (1 - b2) * g**2
        return m[path] / (1 - b1**t) / (np.sqrt(v[path] / (1 - b2**t)) + eps)

    return precondition


def sgd(momentum: float = 0.9, nesterov: bool = False) -> Precondition:
    m = {}

    def precondition(path: str, g: np.ndarray, t: int) -> np.ndarray:
        m[path] = momentum * m.get(path, 0) + g
        return g + momentum * m[path] if nesterov else m[path]

    return precondition


def lion(b1: float = 0.9, b2: float = 0.99) -> Precondition:
    m = {}

    def precondition(path: str, g: np.ndarray, t: int) -> np.ndarray:
        old = m.get(path, 0)
        m[path] = b2 * old + (1 - b2) * g
        return np.sign(b1 * old + (1 - b1) * g)

    return precondition


def adafactor(
    b1: float = 0.9,
    b2: float = 0.999,
    decay_rate: float = 0.8,
    eps: float = 1e-30,
    clipping_threshold: float = math.inf,
    min_dim_size_to_factor: int = 32,
) -> Precondition:
    """Algorithms 4 and 5 of 1804.04235 with what 2106.04560 changes."""
    rows, cols, full, m = {}, {}, {}, {}

    def precondition(path: str, g: np.ndarray, t: int) -> np.ndarray:
        b2_t = min(b2, 1 - t**-decay_rate)
        square = g**2 + eps
        i, j = sorted(np.argsort(g.shape)[-2:]) if g.ndim > 1 else (0, 0)
        if g.ndim > 1 and min(g.shape[i], g.shape[j]) >= min_dim_size_to_factor:
            # R = sum over columns, C = sum over rows, V = R C / sum(R)
            r = square.sum(axis=j, keepdims=True)
            c = square.sum(axis=i, keepdims=True)
            rows[path] = b2_t * rows.get(path, 0) + (1 - b2_t) * r
            cols[path] = b2_t * cols.get(path, 0) + (1 - b2_t) * c
            v = rows[path] * cols[path] / rows[path].sum(axis=i, keepdims=True)
        else:
            full[path] = v = b2_t * full.get(path, 0) + (1 - b2_t) * square
        u = g / np.sqrt(v)
        u = u / max(1.0, np.sqrt(np.mean(u**2)) / clipping_threshold)
        m[path] = b1 * m.get(path, 0) + (1 - b1) * u
        return m[path]

    return precondition


def reference(
    precondition: Precondition,
    *,
    decays: dict[str, float],
    lr_scales: dict[str, float],
    learning_rate: Callable[[int], float] = cosine,
    clip: float = CLIP,
) -> Flat:
    params = {path: p.astype(np.float64) for path, p in PARAMS.items()}
    trained = [path for path in params if lr_scales[path] > 0]
    for step, grads in enumerate(GRADS):
        g64 = {path: grads[path].astype(np.float64) for path in trained}
        norm = np.sqrt(sum(np.sum(g**2) for g in g64.values()))
        for path, g in g64.items():
            u = precondition(path, g * min(1.0, clip / norm), step + 1)
            u = u + decays[path] * params[path]
            params[path] = params[path] - learning_rate(step) * lr_scales[path] * u
    return params
