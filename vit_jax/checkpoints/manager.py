"""The train state on disk: `workdir/checkpoints/STEP`, written by Orbax.

A checkpoint is a directory that appears under its number by one rename, after all of it
is written, so a half-written one is never taken for a checkpoint. Its items:

  params      parameters; by themselves, so that weights can be read without the rest
  ema_params  their average, if `ema` is on
  rest        optimiser state and counters
  position    JSON, see `Position`
  config      JSON, the config of the run: a checkpoint says by itself what it is
"""

import dataclasses
import errno
import operator
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from vit_jax.errors import UserError, did_you_mean
from vit_jax.sharding import path_name
from vit_jax.state import Params, TrainState

# What Orbax and TensorStore raise for files that are missing, cut short or garbled.
_BROKEN = (OSError, ValueError, KeyError, TypeError)


@dataclasses.dataclass
class Position:
    """Where the loop stood: what a checkpoint knows besides the state.

    Attributes:
      step: the number of updates done.
      pending: scalars of this step that wait for its evaluations, if it was left
        before they were done; None if nothing is owed.
      best_step: of the best evaluation so far, and `best_value`; None before the first.
    """

    step: int = 0
    pending: dict[str, Any] | None = None
    best_step: int | None = None
    best_value: float | None = None


class Checkpoints:
    """Saves and restores train states in one directory."""

    def __init__(
        self,
        directory: epath.Path,
        config: dict[str, Any],
        *,
        every: int = 1000,
        keep: int = 2,
        keep_period: int | None = None,
        best: str | None = None,
        best_mode: Literal["max", "min"] = "max",
    ) -> None:
        """Opens the directory; what an interrupted save left there is removed.

        Args:
          directory: made if missing.
          config: stored with each checkpoint.
          every: steps between saves.
          keep: the newest so many are kept.
          keep_period: checkpoints of steps that this divides are kept for good.
          best: a scalar of an evaluation, such as "test/accuracy"; whenever it
            improves the step is saved, and the best one is kept.
          best_mode: whether a larger or a smaller value is better.
        """
        if every < 1 or keep < 1 or (keep_period is not None and keep_period < 1):
            raise UserError(
                f"config.checkpoint: every {every}, keep {keep} and keep_period "
                f"{keep_period} must be at least 1"
            )
        self.every, self.best, self.directory = every, best, directory
        self.position = Position()
        self._config = config
        self._better = operator.gt if best_mode == "max" else operator.lt
        policies = ocp.checkpoint_managers
        preserved: list[Any] = [policies.LatestN(keep), _Best(self)]
        if keep_period is not None:
            preserved.append(policies.EveryNSteps(keep_period))
        self._manager = ocp.CheckpointManager(
            directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(preserved),
                save_decision_policy=policies.FixedIntervalPolicy(1),  # we decide
                cleanup_tmp_directories=True,
                enable_background_delete=True,
            ),
        )

    def improves(self, scalars: dict[str, Any]) -> bool:
        """Whether these results hold the best value so far; notes it if so."""
        if self.best is None or self.best not in scalars:
            return False
        value, best = float(scalars[self.best]), self.position.best_value
        if best is not None and not self._better(value, best):
            return False
        self.position.best_value, self.position.best_step = value, self.position.step
        return True

    def check_best(self, evaluations: Iterable[str]) -> None:
        """Refuses a `best` of no evaluation: it would never save anything."""
        names = sorted(f"{name}/accuracy" for name in evaluations)
        if self.best is not None and self.best.split("/")[0] not in {
            name.split("/")[0] for name in names
        }:
            raise UserError(
                f'config.checkpoint.best is "{self.best}", which is no result of '
                f"config.evals; {did_you_mean(self.best, names)}"
            )

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def due(self, step: int) -> bool:
        return step % self.every == 0

    def save(self, state: TrainState) -> None:
        """Starts writing the state of `position.step`; returns once it is copied.

        A step that is on disk already is not written again.

        Raises:
          UserError: if this save or the one before it failed for want of space.
        """
        step = self.position.step
        if step in self._manager.all_steps():
            return
        rest = state.replace(params=None, ema_params=None)  # type: ignore[attr-defined]
        items: dict[str, Any] = {
            "params": ocp.args.StandardSave(state.params),
            "rest": ocp.args.StandardSave(rest),
            "position": ocp.args.JsonSave(dataclasses.asdict(self.position)),
            "config": ocp.args.JsonSave(self._config),
        }
        if state.ema_params is not None:
            items["ema_params"] = ocp.args.StandardSave(state.ema_params)
        with _explained(self.directory):
            self._manager.save(step, args=ocp.args.Composite(**items))

    def wait(self) -> None:
        """Returns when all that was saved is on disk under its final name.

        Raises:
          UserError: if a save failed for want of space.
        """
        with _explained(self.directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        self.wait()
        self._manager.close()

    def restore(
        self, abstract: TrainState, directory: epath.Path | None = None
    ) -> TrainState | None:
        """The newest state that can be read, laid out as `abstract` says.

        A broken checkpoint is reported, put aside in `broken_checkpoints/`, and the
        one before it is taken. Sets `position`.

        Args:
          abstract: the state as this run has it.
          directory: the checkpoints of another run, which are left as they are.

        Returns:
          None if there is no checkpoint.

        Raises:
          UserError: if the newest checkpoint is of another model or optimiser, with
            the differences; or if there are checkpoints but all are broken.
        """
        broken: list[str] = []
        own, directory = directory is None, directory or self.directory
        steps = committed_steps(directory)[::-1]
        for step in steps:
            try:
                stored = stored_shapes(directory / str(step))
                differences = compare_shapes(stored, wanted_shapes(abstract))
                if not differences:
                    state, position = read_state(directory / str(step), abstract)
            except _BROKEN as error:
                first_line = str(error).strip().split("\n")[0][:200]
                broken.append(f"step {step}: {type(error).__name__}: {first_line}")
                logging.warning(
                    "checkpoint of step %d in %s cannot be read (%s); trying the one "
                    "before it", step, self.directory, broken[-1],
                )  # fmt: skip
                continue
            if differences:
                raise UserError(
                    f"{directory / str(step)} is of another model or optimiser:\n"
                    + "\n".join(f"  {line}" for line in differences[:20])
                    + (
                        f"\n  ... and {len(differences) - 20} more"
                        * (len(differences) > 20)
                    )
                    + "\nuse another --workdir, or the config that it was made with"
                )
            for bad in steps[: len(broken)] if own else ():
                self._put_aside(bad)
            self.position = position
            return state
        if broken:
            raise UserError(
                f"no checkpoint in {directory} can be read:\n  "
                + "\n  ".join(broken)
                + "\nmove the directory away to start from scratch"
            )
        return None

    def _put_aside(self, step: int) -> None:
        aside = self.directory.parent / "broken_checkpoints"
        aside.mkdir(parents=True, exist_ok=True)
        taken = [int(p.name.split(".")[1]) for p in aside.glob(f"{step}.*")]
        (self.directory / str(step)).rename(
            aside / f"{step}.{max(taken, default=-1) + 1}"
        )
        self._manager.reload()


def committed_steps(directory: epath.Path) -> list[int]:
    """Steps of the checkpoints in a directory that are wholly written, sorted."""
    if not directory.is_dir():
        return []
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit())


