"""Training and evaluation from Python: often, and with errors that one can catch.

What a run computes is tested through the command line, tests/test_train.py.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import vit_jax
from tests import cli
from vit_jax import config, errors, main

SMALL = "tests/recipes/sweep.py"
FEW = {"total_epochs": None, "total_steps": 4, "checkpoint.every": 2}
FLAGS = ["--config.total_epochs=none", "--config.total_steps=4"]


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cli.ROOT)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    workdir = tmp_path_factory.mktemp("trained") / "run"
    recipe = str(cli.ROOT / SMALL)
    return workdir, vit_jax.train(recipe, workdir, FEW)


def test_results_are_those_of_the_last_line(trained) -> None:
    workdir, results = trained
    last = cli.metric_lines(workdir)[-1]
    assert last.pop("step") == 4
    assert results == last
    assert 0 < results["test/accuracy"] < 1


def test_the_workdir_says_how_it_was_made(trained) -> None:
    workdir = trained[0]
    (line,) = map(json.loads, (workdir / "runs.jsonl").read_text().splitlines())
    assert line["command"] == ["vit_jax.train"]
    assert line["recipe"] == str(cli.ROOT / SMALL)
    assert "checkpoint.every=2" in line["changes"]
    assert line["devices"] == "8 x cpu" and line["step"] == 0
    assert line["config"] == json.loads((workdir / "config.json").read_text())
    log = (workdir / "log.txt").read_text()
    assert "Compiling; logs go to" in log
    assert "step 4/4 (100%) loss" in log
    assert log.index("Compiling") < log.index("Finished at step 4")


def test_evaluates_by_the_config_of_the_workdir(trained) -> None:
    workdir, results = trained
    found = vit_jax.evaluate(None, workdir)
    assert found == {k: v for k, v in results.items() if k.startswith("test/")}
    with pytest.raises(errors.UserError, match='no "tset"; did you mean "test"'):
        vit_jax.evaluate(None, workdir, evals=["tset"])


def test_a_config_may_be_changed_and_be_a_dict(trained, tmp_path: Path) -> None:
    """In another thread too, where there are no signals to take over."""
    workdir, results = trained
    config = vit_jax.load_config(SMALL, {"total_epochs": None, "checkpoint.every": 2})
    config.total_steps = 4
    with pytest.raises(AttributeError):
        config.total_step = 4
    given = json.loads(json.dumps(config.to_dict()))
    found: list[dict[str, float]] = []
    thread = threading.Thread(
        target=lambda: found.append(vit_jax.train(given, tmp_path / "b"))
    )
    thread.start()
    thread.join()
    assert found == [results]
    arrays = cli.saved_arrays(workdir, 4), cli.saved_arrays(tmp_path / "b", 4)
    cli.assert_same_bits(*arrays)


def test_one_run_at_a_time(tmp_path: Path) -> None:
    refused: list[str] = []

    class Late(dict):
        """A config that is read while another run begins."""

        def items(self) -> Any:
            try:
                vit_jax.train(SMALL, tmp_path)
            except errors.UserError as error:
                refused.append(str(error))
            return super().items()

    with pytest.raises(errors.UserError, match="nothing is not a key"):
        vit_jax.train(Late(nothing=1), tmp_path)
    assert "in another thread" in refused[0]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda d: vit_jax.train(SMALL, ""), "--workdir= is empty"),
        (lambda d: vit_jax.train(SMALL, "s3://b/run"), "paths are local or begin"),
        (lambda d: vit_jax.train("nope.py", d), "there is no file"),
        (lambda d: vit_jax.train(None, d), "holds no run with a config.json"),
        (lambda d: vit_jax.train({}, d), "config.batch_size is not set"),
        (lambda d: vit_jax.train(SMALL, d, {"optim.lr": 1}), '"learning_rate"'),
        (lambda d: vit_jax.train(SMALL, d, {"optim": {"lr": 1}}), '"learning_rate"'),
        (lambda d: vit_jax.train(SMALL, d, {"seed": 1.5}), "should be an int"),
        (lambda d: vit_jax.evaluate(SMALL, d), "expected a workdir with"),
    ],
)
def test_errors_can_be_caught(call, message: str, tmp_path: Path) -> None:
    with pytest.raises(errors.UserError, match=message):
        call(tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_the_command_line_keeps_nothing_between_calls(tmp_path: Path, capsys) -> None:
    def call(name: str, *args: str) -> int:
        workdir = f"--workdir={tmp_path}/{name}"
        return main.main(["main", f"--config={SMALL}", workdir, *FLAGS, *args])

    assert call("a") == 0
    assert call("a", "--evaluate_only") == 0
    assert "test/accuracy" in capsys.readouterr().out
    assert call("b") == 0  # trains: it does not go on evaluating
    assert "Finished at step 4" in capsys.readouterr().out
    assert call("c", "--evalute_only") == 2
    assert "did you mean" in capsys.readouterr().err


def test_print_config_prints_a_recipe(
    trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The complete config as JSON and nothing else; `--config` takes it again."""

    def printed(*flags: str) -> dict[str, Any]:
        assert main.main(["main", "--print_config", *flags]) == 0
        return json.loads(capsys.readouterr().out)

    found = printed(f"--config={SMALL}", "--config.seed=7")
    assert found == json.loads(json.dumps(config.load(SMALL, {"seed": 7}).to_dict()))
    assert found["seed"] == 7 and found["optim"]["name"] == "adamw"  # a default
    path = tmp_path / "printed.json"
    path.write_text(json.dumps(found))
    assert printed(f"--config={path}") == found
    assert list(tmp_path.iterdir()) == [path]
    of_run = json.loads((trained[0] / "config.json").read_text())
    assert printed(f"--workdir={trained[0]}") == of_run
    assert main.main(["main", "--print_config", f"--config={SMALL}", "--lr=1"]) == 2
    flags = ["--print_config", f"--config={SMALL}", "--config.optim.lr=1"]
    assert main.main(["main", *flags]) == 2
    output = capsys.readouterr()
    assert output.out == "" and 'did you mean "learning_rate"?' in output.err


INTERRUPTED = f"""
import signal, sys, threading
import vit_jax
before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
for expected in (KeyboardInterrupt, vit_jax.errors.Preempted):
    try:
        vit_jax.train({SMALL!r}, sys.argv[1], {{"total_epochs": 1000.0}})
    except expected as stop:
        print("STOPPED", stop, flush=True)
assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
print(vit_jax.evaluate(None, sys.argv[1]))
"""


def test_signals_save_and_raise(tmp_path: Path) -> None:
    """Ctrl-C as Python has it, SIGTERM as documented; the process lives on."""
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cli.ROOT,
        env=os.environ | {"PYTHONPATH": str(cli.ROOT)},
    )
    waiting, lines = [signal.SIGINT, signal.SIGTERM], []
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if waiting and line.startswith("step"):
                process.send_signal(waiting[0])
                while not line.startswith("STOPPED"):
                    line = process.stdout.readline()
                    assert line, "".join(lines)
                    lines.append(line)
                assert "is saved at step" in line
                waiting.pop(0)
    assert process.returncode == 0, "".join(lines)
    assert "test/accuracy" in lines[-1]
    assert not waiting
