"""Data that does not come: signals are heeded, and what has been done is saved."""

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from tests import cli
from tests.test_preemption import ARGS, AT, assert_same_run, at_step, send, whole
from vit_jax.data.builder import BatchBuilder

__all__ = ["whole"]  # a fixture
pytestmark = pytest.mark.slow


def hang_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Lets the builder hang for ever, or until the event is set."""
    freed, build = threading.Event(), BatchBuilder.__call__

    def hanging(self: BatchBuilder, number: int):
        if self.seed is not None and number >= batches:
            freed.wait(100)
        return build(self, number)

    monkeypatch.setattr(BatchBuilder, "__call__", hanging)
    return freed


@pytest.mark.parametrize("after, saved", [(AT, [AT]), (0, [])])
def test_a_reader_that_hangs(
    after: int, saved: list[int], whole: Path, tmp_path: Path, monkeypatch
) -> None:
    with monkeypatch.context() as patch:
        freed, began = hang_after(after, patch), time.monotonic()
        # The first batch is read before anything is compiled too.
        path = tmp_path / ("tensorboard" if after else ".lock")

        def later() -> None:
            while not path.exists():
                time.sleep(0.1)
            time.sleep(1)
            send(signal.SIGTERM)

        threading.Thread(target=later).start()
        cli.call(*ARGS, f"--workdir={tmp_path}", expect=75)
        freed.set()
    assert time.monotonic() - began < 60
    assert cli.saved_steps(tmp_path) == saved
    if saved:
        cli.call(*ARGS, f"--workdir={tmp_path}")
        assert_same_run(tmp_path, whole)


@pytest.mark.parametrize(
    "number, message",
    [
        (signal.SIGKILL, "when memory runs out"),
        pytest.param(signal.SIGBUS, "--shm-size", marks=pytest.mark.slow),
    ],
)
def test_a_worker_that_dies(
    number: signal.Signals, message: str, whole: Path, tmp_path: Path, monkeypatch
) -> None:
    def kill() -> None:
        for child in multiprocessing.active_children():
            assert child.pid is not None
            os.kill(child.pid, number)

    flags = "--config.data.num_workers=1", "--config.checkpoint.every=100"
    with monkeypatch.context() as patch:
        at_step(AT, kill, patch)
        output = cli.call(*ARGS, *flags, f"--workdir={tmp_path}", expect=71)
    assert "Traceback" not in output
    assert message in output and "the same command goes on from there" in output
    (step,) = cli.saved_steps(tmp_path)  # batches that were ahead may be used up first
    assert step >= AT and f"is saved at step {step}" in output
    if number == signal.SIGKILL:
        cli.call(*ARGS, f"--workdir={tmp_path}")
        assert_same_run(tmp_path, whole)
