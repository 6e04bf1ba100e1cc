"""The train state on disk: `workdir/checkpoints/STEP`, written by Orbax.

A checkpoint is a directory that appears under its number by one rename, after all of it
is written, so a half-written one is never taken for a checkpoint. Its items:

  params      parameters; by themselves, so that weights can be read without the rest
  ema_params  their average, if `ema` is on
  rest        optimiser state and counters
  position    JSON, see `Position`
  config      JSON, the config of the run: a checkpoint says by itself what it is
  labels      JSON, the names of the classes, where the data has them

Beside them stands MANIFEST.json, see `manifest`.
"""

import contextlib
import dataclasses
import json
import math
import operator
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from vit_jax import distributed, durable
from vit_jax.checkpoints import manifest
from vit_jax.checkpoints.disk import (
    check_space,
    identity,
    refuse_another,
    tell_once,
    writing,
)
from vit_jax.checkpoints.manifest import Damaged
from vit_jax.checkpoints.matching import OtherModel
from vit_jax.checkpoints.reading import (
    Position,
    committed_steps,
    examine,
    read_state,
    tidy,
    write_position,
)
from vit_jax.errors import Stop, UserError, did_you_mean
from vit_jax.state import TrainState

# Orbax gives a save up after so many seconds of the wall clock, which may jump when it
# is set or the machine was suspended; and a slow disk is no error.
_SAVE_SECONDS = 7 * 24 * 3600


