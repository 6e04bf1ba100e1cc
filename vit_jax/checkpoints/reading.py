"""Reading checkpoints: a whole state, the weights alone, or what shapes they have."""

import contextlib
import dataclasses
import errno
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from vit_jax import workdirs
from vit_jax.checkpoints import manifest
from vit_jax.checkpoints.disk import tell_once
from vit_jax.checkpoints.manifest import Damaged
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
from vit_jax.limits import is_number
from vit_jax.sharding import path_name
from vit_jax.state import Params, TrainState

POSITION = "position/metadata"  # the file of Orbax's JSON items
# Items of every checkpoint; `ema_params` is there with `config.ema` alone.
_ALWAYS = ("params", "rest", "position", "config")
UNVERIFIED = (
    "{} was written before checkpoints had a manifest: its files cannot be verified"
)
# Errors of the system that are the files' own. Others (no permission, no network, no
# memory) say nothing of them.
_OF_FILES = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO)


@dataclasses.dataclass
class Position:
    """Where the loop stood: what a checkpoint knows besides the state.

    Attributes:
      step: the number of updates done.
      stream: what makes batch number s what it is: seed, batch size, data; and a
        sample of the data's files, which may be others under the same names.
      pending: scalars of this step that wait for its evaluations, if it was left
        before they were done; None if nothing is owed.
      best_step: of the best evaluation so far, and `best_value`; None before the first.
    """

    step: int = 0
    stream: dict[str, Any] = dataclasses.field(default_factory=dict)
    pending: dict[str, Any] | None = None
    best_step: int | None = None
    best_value: float | None = None


def examine(
    directory: epath.Path,
    *,
    leave_out: Collection[str] = (),
    part: tuple[int, int] = (0, 1),
    tell: Callable[[int, int], None] | None = None,
) -> bool:
    """Looks whether a checkpoint is whole, before anything of it is used.

    Args:
      directory: of the checkpoint; its name is the step.
      leave_out: items that will not be read.
      part: (i, n) reads the i-th of n parts; see `manifest.verify`.
      tell: called with the bytes read so far and in all.

    Returns:
      Whether its files are verified: not if it is older than manifests.

    Raises:
      Damaged: if it is not whole.
      UserError: if it cannot be read for another reason.
    """
    verified = manifest.verify(directory, leave_out=leave_out, part=part, progress=tell)
    if lacking := [item for item in _ALWAYS if not (directory / item).is_dir()]:
        raise Damaged(f"{', '.join(lacking)}: missing")
    read_position(directory)
    return verified


def read_position(directory: epath.Path) -> Position:
    """The position that a checkpoint holds.

    Raises:
      Damaged: if it is none, or of another step than the directory.
    """
    with damages():
        position = Position(**read_json(directory / "position"))
    integers = (position.step, position.best_step or 0)
    good = (
        all(type(x) is int and 0 <= x < 2**31 for x in integers)
        and isinstance(position.stream, dict)
        and isinstance(position.pending, dict | None)
        and isinstance(position.best_value, float | int | None)
        and str(position.step) == directory.name
    )
    if not good:
        raise Damaged(f"its position is not of step {directory.name}")
    return position


@contextlib.contextmanager
def damages(*, verified: bool = False) -> Iterator[None]:
    """Takes what fails within for damage of the files, unless they are verified.

    Raises:
      Damaged: instead of what Orbax raises for files that are missing or garbled.
    """
    tell_once()
    try:
        yield
    except (UserError, Damaged):
        raise
    # Orbax and TensorStore raise many types for these, a bare Exception among them.
    except Exception as error:
        if verified or not _of_files(error):
            raise
        line = (str(error).strip().splitlines() or [""])[0][:200]
        raise Damaged(f"{type(error).__name__}: {line}") from error


def _of_files(error: Exception) -> bool:
    """Whether an error of reading may be due to what the files hold."""
    if isinstance(error, OSError):
        return error.errno in (*_OF_FILES, None)
    elsewhere = ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAVAILABLE", "UNAUTHEN")
    return not isinstance(error, MemoryError) and not any(
        word in str(error) for word in elsewhere
    )


def committed_steps(directory: epath.Path) -> list[int]:
    """Steps of the checkpoints in a directory that are wholly written, sorted."""
    if not directory.is_dir():
        return []
    is_whole = ocp.path.step.is_path_finalized  # object stores have no atomic rename
    names = (p for p in directory.iterdir() if is_number(p.name) and p.is_dir())
    return sorted(int(p.name) for p in names if is_whole(p))


def tidy(directory: epath.Path) -> None:
    """Removes what an interrupted save left behind, and notes on which Orbax fails.

    Orbax can do the first too, but in a thread that `CheckpointManager.close` does not
    wait for: a run that ends at once, for a mistake in its config, would end in a
    traceback.

    Orbax notes when a checkpoint was saved, and reads the notes of all when it opens
    their directory: one with a damaged letter would end the run. Nothing that is
    restored is in them, and without one Orbax takes the time of the directory.
    """
    for path in directory.iterdir():
        if path.is_dir() and ocp.path.step.is_path_temporary(path):
            path.rmtree()
    for step in ocp.path.step.standard_name_format().find_all(directory):
        note = step.path / "_CHECKPOINT_METADATA"
        try:
            _ = step.commit_timestamp
        except OSError:
            raise  # not a matter of what is in the file
        except Exception as error:  # of any type
            logging.warning("%s is damaged (%s) and is removed.", note, error)
            note.unlink(missing_ok=True)


