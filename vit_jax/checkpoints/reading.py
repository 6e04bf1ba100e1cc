"""Reading checkpoints: a whole state, the weights alone, or what shapes they have."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from vit_jax import workdirs
from vit_jax.checkpoints.matching import (
    ITEMS,
    Shapes,
    match_state,
    name_of,
    only,
    refuse_differences,
    shapes_of,
    wanted_shapes,
)
from vit_jax.errors import UserError
from vit_jax.sharding import path_name
from vit_jax.state import Params, TrainState

# What Orbax and TensorStore raise for files that are missing, cut short or garbled.
# Other errors of the system (no permission, no network) say nothing of the files.
BROKEN = (FileNotFoundError, ValueError, KeyError, TypeError)


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
) -> tuple[TrainState, Position, list[str]]:
    """One checkpoint, laid out as `abstract` says, and sentences for the user.

    Raises:
      UserError: if it is of another model, or the optimiser lacks part of its state.
    """
    stored = stored_shapes(directory)
    notes = match_state(directory, stored, wanted_shapes(abstract))
    rest = abstract.replace(params=None, ema_params=None)  # type: ignore[attr-defined]
    params = read_item(directory / "params", abstract.params)
    ema_params = None
    if abstract.ema_params is not None:
        ema_params = jax.tree.map(jnp.copy, params)
        if only("ema_params", stored):
            ema_params = read_item(directory / "ema_params", abstract.ema_params)
    state = read_item(directory / "rest", rest).replace(
        params=params, ema_params=ema_params
    )
    return state, Position(**read_json(directory / "position")), notes


def write_position(directory: epath.Path, position: Position) -> None:
    """Replaces the position of a checkpoint on disk, by one rename."""
    path = directory / "position" / "metadata"  # the file of Orbax's JSON items
    temporary = path.with_name("metadata.tmp")
    temporary.write_text(json.dumps(dataclasses.asdict(position)))
    temporary.replace(path)


def read_item(directory: epath.Path, abstract: Any) -> Any:
    """The arrays of one item that `abstract` has, laid out as it says.

    They are found by name, since the tree on disk may have other levels: see
    `matching`. Arrays on disk that `abstract` does not have are not read.
    """
    item = directory.name
    wanted = {
        name_of(item, path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)
    }
    # The handlers themselves: a Checkpointer around them warns of items that it did
    # not write alone.
    handler = ocp.PyTreeCheckpointHandler()
    target = jax.tree_util.tree_map_with_path(
        lambda path, _: wanted.get(name_of(item, path), ocp.PLACEHOLDER),
        handler.metadata(directory).tree,
    )
    how = ocp.checkpoint_utils.construct_restore_args(target)
    tree = handler.restore(
        directory, args=ocp.args.PyTreeRestore(item=target, restore_args=how)
    )
    found = {
        name_of(item, path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    return jax.tree_util.tree_map_with_path(
        lambda path, _: found[name_of(item, path)], abstract
    )


def read_json(directory: epath.Path) -> Mapping[str, Any]:
    """One JSON item of a checkpoint."""
    return ocp.JsonCheckpointHandler().restore(directory)


def stored_shapes(directory: epath.Path) -> Shapes:
    """The shapes and types of a checkpoint's arrays by name, from its metadata."""
    shapes: Shapes = {}
    for item in ITEMS:
        if (directory / item).exists():
            tree = ocp.PyTreeCheckpointHandler().metadata(directory / item).tree
            shapes |= shapes_of(item, tree)
    return shapes


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
    with _explained(directory):
        return _read_params(directory, abstract)


@contextlib.contextmanager
def _explained(directory: epath.Path) -> Iterator[None]:
    """What reading a checkpoint that is broken raises becomes one sentence."""
    try:
        yield
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
    stored, wanted = only(item, stored_shapes(directory)), shapes_of(item, abstract)
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
    """The number of classes of the head in a checkpoint; None without one.

    Raises:
      UserError: if it is broken.
    """
    with _explained(directory):
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
