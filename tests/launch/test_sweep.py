"""launch.sweep: real processes of a fake main, and in the end of the true one."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import cli
from tests.launch import sweeps

GRID = (
    "--grid=config.optim.learning_rate=1e-2,1e-3,1e-4",
    "--grid=config.seed=0,1,2",
    "--parallel=2",
)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return tmp_path / "sweep"


def test_a_killed_sweep_goes_on(tmp_path: Path, sweep: Path) -> None:
    """SIGKILL in the middle: its trials end, and nothing is done twice."""
    process = sweeps.start(tmp_path, *GRID)
    sweeps.wait_until(lambda: len(list(sweep.glob("*/checkpoints/12"))) >= 3)
    sweeps.wait_until(lambda: running(sweep))
    process.kill()
    process.communicate()
    # Those too that had not written a word yet.
    sweeps.wait_until(lambda: not sweeps.processes_of(sweep))
    before = sweeps.witnesses(sweep)
    finished = [n for n in before if (sweep / n / "checkpoints" / "12").exists()]
    begun = len(trials := sweeps.trials(sweep))
    assert 3 <= len(finished) < begun < 9, trials

    output = sweeps.run(tmp_path, *GRID)
    after = sweeps.witnesses(sweep)
    assert len(after) == 9
    for name, lines in after.items():
        # They got a SIGTERM when the sweep ended, and saved.
        assert sweeps.steps(lines) == list(range(1, 13)), name
        assert len(sweeps.pids(lines)) == (2 if name in before and name not in finished
                                           else 1)  # fmt: skip
    assert f"{len(finished)} have ended before" in output
    assert "goes on from step" in output
    assert most_at_a_time(after) == 2
    rows = sweeps.check_table(sweep, "test/accuracy", total_steps=12)
    check_settings(sweep, rows)
    markdown = (sweep / "sweep.md").read_text()
    assert markdown in output
    assert markdown.count("| finished |") == 9

    # Once more: nothing is left, and the tables are the same.
    assert "0 trials to run" in sweeps.run(tmp_path, *GRID)
    assert sweeps.witnesses(sweep) == after
    assert sweeps.read_csv(sweep / "sweep.csv") == rows
    # And so it is by the workdir alone, which has the command.
    assert "0 trials to run" in sweeps.run(tmp_path, given=())
    assert sweeps.witnesses(sweep) == after
    output = sweeps.run(tmp_path, "--grid=config.seed=7", given=(), expect=2)
    assert "--grid asks for other trials than" in output
    # A larger grid runs what is new.
    larger = ("--grid=config.optim.learning_rate=1e-3", "--grid=config.seed=2,3")
    assert "1 trials to run" in sweeps.run(tmp_path, *larger)
    assert len(sweeps.witnesses(sweep)) == 10
    # A smaller one says what it leaves out, and leaves no table of the larger one.
    assert (sweep / "sweep_settings.csv").exists()
    smaller = ("--grid=config.optim.learning_rate=1e-3", "--grid=config.seed=2")
    output = sweeps.run(tmp_path, *smaller)
    assert f"9 more runs in {sweep} are not in the tables" in output
    assert not (sweep / "sweep_settings.csv").exists()
    assert len(sweeps.read_csv(sweep / "sweep.csv")) == 1


def test_a_sweep_that_never_began_needs_a_config(tmp_path: Path) -> None:
    from vit_jax.errors import UserError
    from vit_jax.launch.sweep import main

    with pytest.raises(UserError, match=r"this machine sees no .*sweep_command.json"):
        main([f"--workdir={tmp_path}/sweep"])
    with pytest.raises(UserError, match="--workdir are both needed"):
        main([])


def running(sweep: Path) -> bool:
    return any(0 < len(sweeps.steps(s)) < 9 for s in sweeps.witnesses(sweep).values())


def most_at_a_time(witnesses: dict[str, list[str]]) -> int:
    """Of the trials with one attempt, by the times that they noted."""
    times = [
        (float(lines[0].split()[-1]), float(lines[-1].split()[-1]))
        for lines in witnesses.values()
        if len(sweeps.pids(lines)) == 1
    ]
    return max(sum(a <= began < b for a, b in times) for began, _ in times)


def check_settings(sweep: Path, rows: list[dict[str, str]]) -> None:
    """Mean and standard deviation over the seeds, from the table of trials."""
    found = sweeps.read_csv(sweep / "sweep_settings.csv")
    assert len(found) == 3
    for setting in found:
        rate = setting["optim.learning_rate"]
        values = [
            float(row["test/accuracy"])
            for row in rows
            if row["optim.learning_rate"] == rate
        ]
        assert setting["seeds"] == "3"
        mean = float(setting["mean test/accuracy"])
        assert mean == pytest.approx(statistics.mean(values))
        assert float(setting["standard deviation"]) == pytest.approx(
            statistics.stdev(values)
        )
        assert float(setting["min"]), float(setting["max"]) == (
            min(values),
            max(values),
        )
    means = [float(s["mean test/accuracy"]) for s in found]
    assert means == sorted(means, reverse=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_it_and_its_trials(
    number: signal.Signals, tmp_path: Path, sweep: Path
) -> None:
    process = sweeps.start(tmp_path, *GRID)
    sweeps.wait_until(lambda: running(sweep))
    process.send_signal(number)
    output = sweeps.end(process, 75)
    assert "asked to save and stop" in output
    assert "run the same command to go on" in output
    witnesses = sweeps.witnesses(sweep)
    assert 1 <= len(witnesses) <= 3
    for name, lines in witnesses.items():
        assert not any(map(sweeps.is_alive, sweeps.pids(lines)))
        assert (sweep / name / "checkpoints" / str(sweeps.steps(lines)[-1])).exists()
    if number == signal.SIGTERM:
        sweeps.run(tmp_path, *GRID, "--metric=test/accuracy")
        for lines in sweeps.witnesses(sweep).values():
            assert sweeps.steps(lines) == list(range(1, 13))


def test_trials_that_fail_do_not_hold_up_the_others(
    tmp_path: Path, sweep: Path
) -> None:
    """A diverged trial, one with a bad setting, and one that crashes once."""
    grid = (
        "--grid=config.optim.learning_rate=2,1e-3",
        "--grid=config.model.width=13,16",
    )
    crash = "model.width=16,optim.learning_rate=0.001"
    sweep.mkdir()
    (sweep / f"{crash}.crash").touch()
    output = sweeps.run(tmp_path, *grid, expect=70)
    assert f"{crash}: killed by SIGKILL; again in" in output
    assert f"{crash}: goes on from step 6" in output
    assert "3 of 4 trials have failed:" in output
    states = {row["trial"]: row for row in sweeps.read_csv(sweep / "sweep.csv")}
    assert states[crash]["state"] == "finished"
    # From the checkpoint of step 6: 7 was done before the crash too.
    lines = sweeps.witnesses(sweep)[crash]
    assert sweeps.steps(lines) == [*range(1, 8), *range(7, 13)]
    diverged = states["model.width=16,optim.learning_rate=2.0"]
    assert diverged["state"] == "diverged"
    assert diverged["message"] == "step 5: the loss is nan"
    for name in states.keys() - {crash, diverged["trial"]}:
        assert states[name]["state"] == "failed"
        assert states[name]["message"] == "config.model.width is 13: bad luck"
        assert f"{name}: failed: config.model.width is 13: bad luck" in output
    assert next(iter(states)) == crash  # the best, and the only one with a value

    before = sweeps.witnesses(sweep)
    sweeps.run(tmp_path, *grid, expect=70)
    after = sweeps.witnesses(sweep)
    for name in (crash, diverged["trial"]):  # at their end: not started again
        assert after[name] == before[name]
    assert len(sweeps.pids(after[name])) == 1
    # Tables alone start nothing at all.
    output = sweeps.run(tmp_path, *grid, "--table")
    assert sweeps.witnesses(sweep) == after
    assert sweeps.read_csv(sweep / "sweep.csv") == list(states.values())


def test_what_stands_in_the_way_is_said(tmp_path: Path, sweep: Path) -> None:
    """Another sweep, another config, another process at a trial, no such metric."""
    grid = ("--grid=config.seed=0,1",)
    first = sweeps.start(tmp_path, *grid)
    sweeps.wait_until(lambda: running(sweep))
    output = sweeps.run(tmp_path, *grid, expect=2)
    assert "is in use by " in output
    output = sweeps.run(tmp_path, *grid, "--table")
    assert "| running |" in (sweep / "sweep.md").read_text() or "finished" in output
    sweeps.end(first, 0)
    output = sweeps.run(tmp_path, *grid, "--config.ema=0.9", expect=2)
    assert "seed=0 was begun with another config: ema: None -> 0.9" in output
    output = sweeps.run(tmp_path, *grid, "--metric=test/acuracy", expect=2)
    assert 'did you mean "test/accuracy"?' in output
    # A run of somebody's own in the workdir of a trial, for two seconds.
    holder = "import fcntl, sys, time; f = open(sys.argv[1], 'a'); "
    holder += "fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); time.sleep(3)"
    lock = sweep / "seed=2" / ".lock"
    lock.parent.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", holder, lock], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline()
        began = time.time()
        output = sweeps.run(tmp_path, "--grid=config.seed=2")
    assert "seed=2: waits for another process to let go" in output
    started = float(sweeps.witnesses(sweep)["seed=2"][0].split()[-1])
    assert started > began + 2


def test_cores_are_shared_out(tmp_path: Path, sweep: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    sweeps.run(tmp_path, "--grid=config.seed=0,1", "--parallel=2")
    for lines in sweeps.witnesses(sweep).values():
        assert f"on {max(1, cores // 2)} cores" in lines[0]


def test_random_and_the_recipes_own_points(tmp_path: Path, sweep: Path) -> None:
    sample = "--sample=config.optim.learning_rate=log:1e-4:1e-2"
    argv = ("--random=3", sample, "--grid=config.seed=0,1", "--dry_run")
    commands = [s for s in sweeps.run(tmp_path, *argv).splitlines() if s[0] != "#"]
    assert len(commands) == 6
    assert commands == [
        s for s in sweeps.run(tmp_path, *argv).splitlines() if s[0] != "#"
    ]
    assert not sweep.exists()
    output = sweeps.run(tmp_path, "--config.seed=5", "--dry_run")  # sweep()
    commands = [s for s in output.splitlines() if s[0] != "#"]
    assert len(commands) == 2
    name = "model.width=32,optim.learning_rate=0.0015"
    assert f"--workdir={sweep / name} " in commands[1]
    assert commands[1].endswith(
        "--config.seed=5 --config.model.width=32 --config.optim.learning_rate=0.0015"
    )


def test_the_recipes_groups_have_means(tmp_path: Path, sweep: Path) -> None:
    """sweep() with a grid; a group has a mean once all of it have finished."""
    sweeps.run(tmp_path, "--recipe", "--grid=config.seed=1")
    whole = ("--recipe", "--grid=config.seed=0,1", "--parallel=2")
    output = sweeps.run(tmp_path, *whole, "--table")
    assert "2 of 4" in output
    assert sweeps.read_csv(sweep / "sweep_groups.csv")[1] == {
        "group": "wide",
        "mean test/accuracy": "",
        "finished": "1",
        "trials": "2",
    }
    output = sweeps.run(tmp_path, *whole)
    assert (sweep / "sweep.md").read_text() in output
    finals = {
        row["trial"]: float(row["test/accuracy"])
        for row in sweeps.read_csv(sweep / "sweep.csv")
    }
    assert len(finals) == 4
    wide = [value for name, value in finals.items() if "width=32" in name]
    means = [
        (row["group"], float(row["mean test/accuracy"]))
        for row in sweeps.read_csv(sweep / "sweep_groups.csv")
    ]
    assert [name for name, _ in means] == ["narrow", "wide", "all"]
    assert means[1][1] == pytest.approx(statistics.fmean(wide), rel=1e-12)
    assert means[2][1] == pytest.approx(statistics.fmean(finals.values()), rel=1e-12)


def test_optuna_goes_on(tmp_path: Path, sweep: Path) -> None:
    """Killed in the middle, it ends with as many trials, and knows how they ended."""
    optuna = pytest.importorskip("optuna")
    argv = (
        "--optuna=8",
        "--sample=config.optim.learning_rate=log:1e-6:1",
        "--parallel=2",
    )
    process = sweeps.start(tmp_path, *argv)
    sweeps.wait_until(lambda: len(list(sweep.glob("*/checkpoints/12"))) >= 3)
    sweeps.wait_until(lambda: running(sweep))
    process.kill()
    process.communicate()
    begun = set(sweeps.witnesses(sweep))
    sweeps.run(tmp_path, *argv)
    witnesses = sweeps.witnesses(sweep)
    assert begun < set(witnesses)
    assert len(witnesses) == 8
    for lines in witnesses.values():
        assert sweeps.steps(lines) == list(range(1, 13))
    study = optuna.load_study(
        study_name="test/accuracy", storage=f"sqlite:///{sweep / 'optuna.sqlite3'}"
    )
    rows = sweeps.read_csv(sweep / "sweep.csv")
    assert len(study.trials) == 8
    assert study.best_value == float(rows[0]["test/accuracy"])
    known = {trial.params["optim.learning_rate"]: trial.value for trial in study.trials}
    for row in rows:
        rate = float(row["optim.learning_rate"])
        (value,) = (v for k, v in known.items() if k == pytest.approx(rate, rel=1e-3))
        assert value == float(row["test/accuracy"])
    assert "0 trials to run" in sweeps.run(tmp_path, *argv)
    assert sweeps.witnesses(sweep) == witnesses


def test_optuna_missing_is_said(tmp_path: Path) -> None:
    argv = ("--optuna=1", "--sample=config.seed=int:0:9")
    hidden = sweeps.SWEEP.replace("from vit_jax.launch import job", NO_OPTUNA, 1)
    flags = [f"--config={sweeps.RECIPE}", f"--workdir={tmp_path}", *argv]
    run = [sys.executable, "-c", hidden, sys.executable, *flags]
    template = sweeps.write_template(tmp_path)
    process = subprocess.run(
        run,
        cwd=cli.ROOT,
        env=os.environ | {"SWEEP_TEMPLATE": str(template)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 2
    assert "pip install optuna, or use --random" in process.stderr


NO_OPTUNA = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == "optuna" else find(name)
from vit_jax.launch import job
"""


