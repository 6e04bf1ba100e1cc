"""What training keeps, where it starts from and how it ends, by the command line."""

import fcntl
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import cli, once
from vit_jax import data, distributed, initial
from vit_jax.checkpoints import adapt

NAMES = (
    "train/loss",
    "train/learning_rate",
    "train/grad_norm",
    "train/update_norm",
    "train/param_norm",
    "train/examples_seen",
    "train/epoch",
    "timing/images_per_s",
    "timing/images_per_s_per_device",
    "timing/step_s",
    "timing/data_wait_share",
    "timing/eta_s",
    "test/accuracy",
    "test/raw/accuracy",
    "test/loss",
    "test/examples",
)
ARGS = (f"--config={cli.EVERYTHING}",)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once.copied(tmp_path_factory, "finished", finish)


def finish(workdir: Path) -> None:
    relative = os.path.relpath(workdir, cli.ROOT)  # as users give it
    output = cli.run(
        *ARGS, f"--workdir={relative}", "--config.checkpoint.keep_period=14"
    )
    assert "Finished at step 30" in output
    assert "tensorboard --logdir" in output
    for name, place in (
        ("curves", "curves.png"),
        ("test/confusion", "evals/test-30-confusion.png"),
        ("test/mistakes", "evals/test-30-mistakes.png"),
    ):
        (line,) = re.findall(rf"^  {name} +(.+)$", output, re.MULTILINE)
        assert line == f"{workdir}/{place}"
        assert (workdir / place).read_bytes().startswith(b"\x89PNG")


def test_what_a_workdir_holds(finished: Path) -> None:
    lines = cli.metric_lines(finished, timing=True)
    last = lines[-1]
    for name in NAMES:
        assert name in last, name
    assert last["train/examples_seen"] == 30 * 16
    assert last["train/epoch"] == 30 * 16 / 8000
    assert last["test/examples"] == 200
    assert "Total: " in (finished / "parameters.txt").read_text()
    assert json.loads((finished / "config.json").read_text())["optim"]["b1"] is None
    assert any((finished / "tensorboard").iterdir())


def test_what_is_kept(finished: Path) -> None:
    """The newest two, each 14th, and the best, which ties leave where it was."""
    results = {
        line["step"]: line[cli.BEST]
        for line in cli.metric_lines(finished)
        if cli.BEST in line
    }
    best = max(results, key=lambda step: (results[step], -step))
    assert list(results) == [10, 20, 30]
    saved_for_best = {s for s in results if results[s] > max(
        (results[t] for t in results if t < s), default=-1)}  # fmt: skip
    newest = sorted(saved_for_best | {7, 14, 21, 28, 30})[-2:]
    assert cli.saved_steps(finished) == sorted({14, 28, best, *newest})
    position = finished / "checkpoints" / "30" / "position" / "metadata"
    assert json.loads(position.read_text())["best_step"] == best


def test_a_finished_run_is_left_alone(finished: Path) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    output = cli.run(
        *ARGS, f"--workdir={finished}", "--config.checkpoint.keep_period=14"
    )
    assert "Finished at step 30" in output
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_evaluate_only(finished: Path, tmp_path: Path) -> None:
    """Of the best step, by itself and from another workdir; the averaged weights."""
    results = [line for line in cli.metric_lines(finished) if cli.BEST in line]
    best = max(results, key=lambda line: line[cli.BEST])["test/accuracy"]
    assert best != results[-1]["test/accuracy"]
    own = cli.call(*ARGS, f"--workdir={finished}", "--evaluate_only")
    assert f"test/accuracy: {best}" in own
    other = cli.call(
        *ARGS,
        f"--workdir={tmp_path}",
        "--evaluate_only",
        f"--config.init_from={os.path.relpath(finished, cli.ROOT)}/checkpoints/30",
    )
    assert f"test/accuracy: {results[-1]['test/accuracy']}" in other
    record = json.loads((tmp_path / "evals" / "test-30.json").read_text())
    assert record["results"]["test/accuracy"] == results[-1]["test/accuracy"]
    trained = json.loads((finished / "evals" / "test-30.json").read_text())
    assert trained["results"]["test/accuracy"] == results[-1]["test/accuracy"]
    assert trained["fingerprint"] == record["fingerprint"]
    assert trained["data"]["split"] == "test[:10%]"
    cli.call(*ARGS, f"--workdir={tmp_path}/empty", "--evaluate_only", expect=2)


