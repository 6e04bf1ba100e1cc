"""Runs a `BatchBuilder` ahead of the training loop, with Grain.

Grain is given step numbers, not records, so its whole state is the next step, and
neither threads nor workers can change what a batch holds.
"""

import contextlib
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import TypedDict

from absl import flags

from vit_jax import processes
from vit_jax.data.builder import Batch, BatchBuilder
from vit_jax.errors import WorkerLost

# Batches under construction at a time, and batches built ahead, in each process. The
# images of a batch are spread over threads of their own, so more would only cost
# memory: a batch of 4,096 images at 224 px is 617 MB.
_BATCHES_AT_A_TIME = 2
_BATCHES_AHEAD = 3
_SHARED_MEMORY = "/dev/shm"
# Grain's words for them.
_WORKER_NAME = "grain-process-prefetch"
_WORKER_ENDED = re.compile(r"terminated unexpectedly with exit code (-?\d+)")
# By `vit_jax.preemption`, in the main process.
_HEEDED = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1}


class Skipped(TypedDict):
    """An example that was skipped: in which step (from 1), its global number, why."""

    step: int
    example: int
    why: str


class BatchIterator(Iterator[Batch]):
    """Batches start .. stop-1; `close` stops the threads and workers behind it.

    Attributes:
        skipped: examples left out of the batches handed out; its reader may clear it.
    """

    def __init__(self, builder: BatchBuilder, start: int, stop: int, num_workers: int):
        # Grain takes about a second to import; configs are checked before that.
        import grain

        dataset = grain.MapDataset.range(start, max(start, stop)).map(builder)
        batches = dataset.to_iter_dataset(
            grain.ReadOptions(_BATCHES_AT_A_TIME, _BATCHES_AHEAD)
        )
        if num_workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags
            batches = batches.mp_prefetch(
                grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=1)
            )
        self._starting = _signals_held if num_workers else contextlib.nullcontext
        with self._starting():
            if num_workers:
                _start_tracker()
            self._batches = iter(batches)
        self._builder = builder
        self._began = processes.now() if num_workers else None
        self._dead_before: dict[int, int] = {}
        self._next, self._stop = start, stop
        self.skipped: list[Skipped] = []

    def __next__(self) -> Batch:
        if self._next >= self._stop:
            self.close()
            raise StopIteration
        try:
            with self._starting():
                batch, bad = next(self._batches)
            self._starting = contextlib.nullcontext  # the workers have started
        except BaseException as error:  # an error or an interrupt
            self.close()
            if found := _WORKER_ENDED.search(str(error)):
                raise WorkerLost(explain_end(int(found[1]))) from error
            raise
        first = self._next * self._builder.batch_size
        self._next += 1
        self.skipped += [
            Skipped(step=self._next, example=first + row, why=why) for row, why in bad
        ]
        return batch

    def close(self) -> None:
        """Stops the threads and workers. Closing twice is no error."""
        self._batches.close()
        self._builder.close()

    def lost(self) -> WorkerLost | None:
        """A worker that was killed while it began, if it was so the last time too.

        Python gives a worker its task through a pipe, whose other end it holds as well:
        what does not fit into the pipe is read by nobody, and writing it never ends.
        Ends of all other workers Grain notices, and asks for their codes.
        """
        if self._began is None:
            return None
        dead = processes.dead_children(self._began)
        again = [code for pid, code in dead.items() if pid in self._dead_before]
        self._dead_before = dead
        return WorkerLost(explain_end(again[0])) if again else None

    def abandon(self) -> None:
        """As `close`, but waits for nobody: a thread or worker may hang in a read."""
        for child in multiprocessing.active_children():
            if child.name.startswith(_WORKER_NAME):
                child.kill()
        threading.Thread(target=self.close, daemon=True, name="closing").start()


def explain_end(code: int) -> str:
    """Why a worker may have ended with this exit code, and what helps.

    >>> explain_end(1)[:56]
    'a worker of config.data.num_workers ended with exit code'
    """
    fewer = "lower config.data.num_workers or config.batch_size"
    if code == -signal.SIGKILL:
        return (
            "a worker of config.data.num_workers was killed (SIGKILL), as Linux does "
            f"when memory runs out: give the job more memory, or {fewer}."
        )
    if code == -signal.SIGBUS:
        room = ""
        with contextlib.suppress(OSError):
            disk = os.statvfs(_SHARED_MEMORY)
            room = f" of {disk.f_blocks * disk.f_frsize / 1e6:,.0f} MB"
        return (
            "a worker of config.data.num_workers was ended by SIGBUS: most likely "
            f"{_SHARED_MEMORY}{room} is too small for its batches. Give it more "
            f"(docker run --shm-size=16g, or --ipc=host), or {fewer}; 0 workers need "
            "none."
        )
    return f"a worker of config.data.num_workers ended with exit code {code}."


def _start_tracker() -> None:
    """Starts what frees shared memory behind a process that ends, and says nothing.

    When a run ends, some batches have been read ahead and are still in shared memory.
    That is no leak; Python's tracker would call it one, below the last message.
    """
    name, quiet = "PYTHONWARNINGS", f"ignore::UserWarning:{resource_tracker.__name__}"
    before = os.environ[name] if name in os.environ else None
    os.environ[name] = quiet if before is None else f"{before},{quiet}"
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Holds back the signals that the run heeds; they arrive at the end.

    Processes and threads that are started meanwhile keep them blocked: a signal to the
    whole process group is for the main process, which ends its workers when it has
    saved. A worker that died would leave Grain waiting for it for ever.
    """
    held = signal.pthread_sigmask(signal.SIG_BLOCK, _HEEDED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def num_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def parallelism(*, in_memory: bool) -> tuple[int, int]:
    """(workers, threads in each process) by default, from the cores.

    Decoding and resizing run outside Python's interpreter lock, and what is left needs
    about a tenth of the time: up to 16 cores one process keeps them busy. Beyond that,
    one worker for each 8 cores. A worker costs ~2 s at the start and ~200 MB.
    """
    cores = num_cores()
    if in_memory or cores <= 16:
        return 0, cores
    return cores // 8, 8
