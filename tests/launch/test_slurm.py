"""launch.slurm against fake sbatch, srun and scontrol, which start real processes.

What Slurm itself makes of the script is seen by test_real_slurm.py.
"""

import sys
from pathlib import Path

import pytest

from tests import cli
from tests.launch import programs
from tests.launch.fake_slurm import FakeSlurm, Start
from vit_jax.errors import UserError
from vit_jax.launch import job, slurm

# Everything that a shell or sbatch could take for something else.
ODD = """a 'b' "c" $HOME `d` #f %j & ü"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    monkeypatch.chdir(cli.ROOT)
    return FakeSlurm(tmp_path / "slurm", monkeypatch)


@pytest.fixture
def options(tmp_path: Path) -> slurm.Options:
    python = programs.install(tmp_path / "bin", "python", "main")
    return slurm.Options(tasks_per_node=2, python=str(python))


def a_job(workdir: Path, *arguments: str) -> job.Job:
    return job.Job("configs/quickstart.py", str(workdir), arguments)


def log(workdir: Path) -> str:
    return (workdir / "slurm.log").read_text()


def test_the_command_line_submits_a_run(
    cluster: FakeSlurm,
    options: slurm.Options,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    workdir = tmp_path / ODD
    code = slurm.main(
        [
            *[programs.RECIPE, f"--workdir={workdir}", "--config.seed=3"],
            *["--nodes=2", "--tasks_per_node=1", "--partition=tiny", "--account=me"],
            *["--time=1:00", "--cpus_per_task=3", f"--python={options.python}"],
            "--sbatch=--constraint=a|b c",
        ]
    )
    assert code == 0
    assert "Submitted job 1." in capsys.readouterr().out
    (submitted,) = cluster.jobs()
    assert submitted["options"] == {
        "--job-name": ODD,
        "--output": f"{workdir}/slurm.log".replace("%", "%%"),
        "--open-mode": "append",
        "--requeue": "",
        "--signal": "TERM@120",
        "--nodes": "2",
        "--ntasks-per-node": "1",
        "--cpus-per-task": "3",
        "--partition": "tiny",
        "--account": "me",
        "--time": "1:00",
        "--constraint": "a|b c",
    }
    assert cluster.run_queue() == [0]
    ((first, second),) = programs.starts(workdir)
    wanted = [programs.RECIPE, f"--workdir={workdir}", "--config.seed=3"]
    assert first["argv"][1:] == second["argv"][1:] == ["-m", "vit_jax.main", *wanted]
    assert "process 0 is done" in log(workdir) and "process 1 is done" in log(workdir)


def preempt(start: Start) -> None:
    start.signal_tasks()


def lose_node(start: Start) -> None:
    start.lose_node()


@pytest.mark.parametrize("event", [preempt, lose_node])
def test_an_interrupted_run_is_requeued_and_finishes(
    event, cluster: FakeSlurm, options: slurm.Options, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    slurm.submit([a_job(workdir)], options)
    reached = (workdir / "checkpoints" / "2").exists
    assert cluster.run_queue(reached, event) == [0]
    assert programs.steps(workdir) == list(range(1, programs.STEPS + 1))
    keys = set()
    for start in programs.starts(workdir):
        (key,) = {given["environment"]["VIT_JAX_RUN_KEY"] for given in start}
        assert len(key) == 64  # the same for all of a start
        keys.add(key)
    assert len(keys) == 2
    assert len(programs.starts(workdir)) == 2
    assert "restart 1, from step" in log(workdir)
    assert ("saved at" in log(workdir)) == (event is preempt)


def test_a_lost_task_is_requeued(
    cluster: FakeSlurm, options: slurm.Options, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    programs.add_fault(workdir, 0, 4, "SIGKILL")
    slurm.submit([a_job(workdir)], options)
    assert cluster.run_queue() == [0]
    assert "ended with code 137" in log(workdir)
    assert "restart 1, from step 3" in log(workdir)


def test_a_cancelled_job_stays_cancelled(
    cluster: FakeSlurm, options: slurm.Options, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    slurm.submit([a_job(workdir)], options)
    reached = (workdir / "checkpoints" / "2").exists
    assert cluster.run_queue(reached, lambda start: start.cancel()) == [75]
    assert len(programs.starts(workdir)) == 1


@pytest.mark.parametrize("code", job.FINAL_CODES[1:])
def test_what_would_only_repeat_itself_is_not_requeued(
    code: int, cluster: FakeSlurm, options: slurm.Options, tmp_path: Path
) -> None:
    programs.add_fault(tmp_path / "run", 0, 2, code)
    one = slurm.Options(python=options.python)
    slurm.submit([a_job(tmp_path / "run")], one)
    assert cluster.run_queue() == [code]


def test_a_run_without_progress_is_given_up(cluster: FakeSlurm, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    options = slurm.Options(python="/bin/false")
    slurm.submit([a_job(workdir)], options)
    assert cluster.run_queue() == [1]
    assert log(workdir).count("launch: job") == 6
    assert "given up after 5 restarts" in log(workdir)


def test_progress_is_what_resets_the_count(
    cluster: FakeSlurm, options: slurm.Options, tmp_path: Path
) -> None:
    """Seven crashes, one at each step and two at the first."""
    workdir = tmp_path / "run"
    programs.add_fault(workdir, 0, 1, 3)
    for step in range(1, programs.STEPS + 1):
        programs.add_fault(workdir, 0, step, 1)
    slurm.submit([a_job(workdir)], slurm.Options(python=options.python))
    assert cluster.run_queue() == [0]
    assert len(programs.starts(workdir)) == 8


def test_a_cluster_that_does_not_requeue_is_told(
    cluster: FakeSlurm, options: slurm.Options, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    programs.add_fault(workdir, 0, 4, 1)
    (cluster.folder / "no_requeue").touch()
    slurm.submit([a_job(workdir)], slurm.Options(python=options.python))
    assert cluster.run_queue() == [1]
    assert "presently disabled" in log(workdir)
    assert "submit again to go on" in log(workdir)
    slurm.submit([a_job(workdir)], slurm.Options(python=options.python))
    assert cluster.run_queue()[1:] == [0]
    assert programs.steps(workdir) == list(range(1, programs.STEPS + 1))


def test_an_array_is_one_job_with_a_workdir_for_each(
    cluster: FakeSlurm, options: slurm.Options, tmp_path: Path
) -> None:
    jobs = [a_job(tmp_path / "sweep" / f"x {i}", f"--config.seed={i}") for i in (1, 2)]
    programs.add_fault(tmp_path / "sweep" / "x 2", 0, 3, "SIGTERM")
    number = slurm.submit(jobs, slurm.Options(parallel=1, python=options.python))
    assert number == "1"
    assert cluster.jobs()[0]["options"]["--array"] == "0-1%1"
    assert cluster.run_queue() == [0, 0]
    for i, starts in ((1, 1), (2, 2)):
        workdir = tmp_path / "sweep" / f"x {i}"
        assert programs.steps(workdir) == list(range(1, programs.STEPS + 1))
        given = programs.starts(workdir)
        assert len(given) == starts
        assert given[-1][0]["argv"][-1] == f"--config.seed={i}"
        assert "from step" in log(workdir)


def test_a_refusal_is_shown(
    cluster: FakeSlurm, options: slurm.Options, tmp_path: Path
) -> None:
    quota = "QOSMaxSubmitJobPerUserLimit"
    (cluster.folder / "refusal").write_text(quota)
    with pytest.raises(UserError, match=f"sbatch refuses .*slurm.sh:\nsbatch.*{quota}"):
        slurm.submit([a_job(tmp_path / "run")], options)


@pytest.mark.parametrize(
    ("options", "workdir", "expected"),
    [
        (slurm.Options(nodes=0), "/x", "--nodes=0 must be at least 1"),
        (slurm.Options(tasks_per_node=0), "/x", "--tasks_per_node=0 must be"),
        (slurm.Options(sbatch=("qos=high",)), "/x", "write --sbatch=--qos=high"),
        (slurm.Options(time="-5"), "/x", "--time=-5: expected a limit as Slurm"),
        (slurm.Options(time="8h"), "/x", "--time=8h: expected a limit as Slurm"),
        (slurm.Options(partition="a\nb"), "/x", "line break"),
        (slurm.Options(), "/x\\y", "drops a backslash"),
        (slurm.Options(), "gs://bucket/x", "a directory that all nodes share"),
    ],
)
def test_what_cannot_be_is_refused(
    options: slurm.Options, workdir: str, expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        slurm.script([job.Job("configs/quickstart.py", workdir)], options)


@pytest.mark.parametrize(
    "limit", ["90", "90:30", "8:00:00", "1-12", "1-12:30", "1-12:30:15", "UNLIMITED"]
)
def test_limits_of_time_are_those_of_sbatch(limit: str) -> None:
    """As its manual lists them."""
    run = job.Job("configs/quickstart.py", "/x")
    text = slurm.script([run], slurm.Options(time=limit))
    assert f"#SBATCH --time={limit}\n" in text


def test_without_slurm_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="sbatch is not found here"):
        slurm.submit([a_job(tmp_path / "run")], slurm.Options())
    assert not (tmp_path / "run").exists()


def test_gpus_get_a_process_each() -> None:
    text = slurm.script([a_job(Path("/x"))], slurm.Options(nodes=2, gpus_per_node=8))
    assert "\n#SBATCH --ntasks-per-node=8\n#SBATCH --gpus-per-node=8\n" in text


def test_dry_run_prints_the_script(
    cluster: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [programs.RECIPE, f"--workdir={tmp_path}/run", "--dry_run"]
    assert slurm.main(argv) == 0
    text = slurm.script([a_job(tmp_path / "run")], slurm.Options())
    assert capsys.readouterr().out == text
    assert not (tmp_path / "run").exists() and cluster.jobs() == []


@pytest.mark.slow
def test_the_true_main_goes_on_after_a_signal(
    cluster: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XLA_FLAGS", "")
    workdir = tmp_path / "run"
    run = job.Job(cli.EVERYTHING, str(workdir), ("--config.total_steps=40",))
    slurm.submit([run], slurm.Options(python=sys.executable))
    reached = (workdir / "checkpoints" / "7").exists
    assert cluster.run_queue(reached, preempt) == [0], log(workdir)
    assert "ended with code 75" in log(workdir)
    steps = [line["step"] for line in cli.metric_lines(workdir)]
    assert steps == list(range(1, 41))
