"""Several processes are one run: the same losses, one log, one end.

Every process is the real command line; they meet on this machine, each with devices of
its own, so that every collective crosses a process boundary.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests import cli
from vit_jax import convert

STEPS = 16
TIMEOUT = 6  # seconds
ARGS = (
    f"--config={cli.EVERYTHING}",
    f"--config.total_steps={STEPS}",
    f"--config.peer_timeout={TIMEOUT}",
    # Why: see OVERRIDES of test_mesh.py.
    "--config.optim.learning_rate=1e-3",
    "--config.optim.eps=1e-6",
    "--config.model.width=64",
    "--config.model.mlp_dim=128",
    "--config.model.depth=1",  # two compile twice as long
)
MIXED = (1, 2, 2)  # fsdp and tensor both cross the boundary of single-device processes


def layout(mesh: tuple[int, int, int]) -> list[str]:
    axes = zip(("data", "fsdp", "tensor"), mesh, strict=True)
    return [f"--config.mesh.{axis}={size}" for axis, size in axes]


def assert_same_curves(workdir: Path, expected: Path, rtol: float) -> None:
    """Each step once, with the same losses and results; 0 is: the same bits."""
    lines, whole = cli.metric_lines(workdir), cli.metric_lines(expected)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    if rtol == 0:
        assert lines == whole
        return
    for line, other in zip(lines, whole, strict=True):
        assert line.keys() == other.keys()
        for name in line:
            if name.endswith(("accuracy", "examples", "epoch", "seen")):
                assert line[name] == other[name], (line["step"], name)
        losses = [name for name in line if name.endswith("loss")]
        np.testing.assert_allclose(
            [line[n] for n in losses], [other[n] for n in losses], rtol=rtol
        )


@pytest.fixture(scope="module")
def of_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process with four devices."""
    workdir = tmp_path_factory.mktemp("one")
    cli.run(*ARGS, *layout(MIXED), f"--workdir={workdir}", devices=4)
    return workdir