def test_hosts_that_see_other_checkpoints(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that is still being copied to one of them, say."""

    def with_another(text: str, **_: Any) -> list[str]:
        return [text, text.replace("30", "28")]

    monkeypatch.setattr(distributed, "gather", with_another)
    weights = f"--config.init_from={finished}/checkpoints/30"
    workdir = f"--workdir={tmp_path}"
    output = cli.call(*ARGS, workdir, weights, "--evaluate_only", expect=2)
    assert "the processes do not see the same weights" in output
    assert f"process 0: {finished}/checkpoints/30\n" in output
    assert f"process 1: {finished}/checkpoints/28" in output
    source = adapt.Weights(
        arrays={}, model={}, image_size=(1, 1), normalization=None, said=("step 30",)
    )
    monkeypatch.setattr(initial, "read_init_from", lambda *_: source)
    output = cli.call(*ARGS, workdir, weights, expect=2)
    assert f"see the same weights in {finished}/checkpoints/30" in output
    assert "process 1: step 28" in output


SEVERAL = """

def get_config(one=get_config):
    config = one()
    config.evals["half"] = {
        "split": "test[:50%]", "batch_size": 32, "classes": tuple(range(10))
    }
    config.evals["c"] = {
        "type": "corruptions",
        "split": "test[{severity}0%:]",
        "corruptions": ("mini",),
        "severities": (2, 9),
        "relative_to_alexnet": False,
        "data": {"name": "fashion_mnist_{corruption}"},
    }
    return config
"""


def test_some_of_several_evaluations(finished: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "several.py"
    recipe.write_text((cli.ROOT / cli.EVERYTHING).read_text() + SEVERAL)
    args = (f"--config={recipe}", f"--workdir={tmp_path}")
    checkpoint = f"--config.init_from={finished}/checkpoints/30"
    output = cli.call(
        *args,
        checkpoint,
        "--evaluate_only",
        "--evals=half,c",
        "--config.evals.half.split=test[:10%]",
    )
    assert "test/accuracy" not in output
    paths = set((tmp_path / "evals").iterdir())
    names = ("half-30.json", "half-30-confusion.png", "half-30-mistakes.png")
    assert paths == {tmp_path / "evals" / name for name in (*names, "c-30.json")}
    assert all(f"written to {path}\n" in output for path in paths)
    half = json.loads((tmp_path / "evals" / "half-30.json").read_text())
    trained = json.loads((finished / "evals" / "test-30.json").read_text())
    assert half["checkpoint"] == f"{finished}/checkpoints/30"
    for name in ("accuracy", "top5_accuracy", "examples"):
        assert half["results"][f"half/{name}"] == trained["results"][f"test/{name}"]
    assert half["confusion"] == trained["confusion"]
    c = json.loads((tmp_path / "evals" / "c-30.json").read_text())
    assert c["results"]["c/examples"] == 1600 + 200
    assert c["results"]["c/mean_error"] == np.mean(c["errors"]["mini"])
    output = cli.call(*args, "--evaluate_only", "--evals=hlf", expect=2)
    assert 'config.evals has no "hlf"; did you mean "half"' in output
    output = cli.call(*args, "--evals=half", expect=2)
    assert "--evals goes with --evaluate_only" in output


def test_init_from_takes_the_weights_only(finished: Path, tmp_path: Path) -> None:
    source = f"--config.init_from={finished}/checkpoints/30"
    workdir = f"--workdir={tmp_path}"
    still = "--config.optim.learning_rate=0", "--config.total_steps=6"
    cli.run(*ARGS, workdir, source, *still)
    new, old = cli.saved_arrays(tmp_path, 6), cli.saved_arrays(finished, 30)
    for name in new:
        if name.startswith("params"):
            np.testing.assert_array_equal(new[name], old["ema_" + name])
    assert new["rest['step']"] == 6


def test_resume_takes_the_whole_state(finished: Path, tmp_path: Path) -> None:
    """From step 14 in another workdir it is the run that was not interrupted."""
    source = tmp_path / "a" / "checkpoints"
    shutil.copytree(finished / "checkpoints" / "14", source / "14")
    shutil.copy(finished / "config.json", source.parent)
    cli.run(*ARGS, f"--workdir={tmp_path}/b", f"--config.resume={tmp_path}/a")
    lines = cli.metric_lines(finished)
    assert cli.metric_lines(tmp_path / "b") == lines[14:] and len(lines) == 30
    cli.assert_same_bits(
        cli.saved_arrays(tmp_path / "b", 30), cli.saved_arrays(finished, 30)
    )


def test_a_broken_newest_checkpoint_falls_back(finished: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "copy"
    shutil.copytree(finished, workdir)
    newest, before = cli.saved_steps(workdir)[::-1][:2]
    for path in sorted((workdir / "checkpoints" / str(newest)).rglob("*")):
        if path.is_file() and path.stat().st_size > 1000:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    output = cli.run(*ARGS, f"--workdir={workdir}")
    assert f"is broken (step {newest}: " in output
    assert f"Goes on from step {before}" in output
    assert (workdir / "broken_checkpoints" / f"{newest}.0").is_dir()
    repaired, whole = cli.saved_arrays(workdir, 30), cli.saved_arrays(finished, 30)
    cli.assert_same_bits(repaired, whole)
    assert cli.metric_lines(workdir) == cli.metric_lines(finished)


def test_a_non_finite_loss_stops_the_run(tmp_path: Path) -> None:
    args = (
        f"--config={cli.EVERYTHING}",
        f"--workdir={tmp_path}",
        "--config.optim.name=sgd",
        "--config.optim.learning_rate=1e9",
        "--config.optim.warmup_steps=12",
        "--config.optim.clip_norm=none",
    )
    output = cli.run(*args, expect=70)
    assert "Traceback" not in output
    assert "error: step" in output
    last = cli.saved_steps(tmp_path)[-1:]
    for step in last:  # what was saved is finite
        for name, array in cli.saved_arrays(tmp_path, step).items():
            assert np.isfinite(array).all(), name


def test_an_evaluation_that_is_not_finite(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one, and one alone: the pixels of this one overflow in the model."""
    monkeypatch.setattr(data, "_MIN_STD", 0)  # such a std is refused
    workdir = tmp_path / "run"
    args = (f"--config={cli.EVERYTHING}", f"--workdir={workdir}")
    overflow = "--config.evals.test.data.std=1e-38,1e-38,1e-38"
    output = cli.call(*args, overflow, "--config.total_steps=9", expect=70)
    assert "Finished" not in output and "Traceback" not in output
    assert "error: step 9: config.evals.test: the loss of 200 examples is nan" in output
    assert f"{workdir} is saved at step 7" in output
    assert cli.metric_lines(workdir)[-1]["step"] == 9
    assert cli.saved_steps(workdir) == [7]
    args = (f"--config={cli.EVERYTHING}", f"--workdir={finished}", "--evaluate_only")
    output = cli.call(*args, overflow, expect=70)
    assert "error: config.evals.test: the loss of 200 examples is nan" in output


def test_profile_writes_a_trace(tmp_path: Path) -> None:
    cli.run(*ARGS, f"--workdir={tmp_path}", "--config.profile=5,7")
    assert list(tmp_path.glob("tensorboard/plugins/profile/*/*.xplane.pb"))


def test_one_process_a_workdir(tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        output = cli.call(*ARGS, f"--workdir={tmp_path}", expect=2)
    assert "is in use by " in output


@pytest.mark.parametrize(
    "override, message",
    [
        ("--config.total_steps=12", "is at step 30, past the 12"),
        ("--config.batch_size=32", "batch_size 16"),
        ("--config.seed=4", "seed 3"),
        ("--config.data.split=train[:50%]", "some examples twice"),
        ("--config.checkpoint.best=test/acuracy", 'did you mean "test/accuracy"'),
    ],
)
def test_configs_that_cannot_go_on(finished: Path, override: str, message: str) -> None:
    before = (finished / "config.json").read_bytes()
    output = cli.call(*ARGS, f"--workdir={finished}", override, expect=2)
    assert message in output
    assert (finished / "config.json").read_bytes() == before


@pytest.mark.slow
def test_signals_to_the_whole_group_with_workers(tmp_path: Path) -> None:
    """As a batch system sends them: to the workers of the input pipeline too."""
    args = (f"--config={cli.EVERYTHING}", f"--workdir={tmp_path}")
    process = cli.start(
        *args, "--config.data.num_workers=1", "--config.total_steps=4000", group=True
    )
    path = tmp_path / "metrics.jsonl"
    while process.poll() is None and not (
        path.exists() and len(path.read_text().splitlines()) > 8
    ):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=120)  # all that hold its pipe have ended
    assert process.returncode == 75, output
    assert "Traceback" not in output
    newest, last = cli.saved_steps(tmp_path)[-1], cli.metric_lines(tmp_path)[-1]["step"]
    assert newest in (last, last + 1)  # one more if its evaluation is owed