def read_state(
    directory: epath.Path, abstract: TrainState, *, verified: bool
) -> tuple[TrainState, Position, list[str]]:
    """One checkpoint, laid out as `abstract` says, and sentences for the user.

    Args:
      directory: of the checkpoint.
      abstract: the state as this run has it.
      verified: its files are as they were written: see `examine`.

    Raises:
      UserError: if it is of another model, or the optimiser lacks part of its state.
      Damaged: if it cannot be read, or its parts are of several steps.
    """
    with damages(verified=verified):
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
        position = read_position(directory)
    if (step := int(jax.device_get(state.step))) != position.step:
        raise Damaged(f"its state is of step {step}")
    if not verified:
        notes.append(UNVERIFIED.format(directory))
    return state, position, notes


def write_position(directory: epath.Path, position: Position) -> None:
    """Replaces the position of a checkpoint on disk, by one rename."""
    data = json.dumps(dataclasses.asdict(position)).encode()
    manifest.replace(directory, POSITION, data)


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


def read_params(directory: epath.Path, abstract: Params) -> Params:
    """The weights of a checkpoint: the averaged ones if it has them.

    Args:
      directory: from `choose`, which verifies it.
      abstract: the parameters as this model lays them out.

    Raises:
      UserError: if they cannot be read, or are of another model.
    """
    with _told(directory):
        item = "ema_params" if (directory / "ema_params").exists() else "params"
        stored = only(item, stored_shapes(directory))
        refuse_differences(directory, stored, shapes_of(item, abstract))
        logging.info("weights: %s of %s", item, directory)
        return read_item(directory / item, abstract)


@contextlib.contextmanager
def _told(where: epath.Path) -> Iterator[None]:
    """What is met within of damage becomes an error for the user.

    It is met in checkpoints that are older than manifests; others are verified before.
    """
    try:
        with damages():
            yield
    except Damaged as error:
        raise UserError(
            f"{where} cannot be read ({error}): name another checkpoint, such as "
            "WORKDIR/checkpoints/STEP"
        ) from error


def read_config(directory: epath.Path) -> dict[str, Any]:
    """The config of the run that made a checkpoint.

    Raises:
      UserError: if it cannot be read.
    """
    with _told(directory / "config"):
        config = read_json(directory / "config")
        if not all(isinstance(config[key], dict) for key in ("model", "data", "loss")):
            raise Damaged("it is no config")
        return dict(config)


def read_label_names(directory: epath.Path) -> tuple[str, ...] | None:
    """The names of the classes that a run learned, if it knew any.

    Args:
      directory: of one of its checkpoints. What labels.json of its workdir says is
        taken, so that it may be edited; else what the checkpoint holds.

    Raises:
      UserError: if neither can be read.
    """
    path = directory.parent.parent / workdirs.LABEL_NAMES
    stored = directory / "labels"
    if path.exists():
        try:
            return _as_names(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, RecursionError) as error:
            if not stored.exists():
                raise UserError(
                    f"{path} is no list of names: correct or remove it"
                ) from error
            logging.warning("%s is damaged: the names of %s are taken", path, directory)
    if not stored.exists():
        return None
    with _told(stored):
        return _as_names(read_json(stored)["names"])


def _as_names(names: Any) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise ValueError("no list of names")
    return tuple(names)


def head_width(directory: epath.Path) -> int | None:
    """The number of classes of the head in a checkpoint; None without one.

    Raises:
      UserError: if it is broken.
    """
    path = "params/head/kernel"
    with _told(directory):
        shapes = stored_shapes(directory)
    return shapes[path][0][-1] if path in shapes else None


def read_arrays(directory: epath.Path) -> dict[str, np.ndarray]:
    """The weights of a checkpoint by path, on the host; the averaged ones if any.

    Raises:
      UserError: if they cannot be read.
    """
    item = directory / "ema_params"
    item = item if item.exists() else directory / "params"
    with _told(item):
        leaves = jax.tree_util.tree_leaves_with_path(_read_on_host(item))
    return {path_name(path): np.asarray(leaf) for path, leaf in leaves}


def read_everything(directory: epath.Path) -> None:
    """Reads all arrays of a checkpoint, one item after the other.

    Raises:
      Damaged: if one cannot be read.
    """
    with damages():
        for item in ITEMS:
            if (directory / item).exists():
                _read_on_host(directory / item)


def _read_on_host(item: epath.Path) -> Any:
    handler = ocp.PyTreeCheckpointHandler()
    as_numpy = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(item).tree
    )
    return handler.restore(item, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