def test_slurm_gets_an_array_of_what_is_left(tmp_path: Path, sweep: Path) -> None:
    sweeps.run(tmp_path, "--grid=config.seed=0")
    for name, text in (
        ("sbatch", f'cp "$2" {tmp_path}/submitted.sh; echo 71'),
        ("squeue", f"cat {tmp_path}/queue"),
    ):
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    queue = tmp_path / "queue"
    queue.write_text("70 /somewhere/else/slurm.sh\n")
    argv = ("--grid=config.seed=0,1,2", "--launcher=slurm", "--parallel=2")
    argv = (*argv, "--launcher_args=--time=1:00:00 --gpus_per_node=4")
    assert "Submitted 2 trials as job 71" in sweeps.run(tmp_path, *argv)
    script = (tmp_path / "submitted.sh").read_text()
    assert "--array=0-1%2" in script
    assert "--time=1:00:00" in script
    assert "--config.seed=1" in script and "--config.seed=2" in script
    assert "--config.seed=0" not in script
    queue.write_text(f"71 {sweep}/slurm.sh\n")
    output = sweeps.run(tmp_path, *argv, expect=2)
    assert "are in Slurm's queue (71)" in output


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--gird=config.seed=0"], 'did you mean "--grid"?'),
        (["--grid=config.sed=0,1"], 'did you mean "seed"?'),
        (["--grid=config.seed=0,one"], "config.seed is"),
        (["--grid=config.seed=0", "--launcher=slrum"], 'did you mean "slurm"?'),
        (["--grid=config.seed=0", "--metric=tset/accuracy"], '"test/accuracy"?'),
        (["--grid=config.seed=0", "--metric=test/acc"], "test/mean_class_accuracy"),
        (["--grid=config.seed=0", "--metric=train/acc", "--dry_run"], "train/epoch"),
        (["--grid=config.seed=0", "--metric=nothing", "--table"], "valid names: test/"),
        (
            ["--grid=config.evals.few.type=fewshot", "--metric=few/accuracy"],
            '"test/accuracy"? The valid names: few/10shot, few/1shot',
        ),
        (["--grid=config.seed=0", "--parallel=0"], "at least 1"),
        (["--grid=config.seed=0", "--evaluate_only"], "a sweep trains"),
        (["--grid=config.seed=0", "--launcher_args=--x"], "takes none"),
        (["--grid=config.seed=0", "--optuna=2"], "--optuna chooses"),
        (["--random=2"], "at least one --sample"),
        (["--random=1000000000"], "--random=1000000000: it should be at least 1, and"),
        (["--grid=config.seed=0", "--parallel=1000000000"], "at most 100,000"),
        (
            [f"--grid=config.{k}={','.join('1' * 400)}" for k in ("seed", "log_every")],
            "of 160,000 points together: a sweep has at most 100,000",
        ),
        (["--random=2", "--sample=config.ema=uniform:-inf:0"], "LOW < HIGH does not"),
        (
            ["--grid=config.seed=0", "--launcher=slurm", '--launcher_args="'],
            '--launcher_args=": No closing quotation',
        ),
        (["--sample=config.seed=int:0:1"], "--random N or --optuna N"),
        (["--config=configs/quickstart.py"], "nothing to sweep over"),
    ],
)
def test_a_mistake_is_one_message(
    argv: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process: each start would load jax anew."""
    from vit_jax.errors import UserError
    from vit_jax.launch.sweep import main

    monkeypatch.chdir(cli.ROOT)
    with pytest.raises(UserError) as error:
        main([f"--config={sweeps.RECIPE}", f"--workdir={tmp_path}/sweep", *argv])
    assert expected in str(error.value)
    assert not (tmp_path / "sweep").exists()


def true_sweep(workdir: Path, *argv: str) -> subprocess.Popen[str]:
    flags = [f"--config={sweeps.RECIPE}", f"--workdir={workdir}", *argv]
    return subprocess.Popen(
        [sys.executable, "-m", "vit_jax.launch.sweep", *flags, "--parallel=2"],
        cwd=cli.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_the_true_main(tmp_path: Path) -> None:
    """One trial: the fake leaves what the true one leaves."""
    argv = ("--grid=config.optim.learning_rate=3e-3", "--grid=config.seed=1")
    output = sweeps.end(true_sweep(tmp_path, *argv), 0)
    sweeps.check_table(tmp_path, "test/accuracy", total_steps=12)
    assert "1 of 1 trials finished" in output
    assert "0 left" in output


@pytest.mark.slow
def test_a_killed_sweep_of_the_true_main(tmp_path: Path) -> None:
    """3 x 3, killed in the middle, and started again at once."""
    workdir = tmp_path / "sweep"

    def finished() -> dict[str, int]:
        paths = workdir.glob("*/checkpoints/12")
        return {p.parent.parent.name: p.stat().st_mtime_ns for p in paths}

    process = true_sweep(workdir, *GRID[:2])
    sweeps.wait_until(lambda: len(finished()) >= 3)
    process.kill()
    process.communicate()
    before = finished()
    output = sweeps.end(true_sweep(workdir, *GRID[:2]), 0)
    after = finished()
    assert len(before) < 9 == len(after)
    assert all(after[name] == mtime for name, mtime in before.items())
    for name in before:  # "$ " begins an attempt
        assert (workdir / name / "log.txt").read_text().count("\n$ ") == 1
    rows = sweeps.check_table(workdir, "test/accuracy", total_steps=12)
    check_settings(workdir, rows)
    assert "9 of 9 trials finished" in output
    assert json.loads((workdir / rows[0]["trial"] / "config.json").read_text())
