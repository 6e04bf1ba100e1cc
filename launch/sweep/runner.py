"""Runs trials, some at a time, until all have ended or a signal comes."""

import os
import shlex
import signal
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Protocol

from vit_jax.launch import child, job, local
from vit_jax.launch.sweep import trials
from vit_jax.launch.sweep.places import Place
from vit_jax.launch.sweep.progress import Progress
from vit_jax.launch.sweep.trials import Status, Trial


class Source(Protocol):
    """Where trials come from."""

    trials: list[Trial]  # known so far

    def ask(self) -> Trial | None:
        """The next trial to run, None if there is none (any more)."""
        ...

    def tell(self, trial: Trial, status: Status) -> None:
        """Takes the end of a trial."""
        ...

    def left(self) -> int:
        """How many trials are still to be asked for."""
        ...


class Attempt:
    """A running process of a trial."""

    def __init__(self, trial: Trial, command: Sequence[str], place: Place) -> None:
        """Starts it; what it prints is added to the trial's log."""
        self.trial, self.place = trial, place
        trial.log.parent.mkdir(parents=True, exist_ok=True)
        with open(trial.log, "a") as log:
            log.write(f"\n$ {shlex.join(command)}\n")
            log.flush()
            self.process = child.start(
                command,
                output=log,
                environment=place.environment,
                cores=place.cores,
            )

    def end(self, number: int) -> None:
        """Sends a signal: SIGKILL to all processes of the trial, others to its first.

        The first one knows how to save, and ends the others itself.
        """
        if self.process.poll() is None:
            send = os.killpg if number == signal.SIGKILL else os.kill
            send(self.process.pid, number)


class Runner:
    """Keeps as many trials running as there are places.

    It has no threads: a child gets its signal when the thread that started it ends.
    """

    def __init__(
        self,
        source: Source,
        places: Sequence[Place],
        *,
        command: Callable[[Trial], Sequence[str]],
        look: Callable[[Trial], Status],
        progress: Progress,
    ) -> None:
        """Nothing is started before `run`.

        Args:
          source: of the trials.
          places: one for each trial that runs at a time.
          command: the command line of a trial.
          look: tells how far a trial has come.
          progress: is told of each start and each end.
        """
        self._source, self._free = source, list(places)
        self._command, self._look, self._progress = command, look, progress
        self._running: list[Attempt] = []
        self._waiting: dict[str, tuple[Trial, float]] = {}  # and when to start it
        self._restarts: dict[str, job.Restarts] = {}
        self._announced: set[str] = set()
        self._signals = 0
        self._told = 0  # signals that have been passed on
        self.codes: dict[str, int] = {}  # of the trials that failed

    @property
    def stopped(self) -> bool:
        """Whether a signal came."""
        return self._signals > 0

    def run(self) -> None:
        """Returns when all trials have ended, or after a signal all that were running.

        The first SIGTERM, SIGHUP or Ctrl-C is passed on as a SIGTERM, at which trials
        save and stop; the second kills them. `nohup` keeps a SIGHUP away, as ever.
        """
        handlers = {
            number: signal.signal(number, self._note)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
        }
        try:
            while self._running or not (self.stopped or self._is_done()):
                self._pass_signals_on()
                for attempt in list(self._running):
                    if attempt.process.poll() is not None:
                        self._ended(attempt)
                while self._free and not self.stopped and self._start_one():
                    pass
                time.sleep(0.1)
        finally:
            for attempt in self._running:  # only if something above is at fault
                attempt.end(signal.SIGTERM)
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1

    def _pass_signals_on(self) -> None:
        while self._told < min(self._signals, 2):
            self._told += 1
            first = self._told == 1
            print(
                f"\n{len(self._running)} running trials are asked to save and stop; "
                "Ctrl-C again kills them."
                if first
                else "killed.",
                flush=True,
            )
            for attempt in self._running:
                attempt.end(signal.SIGTERM if first else signal.SIGKILL)

    def _is_done(self) -> bool:
        return not self._waiting and self._source.left() == 0

    def _start_one(self) -> bool:
        """Starts the first trial that can be; False if none can."""
        now = time.monotonic()
        for trial, due in list(self._waiting.values()):
            if due <= now and self._start(trial):
                return True
        while (trial := self._source.ask()) is not None:
            if self._start(trial):
                return True
        return False

    def _start(self, trial: Trial) -> bool:
        """Starts a trial; False if it need not or cannot be started now."""
        status = self._look(trial)
        trials.refuse_changed(trial, status)
        if status.state in ("finished", "diverged"):  # there is nothing to do
            self._waiting.pop(trial.name, None)
            self._settle(trial, status)
            return False
        if status.state == "running":
            # What a killed sweep has started may still be saving; so may a run of
            # somebody's own. Its workdir is its lock.
            if trial.name not in self._announced:
                print(f"{trial.name}: waits for another process to let go", flush=True)
                self._announced.add(trial.name)
            self._waiting[trial.name] = trial, time.monotonic() + 0.5
            return False
        self._waiting.pop(trial.name, None)
        if trial.name not in self._restarts:
            workdir = trial.job.workdir
            self._restarts[trial.name] = job.Restarts(lambda: job.newest_step(workdir))
        self._progress.started(trial, status)
        place = self._free.pop(0)
        self._running.append(Attempt(trial, self._command(trial), place))
        return True

    def _ended(self, attempt: Attempt) -> None:
        """Settles a trial whose process has ended, or has it started again."""
        self._running.remove(attempt)
        self._free.append(attempt.place)
        trial, code = attempt.trial, attempt.process.returncode
        if self.stopped and job.should_restart(code):
            return  # it goes on when the sweep does
        if (wait := self._restarts[trial.name].after(code)) is not None:
            why = local.describe(code if code >= 0 else 128 - code)
            print(f"{trial.name}: {why}; again in {wait:.0f} s", flush=True)
            self._waiting[trial.name] = trial, time.monotonic() + wait
            return
        if code != 0:
            self.codes[trial.name] = code
        self._settle(trial, self._look(trial))

    def _settle(self, trial: Trial, status: Status) -> None:
        self._source.tell(trial, status)
        running = [attempt.trial for attempt in self._running]
        waiting = len(self._waiting) + self._source.left()
        self._progress.ended(trial, status, running, waiting)


class Listed:
    """A source of trials that are known beforehand."""

    def __init__(self, listed: Sequence[Trial], left: Sequence[Trial]) -> None:
        """`left` are those of `listed` that are not at their end."""
        self.trials, self._left = list(listed), list(left)

    def ask(self) -> Trial | None:
        return self._left.pop(0) if self._left else None

    def tell(self, trial: Trial, status: Status) -> None:
        """Nothing depends on it."""

    def left(self) -> int:
        return len(self._left)
