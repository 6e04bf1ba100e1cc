"""Which checkpoint of a run is read: the best or the newest one that is whole."""

from collections.abc import Collection, Sequence
from typing import Any

from absl import logging
from etils import epath

from vit_jax import progress, workdirs
from vit_jax.checkpoints.manifest import Damaged
from vit_jax.checkpoints.matching import ITEMS
from vit_jax.checkpoints.reading import (
    UNVERIFIED,
    committed_steps,
    examine,
    read_config,
    read_position,
)
from vit_jax.errors import UserError
from vit_jax.limits import is_number


def is_run(path: epath.Path) -> bool:
    """Whether a path is a workdir of ours, or one of the checkpoints in it."""
    is_workdir = (path / "checkpoints").is_dir() or (path / "params").is_dir()
    return is_workdir or (is_step(path) and path.is_dir())


def is_step(path: epath.Path) -> bool:
    """Whether a path is one of a checkpoint, be it whole or not."""
    return is_number(path.name) and path.parent.name == "checkpoints"


def choose(path: epath.Path, step: int | None = None) -> epath.Path:
    """The checkpoint whose weights are taken of a run: the best, or else the newest.

    It is looked at before: of one that is damaged this is said, and the next is taken,
    unless it is the one that was asked for.

    Args:
      path: a workdir, or one of the directories in its `checkpoints/`.
      step: another step than the best, or else newest.

    Raises:
      UserError: if there is none, or none that is whole.
    """
    if is_step(path) or (is_number(path.name) and (path / "params").exists()):
        return _only_whole([path], path)
    steps = committed_steps(path / "checkpoints")
    if not steps or (step is not None and step not in steps):
        found = ", ".join(map(str, steps)) or "no checkpoint"
        wanted = "a workdir with checkpoints/STEP" if step is None else f"step {step}"
        raise UserError(f"{path}: expected {wanted}, found {found}")
    directories = [path / "checkpoints" / str(s) for s in reversed(steps)]
    if step is not None:
        return _only_whole([path / "checkpoints" / str(step)], path)
    newest = _only_whole(directories, path, leave_out=ITEMS)
    directories = directories[directories.index(newest) :]
    best = path / "checkpoints" / str(read_position(newest).best_step)
    if best in directories:
        directories.remove(best)
        directories.insert(0, best)
    return _only_whole(directories, path)


def newest_config(workdir: epath.Path) -> tuple[dict[str, Any], epath.Path] | None:
    """The config that the newest whole checkpoint holds, and which one that is.

    For a run whose config.json is lost or damaged; None if it has no checkpoint.

    Raises:
      UserError: if none is whole.
    """
    directory = workdirs.absolute(workdir) / "checkpoints"
    steps = [directory / str(step) for step in reversed(committed_steps(directory))]
    if not steps:
        return None
    newest = _only_whole(steps, workdir, leave_out=ITEMS)
    return read_config(newest), newest


def _only_whole(
    directories: Sequence[epath.Path],
    path: epath.Path,
    *,
    leave_out: Collection[str] | None = None,
) -> epath.Path:
    """The first checkpoint of which all that is read for its weights is whole."""
    damaged: list[str] = []
    for directory in directories:
        unread = leave_out
        if unread is None:
            averaged = (directory / "ema_params").exists()
            unread = ("rest", "params") if averaged else ("rest",)
        try:
            tell = progress.of_reading(directory)
            verified = examine(directory, leave_out=unread, tell=tell)
        except Damaged as error:
            damaged.append(f"{directory} is damaged: {error}")
            continue
        for line in damaged:
            logging.warning("%s. Another one is taken", line)
        if not verified and leave_out is None:
            logging.warning("%s", UNVERIFIED.format(directory))
        return directory
    listed = "\n  ".join(damaged)
    raise UserError(
        f"{path} has no whole checkpoint:\n  {listed}\n"
        f"Name another one, such as WORKDIR/checkpoints/STEP; python -m vit_jax.fsck "
        "WORKDIR says which are whole"
    )
