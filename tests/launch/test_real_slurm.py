"""launch.slurm on a real Slurm of one node: `make slurm-test`."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import cli
from tests.launch import programs, real_slurm
from tests.launch.test_slurm import ODD, a_job, log
from vit_jax.errors import UserError
from vit_jax.launch import job, slurm

pytestmark = pytest.mark.slurm

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[Path]:
    if what := real_slurm.missing():
        pytest.fail(what)
    with real_slurm.cluster() as folder:
        yield folder


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> slurm.Options:
    monkeypatch.chdir(cli.ROOT)
    python = programs.install(tmp_path / "bin", "python", "main")
    return slurm.Options(tasks_per_node=2, python=str(python))


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def all_steps() -> list[int]:
    return list(range(1, programs.STEPS + 1))


def test_a_job_of_two_tasks(options: slurm.Options, tmp_path: Path) -> None:
    """In a workdir whose name has all that could be taken for something else."""
    workdir = tmp_path / ODD
    number = slurm.submit([a_job(workdir, "--config.seed=1")], options)
    assert real_slurm.wait_for(number, *ENDED) == "COMPLETED", log(workdir)
    assert programs.steps(workdir) == all_steps()
    (tasks,) = programs.starts(workdir)
    assert [t["environment"]["SLURM_PROCID"] for t in tasks] == ["0", "1"]
    assert tasks[0]["argv"][1:] == [
        *["-m", "vit_jax.main", programs.RECIPE, f"--workdir={workdir}"],
        "--config.seed=1",
    ]
    assert "0: process 0 is done" in log(workdir)
    assert "1: process 1 is done" in log(workdir)


def test_the_time_limit_is_a_requeue(
    options: slurm.Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """36 s of work; Slurm looks every 30 s, and signals after 5 s at the earliest."""
    monkeypatch.setenv("FAKE_STEP_SECONDS", "6")
    workdir = tmp_path / "run"
    limits = slurm.Options(
        tasks_per_node=2,
        python=options.python,
        time="1",
        sbatch=("--signal=TERM@55",),  # the last one counts
    )
    number = slurm.submit([a_job(workdir)], limits)
    assert real_slurm.wait_for(number, *ENDED, seconds=400) == "COMPLETED"
    assert programs.steps(workdir) == all_steps()
    assert int(real_slurm.field(number, "Restarts")) >= 1
    assert "saved at" in log(workdir)
    assert len(programs.starts(workdir)) == 1 + log(workdir).count("ended with code 75")


@pytest.fixture
def slow_job(
    options: slurm.Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """A job of 6 s that has done its first step."""
    monkeypatch.setenv("FAKE_STEP_SECONDS", "1")
    number = slurm.submit([a_job(tmp_path / "run")], options)
    wait_until((tmp_path / "run" / "checkpoints" / "1").exists)
    return number


def test_a_signal_is_a_requeue(slow_job: str, tmp_path: Path) -> None:
    real_slurm.slurm("scancel", "--signal=TERM", slow_job)
    assert real_slurm.wait_for(slow_job, *ENDED) == "COMPLETED"
    assert programs.steps(tmp_path / "run") == all_steps()
    assert real_slurm.field(slow_job, "Restarts") == "1"
    assert len(programs.starts(tmp_path / "run")) == 2


def test_a_lost_node_is_a_requeue(slow_job: str, tmp_path: Path) -> None:
    node = real_slurm.field(slow_job, "NodeList")
    down = ["scontrol", "update", f"nodename={node}", "state=down", "reason=test"]
    real_slurm.slurm(*down)
    real_slurm.wait_for(slow_job, "PENDING")
    real_slurm.slurm("scontrol", "update", f"nodename={node}", "state=resume")
    assert real_slurm.wait_for(slow_job, *ENDED) == "COMPLETED"
    assert programs.steps(tmp_path / "run") == all_steps()
    assert len(programs.starts(tmp_path / "run")) == 2


def test_a_cancelled_job_stays_cancelled(slow_job: str, tmp_path: Path) -> None:
    real_slurm.slurm("scancel", slow_job)
    real_slurm.wait_for(slow_job, "CANCELLED")
    wait_until(lambda: "Slurm has ended the job" in log(tmp_path / "run"))
    time.sleep(8)  # longer than a requeued job waits
    assert real_slurm.field(slow_job, "JobState") == "CANCELLED"
    assert len(programs.starts(tmp_path / "run")) == 1


def test_an_array(options: slurm.Options, tmp_path: Path) -> None:
    """Three jobs, two at a time, of which one is requeued once."""
    workdirs = [tmp_path / "sweep" / f"x {i}" for i in range(3)]
    programs.add_fault(workdirs[1], 1, 3, 1)
    jobs = [a_job(w, f"--config.seed={i}") for i, w in enumerate(workdirs)]
    several = slurm.Options(parallel=2, tasks_per_node=2, python=options.python)
    number = slurm.submit(jobs, several)
    for i, workdir in enumerate(workdirs):
        state = real_slurm.wait_for(f"{number}_{i}", *ENDED)
        assert state == "COMPLETED", log(workdir)
        assert programs.steps(workdir) == all_steps()
        starts = programs.starts(workdir)
        assert len(starts) == (2 if i == 1 else 1)
        assert starts[-1][0]["argv"][-1] == f"--config.seed={i}"


def test_what_slurm_refuses_is_shown(options: slurm.Options, tmp_path: Path) -> None:
    wrong = slurm.Options(python=options.python, partition="nowhere")
    with pytest.raises(UserError, match="invalid partition specified: nowhere"):
        slurm.submit([a_job(tmp_path / "run")], wrong)


def test_the_true_main_goes_on_after_a_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(cli.ROOT)
    monkeypatch.setenv("XLA_FLAGS", "")
    workdir = tmp_path / "run"
    run = job.Job(cli.EVERYTHING, os.fspath(workdir))
    number = slurm.submit([run], slurm.Options(python=sys.executable))
    wait_until((workdir / "checkpoints" / "7").exists)
    real_slurm.slurm("scancel", "--signal=TERM", number)
    assert real_slurm.wait_for(number, *ENDED, seconds=600) == "COMPLETED"
    assert "ended with code 75" in log(workdir)
    steps = [line["step"] for line in cli.metric_lines(workdir)]
    assert steps == list(range(1, 31))