class Checkpoints:
    """Saves and restores train states in one directory.

    Attributes:
      position: where the loop stands.
      notes: what the restored state lacked or had besides, as sentences for the user.
    """

    def __init__(
        self,
        directory: epath.Path,
        config: dict[str, Any],
        stream: dict[str, Any],
        label_names: Sequence[str] | None = None,
        *,
        every: int = 1000,
        keep: int = 2,
        keep_period: int | None = None,
        best: str | None = None,
        allow_changed_data: bool = False,
    ) -> None:
        """Opens the directory; what an interrupted save left there is removed.

        Args:
          directory: made if missing.
          config: stored with each checkpoint.
          stream: see `Position`; a checkpoint of another one is refused.
          label_names: of the classes, where they are known; stored likewise.
          every: steps between saves.
          keep: the newest so many are kept.
          keep_period: checkpoints of steps that this divides are kept for good.
          best: a result of an evaluation, such as "test/accuracy" or "test/loss";
            whenever it improves the step is saved, and the best one is kept. What
            ends in "loss" or "error" improves when it falls, all else when it grows.
          allow_changed_data: goes on though the training data has gained or lost
            records, or is sliced otherwise, since the checkpoint was written. The
            steps that are done stay. From the next one on, example number n is the
            n-th of the data as it is now, in epochs of its size: in the epoch under way
            some records may come twice and others not at all. Checkpoints written from
            then on are of the changed data.
        """
        if every < 1 or keep < 1 or (keep_period is not None and keep_period < 1):
            raise UserError(
                f"config.checkpoint: every {every}, keep {keep} and keep_period "
                f"{keep_period} must be at least 1"
            )
        tell_once()
        self.every, self.best, self.directory = every, best, directory
        self.position = Position(stream=stream)
        self._allow_changed_data = allow_changed_data
        self.notes: list[str] = []
        self._config, self._label_names = config, label_names
        self._saving = 0  # the step that is being written
        self._begun_in: tuple[int, int] | None = None  # the directory, see `disk`
        self._failed: BaseException | None = None  # what the last save ended with
        self._caller = threading.get_ident()
        self._other: OtherModel | None = None
        falls = (best or "").endswith(("loss", "error"))
        self._better = operator.lt if falls else operator.gt
        policies = ocp.checkpoint_managers
        preserved: list[Any] = [policies.LatestN(keep), _Best(self)]
        if keep_period is not None:
            preserved.append(policies.EveryNSteps(keep_period))
        with distributed.agreed():
            if distributed.is_first():
                _make(directory)
                tidy(directory)
        self._manager = ocp.CheckpointManager(
            directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(preserved),
                save_decision_policy=policies.FixedIntervalPolicy(1),  # we decide
                create=False,
                enable_background_delete=True,
                async_options=ocp.options.AsyncOptions(
                    timeout_secs=_SAVE_SECONDS,
                    barrier_sync_fn=self._meet,
                    post_finalization_callback=self._write_manifest,
                ),
            ),
        )

    def improves(self, scalars: dict[str, Any]) -> bool:
        """Whether these results hold the best value so far; notes it if so."""
        if self.best is None or self.best not in scalars:
            return False
        value, best = float(scalars[self.best]), self.position.best_value
        if not math.isfinite(value):
            return False
        if best is not None and not self._better(value, best):
            return False
        self.position.best_value, self.position.best_step = value, self.position.step
        return True

    def check_best(self, results: Iterable[str]) -> None:
        """Refuses a `best` that is the name of no result: it would never be saved."""
        results = list(results)
        if self.best is not None and self.best not in results:
            raise UserError(
                f'config.checkpoint.best is "{self.best}", which no evaluation of '
                f"config.evals gives; {did_you_mean(self.best, results)}"
            )

    def check_space(self, abstract: TrainState) -> None:
        """Refuses to start if not even one checkpoint would fit on the disk."""
        check_space(self.directory, abstract)

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def due(self, step: int) -> bool:
        return step % self.every == 0

    def save(self, state: TrainState) -> None:
        """Starts writing the state of `position.step`; returns once it is copied.

        Of a step that is on disk already, only the position is written again.

        Raises:
          UserError: if this save or the one before it failed for want of space.
        """
        step = self.position.step
        if step in self._manager.all_steps():
            self.wait()
            with writing(self.directory):
                if distributed.is_first():
                    write_position(self.directory / str(step), self.position)
            return
        check_space(self.directory, state)
        rest = state.replace(params=None, ema_params=None)  # type: ignore[attr-defined]
        items: dict[str, Any] = {
            "params": ocp.args.StandardSave(state.params),
            "rest": ocp.args.StandardSave(rest),
            "position": ocp.args.JsonSave(dataclasses.asdict(self.position)),
            "config": ocp.args.JsonSave(self._config),
        }
        if self._label_names is not None:
            labels = {"names": list(self._label_names)}
            items["labels"] = ocp.args.JsonSave(labels)
        if state.ema_params is not None:
            items["ema_params"] = ocp.args.StandardSave(state.ema_params)
        with writing(self.directory, self._begun_in):
            self._manager.wait_until_finished()  # it is of another step
        self._saving, self._begun_in = step, identity(self.directory)
        self._caller = threading.get_ident()
        with writing(self.directory, self._begun_in):
            self._manager.save(
                step,
                args=ocp.args.Composite(**items),
                custom_metadata=manifest.EXPECTED,
            )

    def _write_manifest(self) -> None:
        """Called by Orbax's thread, on the first process, when all files are written.

        It gives the directory its name when this returns; object stores write under
        the name itself.
        """
        refuse_another(self.directory, self._begun_in)
        step = self._saving
        written = list(self.directory.glob(f"{step}.orbax-checkpoint-tmp*"))
        directory = written[0] if written else self.directory / str(step)
        manifest.write(directory, step)

    def _meet(self, *, key: str, timeout_ms: int) -> None:
        """Waits for Orbax's threads of the other processes, as Orbax would.

        A thread whose save has failed comes here with the error in flight. The others
        wait elsewhere, for this process, and it would wait for them: it must not, so
        that `check` can tell.
        """
        own = threading.get_ident() == self._caller  # it may save in an error's handler
        error = None if own else sys.exc_info()[1]
        if error is not None:
            self._failed = error
        if not distributed.alone():
            if error is not None:
                raise error
            ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)

    def check(self) -> None:
        """Looks whether the last save has failed. It never waits.

        Raises:
          UserError: if it has since the disk cannot be written.
        """
        if self._failed is not None:
            with writing(self.directory, self._begun_in):
                raise self._failed

    def wait(self) -> None:
        """Returns when all that was saved is on disk under its final name.

        Raises:
          UserError: if a save failed since the disk cannot be written.
        """
        with writing(self.directory, self._begun_in):
            self._manager.wait_until_finished()
            if distributed.is_first():
                durable.sync(self.directory)  # the names of checkpoints

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        """Waits for a save under way, unless an error has befallen this process alone.

        The others would not come to where Orbax's processes wait for each other.
        """
        shared = error is None or (isinstance(error, Stop) and error.shared)
        if shared or distributed.alone():
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
          UserError: if the newest checkpoint is of another model, or lacks part of
            the optimiser's state, with the differences; or if all are broken.
        """
        broken: list[str] = []
        own, directory = directory is None, directory or self.directory
        # Directories that a network serves may look different from different hosts.
        found = distributed.gather(json.dumps(committed_steps(directory)[::-1]))[0]
        steps: list[int] = json.loads(found)
        for step in steps:
            restored = self._try_read(directory / str(step), abstract)
            if isinstance(restored, str):
                broken.append(f"step {step}: {restored}")
                if distributed.is_first():
                    logging.warning(
                        "a checkpoint in %s is broken (%s): trying the one before it",
                        directory,
                        broken[-1],
                    )
                continue
            state, self.position = restored
            if own:
                self._put_aside(dict(zip(steps, broken, strict=False)))
            else:  # the best of that run is not in this workdir
                self.position.best_step = self.position.best_value = None
            return state
        with distributed.agreed():
            if self._other is not None:
                raise self._other
            if broken:
                raise UserError(
                    f"no checkpoint in {directory} can be read:\n  "
                    + "\n  ".join(broken)
                    + "\nuse another --workdir to start from scratch"
                )
        return None

    def _try_read(
        self, directory: epath.Path, abstract: TrainState
    ) -> tuple[TrainState, Position] | str:
        """One checkpoint, or what is wrong with it: the same on all processes.

        Raises:
          UserError: if it is whole, but of another model or other data.
        """
        verified = False
        with distributed.agreed(), _Noted() as trouble:
            verified = examine(directory, part=distributed.part())
        if found := _first(distributed.gather(trouble.text)):
            return found
        restored = None
        with distributed.agreed(), _Noted() as trouble:
            restored = self._read(directory, abstract, verified=verified)
        if found := _first(distributed.gather(trouble.text)):
            return found
        assert restored is not None
        return restored

    def _read(
        self, directory: epath.Path, abstract: TrainState, *, verified: bool
    ) -> tuple[TrainState, Position]:
        try:
            state, position, notes = read_state(directory, abstract, verified=verified)
        except OtherModel as error:
            if verified:
                raise
            # Its metadata may be what is damaged: the one before it can tell.
            self._other = self._other or error
            raise Damaged("it seems to be of another model or optimiser") from error
        self.notes = notes
        self._refuse_other_stream(directory, position)
        return state, position

    def _refuse_other_stream(self, directory: epath.Path, position: Position) -> None:
        """Its next batch would not be the one after its last."""
        wanted, stored = dict(self.position.stream), dict(position.stream)
        after, before = (stream.pop("sample", None) for stream in (wanted, stored))
        if stored == wanted:
            # Checkpoints of older versions have none.
            if None not in (before, after) and before != after:
                self.notes.append(
                    "some files of the training data are not as large as at step "
                    f"{position.step}: others lie there under the same names"
                )
            position.stream = self.position.stream
            return
        only_data = {**stored, "data": None} == {**wanted, "data": None}
        if only_data and self._allow_changed_data:
            self.notes.append(
                f"the training data has changed since step {position.step}, and so "
                "have the examples from here on: config.checkpoint.allow_changed_data"
            )
            position.stream = self.position.stream
            return
        was = ", ".join(f"{k} {v}" for k, v in stored.items())
        now = ", ".join(f"{k} {v}" for k, v in wanted.items())
        changed = (
            "The training data is not what it was: records have come, gone or been "
            "renamed, or the split is another. Put it back, or go on with what is "
            "there now: --config.checkpoint.allow_changed_data=true. Or use"
        )
        raise UserError(
            f"{directory} was made with {was}; this config has {now}: with these the "
            "run would see some examples twice and others never. "
            f"{changed if only_data else 'Use'} another --workdir (and "
            "config.init_from, to start from these weights)"
        )

    def _put_aside(self, broken: Mapping[int, str]) -> None:
        """Moves steps out of the way, with what is wrong with each."""
        aside = self.directory.parent / "broken_checkpoints"
        with distributed.agreed(), writing(aside):
            for step, reason in broken.items() if distributed.is_first() else ():
                _make(aside)
                taken = [int(p.name.split(".")[1]) for p in aside.glob(f"{step}.*")]
                name = f"{step}.{max(taken, default=-1) + 1}"
                (self.directory / str(step)).rename(aside / name)
                durable.write(aside / f"{name}.txt", f"{reason}\n".encode())
                logging.warning("put aside: %s", aside / name)
        if broken:
            self._manager.reload()


class _Noted(contextlib.AbstractContextManager["_Noted"]):
    """Notes what is wrong with a checkpoint, and goes on behind the block."""

    text = ""

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> bool:
        if isinstance(error, Damaged):
            self.text = str(error)
        return isinstance(error, Damaged)


def _first(troubles: Sequence[str]) -> str:
    """The first that there is, of one process."""
    return next((text for text in troubles if text), "")


def _make(directory: epath.Path) -> None:
    """Makes a directory.

    Raises:
      UserError: if it cannot be made, or something else has its name.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{directory} cannot be made ({error.strerror or error}): move away what "
            "is there, or use another --workdir"
        ) from error


class _Best(ocp.checkpoint_managers.PreservationPolicy):
    """Preserves the step that `Checkpoints.position` calls the best."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: Any
    ) -> list[bool]:
        best = self._checkpoints.position.best_step
        return [checkpoint.step == best for checkpoint in checkpoints]
