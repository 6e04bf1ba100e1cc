"""Parameters of looped and of scanned layers, each made from the other.

A loop has `encoderblock_0`, `encoderblock_1`, ...; a scan has one `encoderblock` whose
leaves carry a leading layer axis. Both compute the same function.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.errors import UserError

_LAYER = re.compile(r"encoderblock_(\d+)")


def loop_to_scan(tree: Any) -> Any:
    """Stacks `encoderblock_{i}` of every dict in `tree` into one `encoderblock`.

    Args:
      tree: parameters, or any pytree with dicts of the same structure in it, such as
        an optimizer state or an EMA. NumPy arrays stay NumPy arrays. Moments that
        Adafactor has factored are not stacks of each other and cannot be converted.

    Returns:
      The same tree, with stacked layers; a tree without layers comes back unchanged.

    Raises:
      UserError: the layers are not numbered 0, 1, 2, ... or differ in shape.

    >>> import numpy as np
    >>> loop = {f"encoderblock_{i}": {"bias": np.full(2, i)} for i in range(3)}
    >>> loop_to_scan(loop)
    {'encoderblock': {'bias': array([[0, 0],
           [1, 1],
           [2, 2]])}}
    """
    return _map_dicts(_stack_layers, tree)


def scan_to_loop(tree: Any) -> Any:
    """Splits `encoderblock` of every dict in `tree` into `encoderblock_{i}`.

    The inverse of `loop_to_scan`; see there.

    >>> import numpy as np
    >>> scan_to_loop({"encoderblock": {"bias": np.array([[0, 0], [1, 1]])}})
    {'encoderblock_0': {'bias': array([0, 0])},
     'encoderblock_1': {'bias': array([1, 1])}}
    """
    return _map_dicts(_split_layers, tree)


def _map_dicts(convert: Callable[[dict], dict], tree: Any) -> Any:
    """Applies `convert` to every dict of a pytree, innermost first."""

    def visit(node: Any) -> Any:
        if not isinstance(node, Mapping):
            return node
        return convert({k: _map_dicts(convert, v) for k, v in node.items()})

    return jax.tree.map(visit, tree, is_leaf=lambda node: isinstance(node, Mapping))


def _stack_layers(node: dict) -> dict:
    numbers = sorted(int(m[1]) for m in map(_LAYER.fullmatch, node) if m)
    if not numbers:
        return node
    if numbers != list(range(len(numbers))):
        raise UserError(
            f"cannot stack the layers encoderblock_{{i}}: found the numbers {numbers}, "
            f"expected 0 to {len(numbers) - 1}"
        )
    layers = [node[f"encoderblock_{i}"] for i in numbers]
    try:
        stacked = jax.tree.map(_stack, *layers)
    except ValueError as error:
        raise UserError(f"cannot stack layers that differ: {error}") from error
    rest = {k: v for k, v in node.items() if not _LAYER.fullmatch(k)}
    return {"encoderblock": stacked, **rest}


def _split_layers(node: dict) -> dict:
    if "encoderblock" not in node:
        return node
    rest = dict(node)
    stacked = rest.pop("encoderblock")
    lengths = {len(leaf) for leaf in jax.tree.leaves(stacked)}
    if len(lengths) != 1:
        raise UserError(
            f"cannot split the layers of encoderblock: leading axes {sorted(lengths)}, "
            "expected one number of layers"
        )
    layers = {
        f"encoderblock_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], stacked)
        for i in range(lengths.pop())
    }
    return layers | rest


def _stack(*leaves: Any) -> Any:
    on_host = all(isinstance(leaf, np.ndarray | np.generic) for leaf in leaves)
    return np.stack(leaves) if on_host else jnp.stack(leaves)
