"""What the launchers share: the command line, and when to start again."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath

from tests import cli
from vit_jax import config, errors
from vit_jax.launch import job

GIVEN = ["--config=configs/quickstart.py", "--workdir=/runs/a b"]


def parse(*argv: str):
    parser = job.Parser("test", None)
    parser.add_argument("--processes", type=int, default=1)
    return job.parse(parser, argv)


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cli.ROOT)


def test_arguments_of_main_are_passed_on_in_their_order() -> None:
    keys = ["--config.seed=1", "--config.optim.learning_rate=1e-4", "--config.seed=2"]
    run, flags = parse(
        *(keys[0], "--processes=3", "--evaluate_only", "--evals=test", *keys[1:]),
        *(*GIVEN, "--dry_run"),
    )
    alone = ["--evaluate_only", "--evals=test"]
    assert run == job.Job("configs/quickstart.py", "/runs/a b", (*keys, *alone))
    assert flags.processes == 3 and flags.dry_run
    assert run.command("python3", ["--process_id=1"]) == [
        *["python3", "-m", "vit_jax.main", *GIVEN, *keys, *alone],
        "--process_id=1",
    ]


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """The workdir of a run of configs/quickstart.py, as far as a launcher looks."""
    stored = config.load("configs/quickstart.py", {"seed": 5}).to_dict()
    (tmp_path / "config.json").write_text(json.dumps(stored))
    lines = [{"note": "x"}, {"recipe": "configs/quickstart.py"}, {"recipe": "y"}]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (tmp_path / "runs.jsonl").write_text(f"broken{text}{text}")
    return tmp_path


def test_a_run_that_has_begun_needs_no_config(begun: Path) -> None:
    run, _ = parse(f"--workdir={begun}", "--config.seed=6")
    recipe, workdir = "configs/quickstart.py", str(begun)
    assert run == job.Job(recipe, workdir, ("--config.seed=6",), stored=True)
    assert run.command("python3") == [
        *["python3", "-m", "vit_jax.main", f"--workdir={begun}", "--config.seed=6"],
    ]
    with pytest.raises(errors.UserError, match='did you mean "seed"'):
        parse(f"--workdir={begun}", "--config.sed=6")  # by the keys of its config


def test_a_workdir_that_is_not_seen_here(
    begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(errors.UserError, match=r"this machine sees no .*: a new run"):
        parse(f"--workdir={begun}/other")

    def refuse(path: epath.Path) -> bool:
        raise RuntimeError(f"Could not resolve host\nwhen reading {path}")

    monkeypatch.setattr(type(epath.Path("gs://b/run")), "exists", refuse)
    expected = (
        r"cannot read gs://b/run/config.json \(RuntimeError: Could not resolve host"
    )
    with pytest.raises(errors.UserError, match=expected):
        parse("--workdir=gs://b/run")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([*GIVEN, "--evals=test"], "--evals goes with --evaluate_only"),
        ([*GIVEN, "--proceses=3"], '--proceses=3 is not a flag; did you mean "--proce'),
        ([GIVEN[0], "--workdr=/x"], 'did you mean "--workdir"'),
        ([*GIVEN, "--processes=many"], "--processes: invalid int value: 'many'"),
        ([*GIVEN, "--process=3"], "is not a flag"),
        ([*GIVEN, "stray"], "stray is not a flag"),
        ([*GIVEN, "--config.sed=1"], '--config.sed is not a key; did you mean "seed"'),
        ([*GIVEN, "--config.batch_size=x"], "should be an int"),
        (["--config=configs/quickstrt.py", GIVEN[1]], "configs/quickstart.py"),
        ([GIVEN[0]], "--workdir are both needed"),
    ],
)
def test_mistakes_name_what_was_meant(argv: list[str], expected: str) -> None:
    with pytest.raises(errors.UserError, match=re.escape(expected)):
        parse(*argv)


def test_a_run_with_progress_is_restarted_without_end() -> None:
    steps = iter(range(1000))
    restarts = job.Restarts(lambda: next(steps), limit=1)
    assert {restarts.after(76) for _ in range(50)} == {1}
    assert restarts.count == 50


def test_a_run_without_progress_is_given_up() -> None:
    restarts = job.Restarts(lambda: None, limit=3, first_wait=1)
    assert [restarts.after(1) for _ in range(4)] == [1, 2, 4, None]
    assert restarts.count == 3


@pytest.mark.parametrize("code", [0, 2, 70])
def test_what_would_only_repeat_itself_is_not_restarted(code: int) -> None:
    assert job.Restarts(lambda: None).after(code) is None


def test_newest_step(tmp_path: Path) -> None:
    assert job.newest_step(str(tmp_path)) is None
    for name in ("9", "10", "11.orbax-checkpoint-tmp"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert job.newest_step(str(tmp_path)) == 10


def test_a_mistake_is_one_message_and_code_2() -> None:
    code = (
        "import sys; from launch import job\n"
        "sys.exit(job.run_main(lambda a: job.parse(job.Parser('x', ''), a) and 0))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, "--cnfig=x"],
        cwd=cli.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stderr == 'error: --cnfig=x is not a flag; did you mean "--config"?\n'