@pytest.fixture(scope="module")
def of_several(count: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `count` processes with four devices in all, without a loss."""
    workdir = tmp_path_factory.mktemp(f"of_{count}")
    args = (*ARGS, *layout(MIXED), f"--workdir={workdir}")
    outputs = cli.run_many(count, *args, devices=4 // count)
    assert f"Finished at step {STEPS}" in outputs[0]
    for output in outputs[1:]:  # the first alone tells; Gloo writes lines in pieces
        lines = output.splitlines()
        assert [s for s in lines if not re.search("Gloo|peer rank", s)] == []
    return workdir


# The second axis of the mesh crosses processes; with four of them the third does, too.
in_processes = pytest.mark.parametrize(
    "count", [2, pytest.param(4, marks=pytest.mark.slow)], scope="module"
)


@in_processes
def test_several_processes_are_one_run(of_one: Path, of_several: Path) -> None:
    assert_same_curves(of_several, of_one, rtol=1e-5)
    last = [w / "evals" / f"test-{STEPS}.json" for w in (of_one, of_several)]
    one, other = (json.loads(path.read_text()) for path in last)
    for name in ("confusion", "per_class", "fingerprint", "data"):
        assert one[name] == other[name], name
    names = {path.name for path in of_several.iterdir()} - {".lock"}
    assert names == {
        "checkpoints",
        "config.json",
        "curves.png",
        "evals",
        "labels.json",
        "log.txt",
        "metrics.jsonl",
        "parameters.txt",
        "runs.jsonl",
        "tensorboard",
    }
    assert len(list((of_several / "tensorboard").iterdir())) == 1


@pytest.mark.parametrize(
    "start",
    [
        pytest.param("workdir", marks=pytest.mark.campaign),
        pytest.param("huggingface", marks=pytest.mark.campaign),
    ],
)
def test_weights_and_a_teacher_from_elsewhere(
    start: str, tmp_path: Path, of_one: Path
) -> None:
    """Every process reads them; on two it is the same run as on one."""
    source = of_one
    if start == "huggingface":
        source = tmp_path / "weights"
        command = [str(of_one), str(source), "--to=huggingface"]
        assert convert.main(["convert", *command]) == 0
    flags = (
        *(f"--config.init_from={source}", f"--config.distill.teacher={source}"),
        *("--config.model.distilled=true", "--config.distill.weight=0.3"),
        *("--config.data.image_size=42", "--config.checkpoint.best=none"),
    )
    mesh = layout((2, 2, 1))
    one, two = tmp_path / "one", tmp_path / "two"
    said = cli.run(*ARGS, *mesh, *flags, f"--workdir={one}", devices=4)
    assert "resampled from 4 x 4 to 6 x 6" in said and "starts anew: dist" in said
    cli.run_many(2, *ARGS, *mesh, *flags, f"--workdir={two}", devices=2)
    assert_same_curves(two, one, rtol=1e-5)


@pytest.mark.parametrize(
    "count, mesh",
    [
        pytest.param(2, (4, 1, 1), marks=pytest.mark.slow),
        pytest.param(2, (1, 4, 1), marks=pytest.mark.campaign),
        pytest.param(2, (1, 1, 4), marks=pytest.mark.campaign),
        pytest.param(2, (2, 1, 2), marks=pytest.mark.campaign),
        pytest.param(4, (4, 1, 1), marks=pytest.mark.campaign),
        pytest.param(4, (1, 4, 1), marks=pytest.mark.campaign),
        pytest.param(4, (1, 1, 4), marks=pytest.mark.campaign),
        pytest.param(4, (2, 1, 2), marks=pytest.mark.campaign),
    ],
)
def test_any_layout_is_the_same_run(
    count: int, mesh: tuple[int, int, int], tmp_path: Path, of_one: Path
) -> None:
    """One process on one mesh is `of_one`; test_mesh.py compares meshes."""
    cli.run_many(
        count, *ARGS, *layout(mesh), f"--workdir={tmp_path}", devices=4 // count
    )
    assert_same_curves(tmp_path, of_one, rtol=1e-5)


def interrupt(
    workdir: Path, victim: int, number: signal.Signals, count: int
) -> list[str]:
    """Runs processes and signals one of them in mid-run; the others' outputs."""
    args = (*ARGS, *layout(MIXED), f"--workdir={workdir}")
    processes = cli.start_many(count, *args, devices=4 // count)
    path = workdir / "metrics.jsonl"
    while not (path.exists() and len(path.read_text().splitlines()) >= 8):
        assert all(p.poll() is None for p in processes), cli.ends(processes)
        time.sleep(0.002)
    processes[victim].send_signal(number)
    others = [p for i, p in enumerate(processes) if i != victim]
    codes, outputs = cli.ends(others)
    processes[victim].kill()  # one that was stopped would keep the workdir
    processes[victim].communicate()
    code = processes[victim].returncode
    if number == signal.SIGTERM:
        assert [*codes, code] == [75] * count, outputs
        return outputs
    assert codes == [76] * (count - 1), outputs
    said = {
        signal.SIGKILL: "has ended without a word",
        signal.SIGSTOP: f"no sign of life for {TIMEOUT} s",
    }
    for output in outputs:
        assert "Traceback" not in output
        assert said[number] in output
        assert f"process {victim} (" in output
        assert "since step" in output
    return outputs


@pytest.mark.parametrize(
    "count, victim, number",
    [
        (2, 0, signal.SIGKILL),
        pytest.param(4, 0, signal.SIGKILL, marks=pytest.mark.campaign),
        pytest.param(4, 2, signal.SIGSTOP, marks=pytest.mark.campaign),
        pytest.param(4, 1, signal.SIGKILL, marks=pytest.mark.campaign),
        pytest.param(4, 0, signal.SIGSTOP, marks=pytest.mark.campaign),
    ],
    scope="module",
)
def test_a_lost_process_ends_the_others_and_the_run_goes_on(
    count: int, victim: int, number: signal.Signals, tmp_path: Path, of_several: Path
) -> None:
    interrupt(tmp_path, victim, number, count)
    args = (*ARGS, *layout(MIXED), f"--workdir={tmp_path}")
    cli.run_many(count, *args, devices=4 // count)
    assert_same_curves(tmp_path, of_several, rtol=0)
    cli.assert_same_bits(
        cli.saved_arrays(tmp_path, STEPS), cli.saved_arrays(of_several, STEPS)
    )


@pytest.mark.parametrize(
    "count, after",
    [
        pytest.param(2, 1, marks=pytest.mark.slow),
        pytest.param(4, 2, marks=pytest.mark.campaign),
        pytest.param(4, 4, marks=pytest.mark.campaign),
    ],
    scope="module",
)
def test_a_signal_to_one_saves_all_and_any_number_goes_on(
    count: int, after: int, tmp_path: Path, of_several: Path
) -> None:
    outputs = interrupt(tmp_path, 1, signal.SIGTERM, count)
    step = cli.saved_steps(tmp_path)[-1]
    assert f"is saved at step {step}" in outputs[0]
    assert cli.metric_lines(tmp_path)[-1]["step"] in (step, step - 1)
    args = (*ARGS, *layout(MIXED), f"--workdir={tmp_path}")
    if after == 1:
        cli.run(*args, devices=4)
    else:
        cli.run_many(after, *args, devices=4 // after)
    assert_same_curves(tmp_path, of_several, rtol=0 if after == count else 1e-5)


@pytest.mark.slow
def test_sigusr1_to_one_saves_all_and_they_go_on(tmp_path: Path, of_one: Path) -> None:
    args = (*ARGS, *layout(MIXED), "--config.checkpoint.keep=20")
    processes = cli.start_many(2, *args, f"--workdir={tmp_path}", devices=2)
    path = tmp_path / "metrics.jsonl"
    while not (path.exists() and len(path.read_text().splitlines()) >= 8):
        assert all(p.poll() is None for p in processes), cli.ends(processes)
        time.sleep(0.002)
    processes[1].send_signal(signal.SIGUSR1)
    codes, outputs = cli.ends(processes)
    assert codes == [0, 0], outputs
    assert "SIGUSR1 received" in outputs[1]
    asked = [s for s in cli.saved_steps(tmp_path) if s not in cli.saved_steps(of_one)]
    assert asked
    assert_same_curves(tmp_path, of_one, rtol=1e-5)


def test_bad_input_of_one_process_ends_all_with_one_message(tmp_path: Path) -> None:
    processes = cli.start_many(
        2,
        *ARGS,
        f"--workdir={tmp_path}",
        own=lambda i: ["--config.data.split=trian"] if i == 1 else [],
    )
    codes, outputs = cli.ends(processes)
    assert codes == [2, 2], outputs
    assert 'error: process 1: fashion_mnist_mini has no split "trian"' in outputs[0]
    assert "error" not in outputs[1]
    assert not any("Traceback" in output for output in outputs)


def test_a_signal_before_the_first_step_ends_all_at_once(tmp_path: Path) -> None:
    none = "--config.compilation_cache=none"
    processes = cli.start_many(2, *ARGS, f"--workdir={tmp_path}", none)
    while not (tmp_path / "parameters.txt").exists():
        assert all(p.poll() is None for p in processes), cli.ends(processes)
        time.sleep(0.002)
    processes[1].send_signal(signal.SIGTERM)
    codes, outputs = cli.ends(processes)
    assert codes == [75, 75], outputs
    assert "nothing was saved yet" in outputs[0]


@pytest.mark.slow
@pytest.mark.parametrize("count", [4], scope="module")
def test_a_broken_checkpoint_and_an_evaluation(
    tmp_path: Path, of_several: Path
) -> None:
    """All of two processes take the one before; both have the results of the four."""
    workdir = tmp_path / "copy"
    shutil.copytree(of_several, workdir)
    newest, before = cli.saved_steps(workdir)[::-1][:2]
    for path in sorted((workdir / "checkpoints" / str(newest)).rglob("*")):
        if path.is_file() and path.stat().st_size > 1000:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    args = (*ARGS, *layout(MIXED), f"--workdir={workdir}")
    outputs = cli.run_many(2, *args, devices=2)
    assert f"is broken (step {newest}: " in outputs[0]
    assert f"Goes on from step {before}" in outputs[0]
    assert (workdir / "broken_checkpoints" / f"{newest}.0").is_dir()
    assert_same_curves(workdir, of_several, rtol=1e-5)
    outputs = cli.run_many(2, *args, "--evaluate_only", devices=2)
    results = [x for x in cli.metric_lines(of_several) if cli.BEST in x]
    best = max(results, key=lambda line: line[cli.BEST])["test/accuracy"]
    assert f"test/accuracy: {best}" in outputs[0]
    assert "test/accuracy" not in outputs[1]


def test_rows_that_are_not_contiguous() -> None:
    """As on a pod: each process holds every second part of the global batch."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    script = str(cli.ROOT / "tests" / "scattered_rows.py")
    flags = "--xla_force_host_platform_device_count=2"
    env = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(cli.ROOT)}
    processes = [
        subprocess.Popen([sys.executable, script, address, str(i)], env=env)
        for i in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]


@pytest.mark.slow
def test_an_evaluation_is_the_same_on_any_number_of_processes(
    tmp_path: Path, of_one: Path
) -> None:
    """Of 203 examples in batches of 16; counts are equal, floats to 1e-6."""
    records = []
    for count in (1, 2, 4):
        workdir = tmp_path / str(count)
        outputs = cli.run_many(
            count,
            *ARGS,
            *layout((2, 2, 1)),
            "--config.evals.test.split=test[-203:]",
            "--config.evals.test.batch_size=16",
            f"--config.init_from={of_one}/checkpoints/{STEPS}",
            f"--workdir={workdir}",
            "--evaluate_only",
            "--evals=test",
            devices=4 // count,
        )
        assert "test/accuracy" in outputs[0]
        assert not any("test/accuracy" in output for output in outputs[1:])
        path = workdir / "evals" / f"test-{STEPS}.json"
        records.append(json.loads(path.read_text()))
        assert path.with_name(f"test-{STEPS}-confusion.png").exists()
    one = records[0]
    assert one["results"]["test/examples"] == 203 == np.sum(one["confusion"])
    for record in records[1:]:
        for name in ("confusion", "per_class", "fingerprint", "left_out"):
            assert record[name] == one[name], name
        assert record["calibration"]["examples"] == one["calibration"]["examples"]
        found, expected = record["results"], one["results"]
        for name in ("test/accuracy", "test/top5_accuracy", "test/examples"):
            assert found[name] == expected[name], name
        for name in ("test/loss", "test/calibration_error"):
            assert abs(found[name] - expected[name]) < 1e-6, name


FROZEN = ("--config=tests/recipes/frozen.py", f"--config.peer_timeout={TIMEOUT}")


@pytest.fixture(scope="module")
def frozen_of_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with evaluations of frozen representations, during training and after."""
    workdir = tmp_path_factory.mktemp("frozen")
    cli.run(*FROZEN, *layout((4, 1, 1)), f"--workdir={workdir}", devices=4)
    names = {path.name for path in (workdir / "evals").iterdir()}
    entries = ("few", "nn", "probe")
    assert names == {f"{name}-{step}.json" for name in entries for step in (4, 8)}
    return workdir


@pytest.mark.parametrize(
    "count, mesh",
    [
        pytest.param(2, (4, 1, 1), marks=pytest.mark.slow),
        pytest.param(4, (4, 1, 1), marks=pytest.mark.campaign),
        pytest.param(4, (1, 2, 2), marks=pytest.mark.campaign),
    ],
)
def test_frozen_representations_of_several_processes(
    count: int, mesh: tuple[int, int, int], tmp_path: Path, frozen_of_one: Path
) -> None:
    """The same checkpoint gives the same counts, alone on any number of processes."""
    source = f"--config.init_from={frozen_of_one}/checkpoints/8"
    args = (*FROZEN, *layout(mesh), f"--workdir={tmp_path}", "--evaluate_only", source)
    outputs = cli.run_many(count, *args, devices=4 // count)
    assert not any("few/" in output for output in outputs[1:])
    for name, keys in {
        "few": ("accuracies", "results"),
        "nn": ("accuracies", "results"),
        "probe": ("c", "correct", "results"),
    }.items():
        found, expected = (
            json.loads((workdir / "evals" / f"{name}-8.json").read_text())
            for workdir in (tmp_path, frozen_of_one)
        )
        expected["results"] = {
            k: v for k, v in expected["results"].items() if "/raw/" not in k
        }
        assert [found[key] for key in keys] == [expected[key] for key in keys]
