"""Which arrays of a checkpoint a run goes on with, and when it cannot.

The state of an optimiser is a tree that follows the config: clipping, weight decay,
multipliers of the learning rate and freezing each add a level or an entry to it, most
of them without an array. What counts is the arrays. A run goes on wherever all that it
needs are there, whatever else the config says.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax

from vit_jax.errors import UserError
from vit_jax.sharding import path_name
from vit_jax.state import TrainState

# Path -> (shape, dtype) of arrays.
Shapes = dict[str, tuple[tuple[int, ...], str]]

# The level that `optim.make` puts around the chain when parameters are frozen.
_FREEZING = "/opt_state/trained/inner_state/"


class OtherModel(UserError):
    """A checkpoint has other arrays than a run needs."""


ITEMS = ("params", "ema_params", "rest")


def name_of(item: str, path: tuple[Any, ...]) -> str:
    """The name of an array of a state, the same whether parameters are frozen or not.

    Args:
      item: of the checkpoint that holds it, one of `ITEMS`.
      path: of `jax.tree_util`.
    """
    return f"{item}/{path_name(path)}".replace(_FREEZING, "/opt_state/")


def wanted_shapes(abstract: TrainState) -> Shapes:
    """The shapes and types of all arrays of a state, by name."""
    rest = abstract.replace(params=None, ema_params=None)  # type: ignore[attr-defined]
    trees = (abstract.params, abstract.ema_params, rest)
    return {
        name: shape
        for item, tree in zip(ITEMS, trees, strict=True)
        for name, shape in shapes_of(item, tree).items()
    }


def shapes_of(item: str, tree: Any) -> Shapes:
    """The same of one item: of arrays, of `ShapeDtypeStruct`s or of metadata."""
    return {
        name_of(item, path): (tuple(leaf.shape), str(leaf.dtype))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def compare_shapes(stored: Shapes, wanted: Shapes) -> list[str]:
    """A line for each array that is missing, left over, or of another shape or type.

    >>> compare_shapes({"a": ((2,), "float32")}, {"a": ((3,), "float32")})
    ['a: (2,) float32 in the checkpoint, (3,) float32 in this config']
    """

    def show(shapes: Shapes, path: str) -> str:
        return "{} {}".format(*shapes[path]) if path in shapes else "absent"

    return [
        f"{path}: {show(stored, path)} in the checkpoint, {show(wanted, path)} in this "
        "config"
        for path in sorted(stored.keys() | wanted.keys())
        if show(stored, path) != show(wanted, path)
    ]


def refuse_differences(
    what: object,
    stored: Shapes,
    wanted: Shapes,
    *,
    kind: str = "model",
    most: int = 20,
    advice: str = "use another --workdir, or the config that it was made with",
) -> None:
    """Raises an error that lists how a checkpoint differs from this config.

    Raises:
      OtherModel: if it does.
    """
    if differences := compare_shapes(stored, wanted):
        more = len(differences) - most
        raise OtherModel(
            f"{what} is of another {kind}:\n"
            + "\n".join(f"  {line}" for line in differences[:most])
            + (f"\n  ... and {more} more" if more > 0 else "")
            + f"\n{advice}"
        )


def match_state(where: object, stored: Shapes, wanted: Shapes) -> list[str]:
    """Checks that a run can go on from a checkpoint; what of it starts anew or is lost.

    Args:
      where: the checkpoint, for messages.
      stored: what it holds.
      wanted: what the run needs.

    Returns:
      Sentences for the user; [] if the checkpoint holds just what is needed.

    Raises:
      UserError: if it is of another model, or the optimiser lacks part of its state.
    """
    refuse_differences(where, only("params", stored), only("params", wanted))
    notes: list[str] = []
    average = only("ema_params", wanted)
    if average and not only("ema_params", stored):
        notes.append("the average of the parameters (config.ema) starts at this step")
    else:
        both = {n: s for n, s in only("ema_params", stored).items() if average}
        refuse_differences(where, both, average)
    if only("ema_params", stored) and not average:
        notes.append("the average of the parameters ends here: config.ema is none")
    for kind in ("objective", "optimiser"):
        needed, there = (_of(kind, only("rest", x)) for x in (wanted, stored))
        refuse_differences(
            where,
            {name: shape for name, shape in there.items() if name in needed},
            needed,
            kind=kind,
            most=4,
            advice=f"use the {kind} that it was made with, or start a run from these "
            f"weights: --workdir=ANOTHER --config.init_from={where}",
        )
        if unused := there.keys() - needed.keys():
            arrays = "array" if len(unused) == 1 else "arrays"
            notes.append(
                f"{len(unused)} {arrays} of the {kind}'s state that this config does "
                f"not use: left out ({', '.join(_groups(unused))})"
            )
    return notes


def _of(kind: str, rest: Shapes) -> Shapes:
    """Those of the objective, or else of all the rest."""
    is_objectives = kind == "objective"
    return {
        name: shape
        for name, shape in rest.items()
        if name.startswith("rest/objective/") == is_objectives
    }


def only(item: str, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Those of one item."""
    return {n: shape for n, shape in shapes.items() if n.startswith(f"{item}/")}


def _groups(names: Iterable[str]) -> list[str]:
    """The first levels of the names of arrays of an optimiser.

    >>> _groups(["rest/opt_state/adamw/mu/head/bias", "rest/opt_state/adamw/mu/cls"])
    ['adamw/mu']
    """
    parts = (name.split("/")[2:4] for name in names)
    return sorted({"/".join(part) for part in parts})
