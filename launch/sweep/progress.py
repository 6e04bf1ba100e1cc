"""What a sweep tells while it runs: a line a trial, how many are left, and how long."""

import datetime
import math
import time
from collections.abc import Callable, Iterable

from vit_jax.launch import job
from vit_jax.launch.sweep import trials
from vit_jax.launch.sweep.trials import Status, Trial


class Progress:
    """Prints a line for each trial that ends.

    The time left is what is left of all trials, at the rate at which this sweep has
    got on since it was started, restarts and waits included.
    """

    def __init__(
        self,
        metric: str,
        look: Callable[[Trial], Status],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metric, self._look, self._clock = metric, look, clock
        self._began = clock()
        self._first: dict[str, float] = {}  # share that was done when it was started
        self._gained = 0.0  # shares done by trials that have ended

    def started(self, trial: Trial, status: Status) -> None:
        """Notes how far a trial was when it was started."""
        self._first.setdefault(trial.name, status.share)
        if (step := job.newest_step(trial.job.workdir)) is not None:
            print(f"{trial.name}: goes on from step {step:,}", flush=True)

    def ended(
        self, trial: Trial, status: Status, running: Iterable[Trial], waiting: int
    ) -> None:
        """Prints what a trial has reached; nothing of one that was not started.

        Args:
          trial: that has ended.
          status: its last.
          running: trials that still run.
          waiting: number of trials that are still to be started.

        Raises:
          UserError: if it has finished and there is no such metric.
        """
        if trial.name not in self._first:
            return
        if status.state == "finished":
            trials.check_metric(trial, self._metric)
        self._gained += status.share - self._first[trial.name]
        running = list(running)
        left = len(running) + waiting
        time_left = self._time_left(running, waiting)
        message = f"\n  {status.message}" if status.message else ""
        what = words(status, self._metric)
        print(f"{trial.name}: {what}; {left} left{time_left}{message}", flush=True)

    def _time_left(self, running: Iterable[Trial], waiting: int) -> str:
        gained, left = self._gained, float(waiting)
        for trial in running:
            share = self._look(trial).share
            gained += share - self._first[trial.name]
            left += 1 - share
        if left == 0 or gained <= 0:
            return ""
        seconds = left * (self._clock() - self._began) / gained
        return f", about {duration(seconds)}"


def words(status: Status, metric: str) -> str:
    """How a trial has ended.

    >>> words(Status("finished", steps=60, last=0.5, best=0.75), "test/accuracy")
    'finished, test/accuracy 0.5000 (best 0.7500), 60 steps in 0:00:00'
    """
    reached = (
        ""
        if math.isnan(status.best)
        else f", {metric} {status.last:#.4g} (best {status.best:#.4g})"
    )
    steps = f"{status.steps:,} steps in {duration(status.seconds)}"
    return f"{status.state}{reached}, {steps}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> duration(3725.4)
    '1:02:05'
    """
    return str(datetime.timedelta(seconds=round(seconds)))
