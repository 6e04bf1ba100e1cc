"""A run over data some of which is bad: counted, told once, exact on resume."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import cli
from vit_jax.data import sampler

TRAIN, TEST = 40, 21
BAD_TRAIN, BAD_TEST = (3, 17, 29), (0, 20)
STEPS, BATCH, SEED, REPEATS = 12, 16, 3, 2


@pytest.fixture(scope="module")
def args(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A folder of two classes, some of whose files are cut short or empty."""
    root = tmp_path_factory.mktemp("folder")
    random = np.random.default_rng(0)
    for split, count, bad in (("train", TRAIN, BAD_TRAIN), ("test", TEST, BAD_TEST)):
        for i in range(count):  # in the order of records
            path = root / split / ("a" if i < count // 2 else "b") / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 256, (28, 28, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
            if i in bad:
                path.write_bytes(path.read_bytes()[: 500 * (i % 2)])
    flags = {
        "data.name": "folder",
        "data.data_dir": str(root),
        "data.on_bad_example": "skip",
        "evals.test.split": "test",
        "evals.test.batch_size": "8",
        "total_steps": str(STEPS),
        "checkpoint.every": "2",
        "checkpoint.best": "test/accuracy",  # of two classes there is no top 5
    }
    return [
        f"--config={cli.EVERYTHING}",
        *(f"--config.{k}={v}" for k, v in flags.items()),
    ]


@pytest.fixture(scope="module")
def whole(args: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("whole")
    output = cli.run(*args, f"--workdir={workdir}")
    for line in told(workdir):
        assert f"left out in step {line['step']}: {line['why']}" in output
    assert "left out by evaluation test: " in output
    return workdir


def told(workdir: Path) -> list[dict]:
    text = (workdir / "bad_examples.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_what_is_counted_and_told(whole: Path) -> None:
    numbers = np.arange(STEPS * BATCH)
    records = sampler.record_numbers(numbers, TRAIN, seed=SEED, repeats=REPEATS)
    bad = np.isin(records, BAD_TRAIN)
    counts = bad.reshape(STEPS, BATCH).sum(axis=1).cumsum()
    assert 0 < counts[3] < counts[-1]
    lines = cli.metric_lines(whole)
    assert [line["train/bad_examples"] for line in lines] == counts.tolist()
    assert lines[-1]["train/examples_seen"] == STEPS * BATCH - counts[-1]
    assert [line["example"] for line in told(whole)] == np.flatnonzero(bad).tolist()
    for line in told(whole):
        assert line["step"] == 1 + line["example"] // BATCH
        assert f"/{records[line['example']]:02}.png cannot be decoded" in line["why"]
    arrays = cli.saved_arrays(whole, STEPS)
    (count,) = (v for k, v in arrays.items() if "bad_examples" in k)
    assert count == counts[-1]
    # 21 images in three batches of 8: what is padded is neither used nor bad.
    assert lines[-1]["test/examples"] == TEST - len(BAD_TEST)
    assert lines[-1]["test/bad_examples"] == len(BAD_TEST)


@pytest.mark.slow
def test_too_many_end_the_run_and_a_higher_limit_lets_it_go_on(
    args: list[str], whole: Path, tmp_path: Path
) -> None:
    """It goes on from before the last of them, and ends as if there were no limit."""
    counts = [line["train/bad_examples"] for line in cli.metric_lines(whole)]
    limit = counts[STEPS // 2]
    step = 1 + next(i for i, count in enumerate(counts) if count > limit)
    args = [*args, f"--workdir={tmp_path}"]
    output = cli.run(*args, f"--config.data.max_bad_examples={limit}", expect=2)
    assert "Traceback" not in output
    message = f"error: {counts[step - 1]} of {step * BATCH} examples of "
    assert message in output and f", but {limit} are allowed. Repair" in output
    assert len(told(tmp_path)) >= counts[step - 1]
    assert 0 < cli.saved_steps(tmp_path)[-1] < step
    cli.run(*args)
    assert_same(tmp_path, whole)


def assert_same(workdir: Path, whole: Path) -> None:
    assert cli.metric_lines(workdir) == cli.metric_lines(whole)
    assert told(workdir) == told(whole)
    cli.assert_same_bits(
        cli.saved_arrays(workdir, STEPS), cli.saved_arrays(whole, STEPS)
    )


@pytest.mark.slow
def test_a_killed_run_tells_each_once(
    args: list[str], whole: Path, tmp_path: Path
) -> None:
    args = [*args, f"--workdir={tmp_path}"]

    def late(_: float) -> bool:
        path = tmp_path / "metrics.jsonl"
        return path.exists() and len(path.read_text().splitlines()) >= 7

    code, output = cli.run_and_signal(late, signal.SIGKILL, *args)
    assert code == -signal.SIGKILL, output
    cli.run(*args)
    assert_same(tmp_path, whole)


@pytest.mark.slow
def test_two_processes_leave_out_the_same(
    args: list[str], whole: Path, tmp_path: Path
) -> None:
    """Each reads half of the rows; the first tells what both have found."""
    more = ["--config.mesh.data=2", "--config.data.num_workers=1"]
    outputs = cli.run_many(2, *args, *more, f"--workdir={tmp_path}/run")
    assert "left out" in outputs[0] and "left out" not in outputs[1]
    assert told(tmp_path / "run") == told(whole)
    lines, expected = cli.metric_lines(tmp_path / "run"), cli.metric_lines(whole)
    for line, other in zip(lines, expected, strict=True):
        for name in line:
            if name.endswith(("examples", "seen", "epoch")):
                assert line[name] == other[name], name
            if name.endswith("loss"):
                np.testing.assert_allclose(line[name], other[name], rtol=1e-5)
    limit = ["--config.data.max_bad_examples=2", f"--workdir={tmp_path}/limit"]
    codes, outputs = cli.ends(cli.start_many(2, *args, *more, *limit))
    assert codes == [2, 2], outputs
    assert "but 2 are allowed" in outputs[0] and "error" not in outputs[1]


@pytest.mark.slow
def test_one_that_is_met_late_ends_the_run_where_it_can_go_on(tmp_path: Path) -> None:
    """It is repaired, skipped, or taken away; what is said of each comes true."""
    count, met_at = 120, 5
    order = sampler.record_numbers(np.arange(met_at * BATCH), count, seed=SEED)
    checked = sampler.record_numbers(np.arange(BATCH), count, seed=0)
    record = next(r for r in order[-BATCH:] if r not in checked)
    data_dir, workdir = tmp_path / "data", tmp_path / "run"
    for split, n in (("train", count), ("test", 4)):
        for i in range(n):
            path = data_dir / split / "ab"[i % 2] / f"{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (28, 28), (i, 99, 200 * (i % 2))).save(path)
    train = sorted((data_dir / "train").rglob("*.png"))
    train[record].write_bytes(b"broken")
    args = [
        *(f"--config={cli.EVERYTHING}", f"--workdir={workdir}"),
        *("--config.data.name=folder", f"--config.data.data_dir={data_dir}"),
        *("--config.data.train.repeats=1", "--config.evals.test.split=test"),
        *("--config.total_steps=8", "--config.checkpoint.every=2"),
        "--config.checkpoint.best=test/accuracy",
    ]
    output = cli.run(*args, expect=2)
    assert f"{train[record]} cannot be decoded: 6 bytes" in output
    assert "--config.data.on_bad_example=skip" in output and "remove" not in output
    saved = cli.saved_steps(workdir)[-1]
    assert 0 < saved < met_at
    assert f"{workdir} is saved at step {saved}; the same command goes on" in output
    shutil.copytree(workdir, tmp_path / "copy")
    cli.run(*args, "--config.data.on_bad_example=skip")
    (left_out,) = told(workdir)
    assert left_out["step"] == met_at

    train[record].unlink()
    args[1] = f"--workdir={tmp_path}/copy"
    output = cli.run(*args, expect=2)
    assert "The training data is not what it was" in output
    allowed = "--config.checkpoint.allow_changed_data=true"
    assert allowed in output
    assert "seed 4" in cli.run(*args, allowed, "--config.seed=4", expect=2)
    output = cli.run(*args, allowed)
    assert f"training data has changed since step {saved}" in output
    lines = cli.metric_lines(tmp_path / "copy")
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert lines[-1]["train/examples_seen"] == 8 * BATCH
    cli.run(*args, "--config.total_steps=9")  # by now these are its data
