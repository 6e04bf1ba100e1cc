"""How another library lays out an array that is one or several of ours.

Axes: d width, h heads, k head dim, o outputs, i inputs, H and W height and width of a
kernel, n tokens. PyTorch's kernels are [o, i] and [o, i, H, W], Flax's [i, o] and
[H, W, i, o].
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from vit_jax.errors import UserError

Shape = tuple[int, ...]
Arrays = list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layout:
    """One array of theirs, and the arrays of ours that it holds.

    Attributes:
      shape: the shape that theirs has, given the shapes of ours.
      read: theirs to ours, given the shapes of ours. The inverse of `write`.
      write: ours to theirs.
    """

    shape: Callable[[Sequence[Shape]], Shape]
    read: Callable[[np.ndarray, Sequence[Shape]], Arrays]
    write: Callable[[Sequence[np.ndarray]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line of the table of what maps to what.

    Attributes:
      theirs: the name in the other library.
      ours: the paths in our parameters, such as "head/kernel".
      layout: how the one is made of the others.
    """

    theirs: str
    ours: tuple[str, ...]
    layout: Layout


SAME = Layout(lambda s: s[0], lambda a, _: [a], lambda a: a[0])

# Dense kernels: [i, o] here, [o, i] there.
DENSE = Layout(lambda s: s[0][::-1], lambda a, _: [a.T], lambda a: a[0].T)

# A dense kernel that they keep as a convolution of one pixel, [o, i, 1, 1].
DENSE_AS_CONV = Layout(
    lambda s: (*s[0][::-1], 1, 1),
    lambda a, _: [a[:, :, 0, 0].T],
    lambda a: a[0].T[:, :, None, None],
)
# The same with Flax's order of axes, [1, 1, i, o].
DENSE_AS_FLAX_CONV = Layout(
    lambda s: (1, 1, *s[0]), lambda a, _: [a[0, 0]], lambda a: a[0][None, None]
)

# [H, W, i, o] here, [o, i, H, W] there.
CONV = Layout(
    lambda s: (s[0][3], s[0][2], s[0][0], s[0][1]),
    lambda a, _: [a.transpose(2, 3, 1, 0)],
    lambda a: a[0].transpose(3, 2, 0, 1),
)

# GroupNorm's in the files published with the paper: [1, 1, 1, c].
LAST_OF_FOUR = Layout(
    lambda s: (1, 1, 1, *s[0]),
    lambda a, s: [a.reshape(s[0])],
    lambda a: a[0].reshape(1, 1, 1, -1),
)


# Layers of a scan: all of one kind in one array, with the layer's number first.
STACKED = Layout(
    lambda s: (len(s), *s[0]), lambda a, _: list(a), lambda a: np.stack(list(a))
)


def to_heads(parts: int = 1) -> Layout:
    """Projections to heads, [d, h, k] each: theirs [h k, d], stacked if several."""
    return Layout(
        lambda s: (parts * s[0][1] * s[0][2], s[0][0]),
        lambda a, s: [
            part.T.reshape(s[0]) for part in a.reshape(parts, -1, a.shape[1])
        ],
        lambda a: np.concatenate([x.reshape(x.shape[0], -1).T for x in a]),
    )


def to_heads_without_bias(parts: int) -> Layout:
    """Projections to heads as `to_heads` has them, and zeros for their biases."""
    kernels = to_heads(parts)

    def write(arrays: Sequence[np.ndarray]) -> np.ndarray:
        if any(bias.any() for bias in arrays[parts:]):
            raise UserError("biases that are not zero, where the format has none")
        return kernels.write(arrays[:parts])

    return Layout(
        kernels.shape,
        lambda a, s: [
            *kernels.read(a, s[:parts]),
            *(np.zeros(shape, a.dtype) for shape in s[parts:]),
        ],
        write,
    )


def to_heads_bias(parts: int = 1) -> Layout:
    """Their biases, [h, k] each: theirs [h k], stacked if several."""
    return Layout(
        lambda s: (parts * math.prod(s[0]),),
        lambda a, s: [part.reshape(s[0]) for part in a.reshape(parts, -1)],
        lambda a: np.concatenate([x.reshape(-1) for x in a]),
    )


# The projection from heads, [h, k, d]: theirs [d, h k].
FROM_HEADS = Layout(
    lambda s: (s[0][2], s[0][0] * s[0][1]),
    lambda a, s: [a.T.reshape(s[0])],
    lambda a: a[0].reshape(-1, a[0].shape[-1]).T,
)


def after(tokens: int) -> Layout:
    """Position embeddings [1, n, d], of which theirs lacks the first few: zeros here.

    Args:
      tokens: class tokens, which have no position there.
    """

    def read(array: np.ndarray, _: Sequence[Shape]) -> Arrays:
        return [np.pad(array, ((0, 0), (tokens, 0), (0, 0)))]

    def write(arrays: Sequence[np.ndarray]) -> np.ndarray:
        if arrays[0][:, :tokens].any():
            raise UserError(
                "the position embedding of the class token is not zero, and this "
                "format has none with registers"
            )
        return arrays[0][:, tokens:]

    return Layout(lambda s: (1, s[0][1] - tokens, s[0][2]), read, write)