def read_state(
    directory: epath.Path, abstract: TrainState
) -> tuple[TrainState, Position]:
    """One checkpoint, laid out as `abstract` says."""
    rest = abstract.replace(params=None, ema_params=None)  # type: ignore[attr-defined]
    ema_params = None
    if abstract.ema_params is not None:
        ema_params = read_item(directory / "ema_params", abstract.ema_params)
    state = read_item(directory / "rest", rest).replace(
        params=read_item(directory / "params", abstract.params), ema_params=ema_params
    )
    return state, Position(**read_json(directory / "position"))


def read_item(directory: epath.Path, abstract: Any) -> Any:
    """One tree of arrays of a checkpoint, laid out as `abstract` says."""
    # The handlers themselves: a Checkpointer around them warns of items that it did
    # not write alone.
    return ocp.StandardCheckpointHandler().restore(
        directory, args=ocp.args.StandardRestore(abstract)
    )


def read_json(directory: epath.Path) -> dict[str, Any]:
    """One JSON item of a checkpoint."""
    return ocp.JsonCheckpointHandler().restore(directory)


class _Best(ocp.checkpoint_managers.PreservationPolicy):
    """Preserves the step that `Checkpoints.position` calls the best."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: Any
    ) -> list[bool]:
        best = self._checkpoints.position.best_step
        return [checkpoint.step == best for checkpoint in checkpoints]


Shapes = dict[str, tuple[tuple[int, ...], str]]


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
    if differences := compare_shapes(stored, wanted):
        raise UserError(
            f"{directory} is of another model:\n"
            + "\n".join(f"  {line}" for line in differences[:20])
        )
    logging.info("weights: %s of %s", item, directory)
    return read_item(directory / item, abstract)


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
        best = read_json(newest / "position")["best_step"]
        step = best if best in steps else steps[-1]
    return path / "checkpoints" / str(step)


class _explained:
    """Turns a full disk into a message: the last good checkpoint is still there."""

    def __init__(self, directory: epath.Path) -> None:
        self._directory = directory

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        text = str(error)
        full = isinstance(error, OSError) and error.errno in (
            errno.ENOSPC,
            errno.EDQUOT,
        )
        if full or "No space left" in text or "Disk quota exceeded" in text:
            raise UserError(
                f"no space left to write a checkpoint in {self._directory}; the ones "
                "before it are whole: free some space and run the same command again"
            ) from error
