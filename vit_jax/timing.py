"""How long steps take, as seen by the host.

Every key starts with `timing/`: these are the only scalars of a run that differ
between two runs of the same config.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from etils import epath

from vit_jax import jsonlines

GIB = 1 << 30
ELAPSED = "timing/elapsed_s"


class RunClock:
    """The seconds that a run has taken, over all its starts.

    Those of earlier starts are what the last line of metrics.jsonl says, also where
    that line is of a step that will be done again.
    """

    def __init__(
        self, workdir: epath.Path, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        before = jsonlines.last_value(workdir / "metrics.jsonl", ELAPSED)
        self._clock = clock
        self._began = clock() - (before or 0.0)

    def seconds(self) -> float:
        return self._clock() - self._began


class StepTimer:
    """Measures the loop between reports, without its first step, evals and saves.

    The loop is expected to be: wait for a batch inside `waiting()`, dispatch its step;
    evaluate and save inside `pause()`; now and then `report(step)`, once the scalars of
    that step have been read from the device. The clock starts when the first step is
    reported, or else when the second wait begins: not before what is loaded or compiled
    on first use has been. Between reports the host and the device then agree, though
    dispatched steps run ahead of the host.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        total_steps: int,
        start_step: int,
        num_devices: int,
        elapsed_s: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """Goes on with `timing/elapsed_s`.

        Args:
            batch_size: Global, in images.
            total_steps: Last step of the run.
            start_step: Steps already done, by the checkpoint that was restored.
            num_devices: Over all processes.
            elapsed_s: What the run has taken so far, earlier starts of it included.
            clock: Seconds; for tests.
        """
        self._batch_size = batch_size
        self._total_steps = total_steps
        self._first_timed_step = start_step + 1
        self._num_devices = num_devices
        self._clock = clock
        self._began = clock() - elapsed_s
        self._waits = 0
        self._started: float | None = None
        self._paused = 0.0
        self._waited = 0.0
        self._last_step = self._first_timed_step
        self._last_time = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for the next batch."""
        start = self._clock()
        self._waits += 1
        if self._waits == 2 and self._started is None:
            self._start(start)
        yield
        self._waited += self._clock() - start

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Around what is not training: evaluations and saves."""
        start = self._clock()
        yield
        self._paused += self._clock() - start

    def report(self, step: int) -> dict[str, float]:
        """Scalars since the last report, after `step` steps of the run.

        `timing/eta_s` includes evaluations and saves at the rate seen so far. Before
        the second step, only `timing/elapsed_s` (of all starts of the run) and, where
        the backend tells it, `timing/device_memory_gib` are there.
        """
        now = self._clock()
        result = {ELAPSED: now - self._began}
        if (memory := device_memory_gib(jax.local_devices())) is not None:
            result["timing/device_memory_gib"] = memory
        if step == self._first_timed_step:
            self._start(now)
        steps = step - self._last_step
        if self._started is None or steps <= 0:
            return result

        seconds = max(now - self._last_time - self._paused, 1e-9)
        images_per_s = steps * self._batch_size / seconds
        steps_per_s = (step - self._first_timed_step) / (now - self._started)
        result |= {
            "timing/step_s": seconds / steps,
            "timing/images_per_s": images_per_s,
            "timing/images_per_s_per_device": images_per_s / self._num_devices,
            "timing/data_wait_share": self._waited / seconds,
            "timing/eta_s": (self._total_steps - step) / steps_per_s,
        }
        self._last_step, self._last_time = step, now
        self._paused = self._waited = 0.0
        return result

    def _start(self, now: float) -> None:
        self._started = self._last_time = now
        self._paused = self._waited = 0.0


def device_memory_gib(devices: Sequence[Any]) -> float | None:
    """Largest peak of memory in use among `devices`, in GiB; None if not told.

    >>> device_memory_gib([])
    """
    peaks = [
        stats["peak_bytes_in_use"]
        for device in devices
        if (stats := device.memory_stats()) and "peak_bytes_in_use" in stats
    ]
    return max(peaks) / GIB if peaks else None
