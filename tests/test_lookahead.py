"""Processes that have no more data: all save the same step before they end."""

import os
import signal
import subprocess
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from tests import cli
from vit_jax.errors import PeerLost, WorkerLost
from vit_jax.lookahead import Batches

STEPS = 40
ARGS = (
    f"--config={cli.EVERYTHING}",
    f"--config.total_steps={STEPS}",
    "--config.peer_timeout=6",
    "--config.evals.test.every=20",
    "--config.checkpoint.every=1000",
    "--config.checkpoint.best=none",
    "--config.checkpoint.keep=20",
)


def numbers(end: int, error: Exception | None = None) -> Generator[int, None, None]:
    yield from range(end)
    if error is not None:
        raise error


def test_one_is_read_ahead() -> None:
    read, put = [], []

    def noted() -> Generator[int, None, None]:
        for number in range(4):
            read.append(number)
            yield number

    batches = Batches(noted(), lambda n: put.append(n) or n, ahead=True)
    assert next(batches) == 0 and read == [0, 1] and put == [0]
    assert next(batches) == 1 and read == [0, 1, 2] and put == [0, 1]
    assert list(batches) == [2, 3] and batches.failure is None
    assert next(batches, None) is None
    alone = Batches(numbers(3), lambda n: n, ahead=False)
    assert list(alone) == [0, 1, 2]


def test_an_error_leaves_one_to_train_on() -> None:
    lost = WorkerLost("no memory")
    batches = Batches(numbers(3, lost), lambda n: n, ahead=True)
    assert next(batches) == 0 and next(batches) == 1 and batches.failure is None
    assert next(batches) == 2 and batches.failure is lost
    assert next(batches, None) is None
    for met in (0, 1):  # before any step has been done: there is nothing to save
        with pytest.raises(WorkerLost):
            next(Batches(numbers(met, lost), lambda n: n, ahead=True))
    alone = Batches(numbers(1, lost), lambda n: n, ahead=False)
    assert next(alone) == 0
    with pytest.raises(WorkerLost):
        next(alone)


def workers(process: subprocess.Popen[str]) -> list[int]:
    """The processes that read data for one."""
    task = Path(f"/proc/{process.pid}/task")
    children = [
        int(pid) for t in task.iterdir() for pid in (t / "children").read_text().split()
    ]
    return [pid for pid in children if b"resource_tracker" not in command(pid)]


def command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("whole")
    cli.run_many(2, *ARGS, f"--workdir={workdir}")
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize(
    "ending, victim",
    [
        ("worker killed", 1),
        ("reader hangs", 1),
        pytest.param("reader hangs", 0, marks=pytest.mark.campaign),
    ],
)
def test_all_save_before_they_end(
    ending: str, victim: int, whole: Path, tmp_path: Path
) -> None:
    """A worker of one is killed; or is stopped, and the other gets a signal."""
    args = (*ARGS, f"--workdir={tmp_path}")
    processes = cli.start_many(
        2, *args, own=lambda i: ["--config.data.num_workers=1"] if i == victim else []
    )
    path = tmp_path / "metrics.jsonl"
    while not (path.exists() and len(path.read_text().splitlines()) >= 8):
        assert all(p.poll() is None for p in processes), cli.ends(processes)
        time.sleep(0.002)
    (worker,) = workers(processes[victim])
    if ending == "worker killed":
        os.kill(worker, signal.SIGKILL)
        codes, outputs = cli.ends(processes)
        assert codes[victim] == WorkerLost.exit_code, outputs
        assert codes[1 - victim] == PeerLost.exit_code, outputs
        for output in outputs:
            assert "was killed (SIGKILL), as Linux does when memory runs out" in output
    else:
        os.kill(worker, signal.SIGSTOP)
        time.sleep(3)
        processes[1 - victim].send_signal(signal.SIGTERM)
        codes, outputs = cli.ends(processes)
        assert codes == [75, 75], outputs
    assert not any("Traceback" in output for output in outputs), outputs
    (step,) = cli.saved_steps(tmp_path)
    said = outputs[victim if ending == "worker killed" else 0]
    assert f"is saved at step {step}" in said
    assert 8 <= step < STEPS
    cli.run_many(2, *args)
    assert cli.metric_lines(tmp_path) == cli.metric_lines(whole)
    cli.assert_same_bits(
        cli.saved_arrays(tmp_path, STEPS), cli.saved_arrays(whole, STEPS)
    )
