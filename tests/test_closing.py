"""Readers of batches and threads of saves do not hold up the end of a run."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests import cli
from vit_jax import config, data, processes, waiting


class Source:
    """Batches of one number each; closing it may take long or fail."""

    def __init__(self, seconds: float = 0, error: Exception | None = None) -> None:
        self.seconds, self.error, self.did = seconds, error, list[str]()

    def __next__(self) -> dict[str, np.ndarray]:
        return {"image": np.zeros(1)}

    def lost(self) -> None:
        return None

    def close(self) -> None:
        time.sleep(self.seconds)
        self.did.append("closed")
        if self.error is not None:
            raise self.error

    def abandon(self) -> None:
        self.did.append("abandoned")


def use(source: waiting.Source) -> None:
    with contextlib.closing(waiting.batches(source)) as batches:
        next(batches)


def test_a_source_is_closed() -> None:
    source = Source()
    use(source)
    assert source.did == ["closed"]


def test_an_error_of_closing_is_raised() -> None:
    with pytest.raises(OSError, match="the disk is gone"):
        use(Source(error=OSError("the disk is gone")))


def test_a_source_that_does_not_end_is_abandoned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting, "_PATIENCE_ALONE_SECONDS", 0.1)
    source = Source(seconds=5)
    use(source)
    assert source.did == ["abandoned"]


def test_workers_that_are_stopped_do_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when a signal ends a run before it has waited for such a worker."""
    monkeypatch.setattr(waiting, "_PATIENCE_ALONE_SECONDS", 0.5)
    sections = config.load(cli.EVERYTHING, [("data.num_workers", "2")]).to_dict()
    dataset = data.make(**sections["data"])
    source = dataset.train_batches(batch_size=8, seed=0, start_step=0, total_steps=99)
    before = set(multiprocessing.active_children())
    with contextlib.closing(waiting.batches(source)) as batches:
        for _ in range(3):
            next(batches)
        workers = [p for p in multiprocessing.active_children() if p not in before]
        assert len(workers) == 2
        pids = [worker.pid for worker in workers if worker.pid is not None]
        identities = [processes.identity(pid) for pid in pids]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
    end = time.monotonic() + 60
    while any(processes.state(one) != "ended" for one in identities):
        assert time.monotonic() < end
        time.sleep(0.05)


# Each worker is killed before it has read its task, which is larger than a pipe.
STILLBORN = """
import os, signal, sys
from multiprocessing import util
from vit_jax import main, waiting

waiting._ASK_SECONDS = 1.0
launch = util.spawnv_passfds

def stillborn(path, args, fds):
    pid = launch(path, args, fds)
    if any("spawn_main" in str(arg) for arg in args):
        os.kill(pid, signal.SIGKILL)
    return pid

util.spawnv_passfds = stillborn
main.script()
"""


def test_a_worker_that_is_killed_while_it_begins(tmp_path: Path) -> None:
    flags = [f"--config={cli.EVERYTHING}", f"--workdir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-c", STILLBORN, *flags, "--config.data.num_workers=1"],
        timeout=200,
        capture_output=True,
        text=True,
        cwd=cli.ROOT,
    )
    assert done.returncode == 71, done.stderr
    assert "when memory runs out" in done.stderr
    assert "Traceback" not in done.stderr


# As Orbax's after a save that has failed: its class is of that module.
LEFT_OVER = """
import threading, time
from vit_jax import main

class Left(threading.Thread):
    __module__ = "orbax.checkpoint.futures"

def fails(argv):
    Left(target=time.sleep, args=(300,)).start()
    return 2

main.main = fails
main.script()
"""


def test_threads_of_a_save_that_failed_do_not_hold_up_the_end() -> None:
    done = subprocess.run([sys.executable, "-c", LEFT_OVER], timeout=200)
    assert done.returncode == 2
