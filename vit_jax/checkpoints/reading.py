"""Reading checkpoints: a whole state, the weights alone, or what shapes they have."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from vit_jax import workdirs
from vit_jax.errors import UserError
from vit_jax.sharding import path_name
from vit_jax.state import Params, TrainState

# What Orbax and TensorStore raise for files that are missing, cut short or garbled.
# Other errors of the system (no permission, no network) say nothing of the files.
BROKEN = (FileNotFoundError, ValueError, KeyError, TypeError)

# Path -> (shape, dtype) of the arrays of a checkpoint.
Shapes = dict[str, tuple[tuple[int, ...], str]]


@dataclasses.dataclass
class Position:
    """Where the loop stood: what a checkpoint knows besides the state.

    Attributes:
      step: the number of updates done.
      stream: what makes batch number s what it is: seed, batch size, data.
      pending: scalars of this step that wait for its evaluations, if it was left
        before they were done; None if nothing is owed.
      best_step: of the best evaluation so far, and `best_value`; None before the first.
    """

    step: int = 0
    stream: dict[str, Any] = dataclasses.field(default_factory=dict)
    pending: dict[str, Any] | None = None
    best_step: int | None = None
    best_value: float | None = None


def committed_steps(directory: epath.Path) -> list[int]:
    """Steps of the checkpoints in a directory that are wholly written, sorted."""
    if not directory.is_dir():
        return []
    is_whole = ocp.path.step.is_path_finalized  # object stores have no atomic rename
    names = (p for p in directory.iterdir() if p.name.isdigit())
    return sorted(int(p.name) for p in names if is_whole(p))


def remove_uncommitted(directory: epath.Path) -> None:
    """Removes what an interrupted save left behind.

    Orbax can do this too, but in a thread that `CheckpointManager.close` does not wait
    for: a run that ends at once, for a mistake in its config, would end in a traceback.
    """
    for path in directory.iterdir():
        if path.is_dir() and ocp.path.step.is_path_temporary(path):
            path.rmtree()


def read_state(
    directory: epath.Path, abstract: TrainState
) -> tuple[TrainState, Position]:
    """One checkpoint, laid out as `abstract` says.

    Raises:
      UserError: if it is of another model or optimiser, with the differences.
    """
    refuse_differences(
        directory, stored_shapes(directory), wanted_shapes(abstract), "optimiser"
    )
    rest = abstract.replace(params=None, ema_params=None)  # type: ignore[attr-defined]
    ema_params = None
    if abstract.ema_params is not None:
        ema_params = read_item(directory / "ema_params", abstract.ema_params)
    state = read_item(directory / "rest", rest).replace(
        params=read_item(directory / "params", abstract.params), ema_params=ema_params
    )
    return state, Position(**read_json(directory / "position"))


def write_position(directory: epath.Path, position: Position) -> None:
    """Replaces the position of a checkpoint on disk, by one rename."""
    path = directory / "position" / "metadata"  # the file of Orbax's JSON items
    temporary = path.with_name("metadata.tmp")
    temporary.write_text(json.dumps(dataclasses.asdict(position)))
    temporary.replace(path)


def read_item(directory: epath.Path, abstract: Any) -> Any:
    """One tree of arrays of a checkpoint, laid out as `abstract` says."""
    # The handlers themselves: a Checkpointer around them warns of items that it did
    # not write alone.
    return ocp.StandardCheckpointHandler().restore(
        directory, args=ocp.args.StandardRestore(abstract)
    )


def read_json(directory: epath.Path) -> Mapping[str, Any]:
    """One JSON item of a checkpoint."""
    return ocp.JsonCheckpointHandler().restore(directory)


def wanted_shapes(abstract: TrainState) -> Shapes:
    """Path -> (shape, dtype) of all arrays of a state, by the item that holds them."""
    shapes: Shapes = {}
    rest = abstract.replace(params=None, ema_params=None)  # type: ignore[attr-defined]
    for item, tree in (
        ("params", abstract.params),
        ("ema_params", abstract.ema_params),
        ("rest", rest),
    ):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            shapes[f"{item}/{path_name(path)}"] = (tuple(leaf.shape), str(leaf.dtype))
    return shapes


def stored_shapes(directory: epath.Path) -> Shapes:
    """The same of a checkpoint on disk, from its metadata alone."""
    shapes: Shapes = {}
    for item in ("params", "ema_params", "rest"):
        if not (directory / item).exists():
            continue
        tree = ocp.StandardCheckpointHandler().metadata(directory / item).tree
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            shapes[f"{item}/{path_name(path)}"] = (tuple(leaf.shape), str(leaf.dtype))
    return shapes


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
    directory: epath.Path | str,
    stored: Shapes,
    wanted: Shapes,
    *others: str,
    most: int = 20,
    advice: str = "use another --workdir, or the config that it was made with",
) -> None:
    """Raises a UserError that lists how a checkpoint differs from this config."""
    if differences := compare_shapes(stored, wanted):
        more = len(differences) - most
        raise UserError(
            f"{directory} is of another {' or '.join(('model', *others))}:\n"
            + "\n".join(f"  {line}" for line in differences[:most])
            + (f"\n  ... and {more} more" if more > 0 else "")
            + f"\n{advice}"
        )


def read_params(
    path: epath.Path, abstract: Params, *, step: int | None = None
) -> Params:
    """The weights of a run: the averaged ones if it has them, of its best step.

    Args:
      path: a workdir, or one of the directories in its `checkpoints/`.
      abstract: the parameters as this model lays them out.
      step: another step than the best, or else newest.

    Raises:
      UserError: if there is none, or the parameters are of another model.
    """
    directory = choose(path, step)
    try:
        return _read_params(directory, abstract)
    except UserError:
        raise
    except BROKEN as error:
        raise UserError(
            f"{directory} cannot be read ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0][:200]}): name another checkpoint, "
            f"such as {directory.parent / 'STEP'}"
        ) from error


def _read_params(directory: epath.Path, abstract: Params) -> Params:
    item = "ema_params" if (directory / "ema_params").exists() else "params"
    stored = {
        name.split("/", 1)[1]: shape
        for name, shape in stored_shapes(directory).items()
        if name.startswith(f"{item}/")
    }
    wanted = {
        path_name(p): (tuple(leaf.shape), str(leaf.dtype))
        for p, leaf in jax.tree_util.tree_leaves_with_path(abstract)
    }
    refuse_differences(directory, stored, wanted)
    logging.info("weights: %s of %s", item, directory)
    return read_item(directory / item, abstract)


def read_config(directory: epath.Path) -> dict[str, Any]:
    """The config of the run that made a checkpoint.

    Raises:
      UserError: if it cannot be read.
    """
    try:
        return dict(read_json(directory / "config"))
    except BROKEN as error:
        raise UserError(
            f"{directory}: its config cannot be read ({type(error).__name__}): name "
            "another checkpoint"
        ) from error


def read_label_names(workdir: epath.Path) -> tuple[str, ...] | None:
    """The names of the classes that a run learned, if it knew any.

    Raises:
      UserError: if the file that holds them is broken.
    """
    path = workdir / workdirs.LABEL_NAMES
    if not path.exists():
        return None
    try:
        names = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is no JSON: correct or remove it") from error
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise UserError(f"{path} is no list of names: correct or remove it")
    return tuple(names)


def head_width(directory: epath.Path) -> int | None:
    """The number of classes of the head in a checkpoint; None without one."""
    shapes = stored_shapes(directory)
    path = "params/head/kernel"
    return shapes[path][0][-1] if path in shapes else None


def is_run(path: epath.Path) -> bool:
    """Whether a path is a workdir of ours, or one of the checkpoints in it."""
    return (path / "checkpoints").is_dir() or (path / "params").is_dir()


def read_arrays(directory: epath.Path) -> dict[str, np.ndarray]:
    """The weights of a checkpoint by path, on the host; the averaged ones if any.

    Raises:
      UserError: if they cannot be read.
    """
    item = directory / "ema_params"
    item = item if item.exists() else directory / "params"
    handler = ocp.PyTreeCheckpointHandler()
    try:
        as_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
            handler.metadata(item).tree,
        )
        tree = handler.restore(item, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    except BROKEN as error:
        raise UserError(
            f"{item} cannot be read ({type(error).__name__}): name another checkpoint"
        ) from error
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): np.asarray(leaf) for path, leaf in leaves}


def choose(path: epath.Path, step: int | None = None) -> epath.Path:
    """The checkpoint that `read_params` takes; see its arguments."""
    if path.name.isdigit() and (path / "params").exists():
        return path
    steps = committed_steps(path / "checkpoints")
    if not steps or (step is not None and step not in steps):
        found = ", ".join(map(str, steps)) or "no checkpoint"
        wanted = "a workdir with checkpoints/STEP" if step is None else f"step {step}"
        raise UserError(f"{path}: expected {wanted}, found {found}")
    newest = path / "checkpoints" / str(steps[-1])
    if step is None:
        try:
            best = read_json(newest / "position")["best_step"]
        except BROKEN:  # reading its weights will say so, or find them whole
            best = None
        step = best if best in steps else steps[-1]
    return path / "checkpoints" / str(step)
