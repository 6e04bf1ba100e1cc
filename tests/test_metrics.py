"""What the writers leave behind, read by others: json, TensorBoard's own reader."""

import importlib
import io
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from vit_jax import durable, jsonlines, metrics
from vit_jax.errors import UserError

# TensorFlow's own imports warn.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def json_lines(
    path: Path, restored_step: int | None = None, lines: Iterable[int] = ()
) -> jsonlines.JsonLines:
    writer = jsonlines.JsonLines(epath.Path(path), restored_step=restored_step)
    for step in lines:
        writer.write(step, {"loss": step / 3})
    return writer


def steps_in(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_one_sorted_json_line_a_call_with_all_digits(path: Path) -> None:
    numbers = np.random.default_rng(0).normal(size=100).astype(np.float32)
    writer = json_lines(path)
    for step, x in enumerate(numbers):
        writer.write(step, {"b": jnp.asarray(x), "a/b": x, "A": step * 2**40})
    lines = path.read_text().splitlines()
    assert len(lines) == 100
    for step, line in enumerate(lines):
        record = json.loads(line)
        assert list(record) == ["step", "A", "a/b", "b"]
        assert np.float32(record["b"]) == record["a/b"] == numbers[step]
        assert record["step"] == step
        assert record["A"] == step * 2**40


def test_the_same_numbers_make_the_same_line() -> None:
    kinds = [0.1, np.float64(0.1), np.array([[0.1]])]
    assert len({jsonlines.encode(1, {"x": x}) for x in kinds}) == 1
    halves = [0.5, np.float32(0.5), jnp.float32(0.5), jnp.bfloat16(0.5)]
    assert {jsonlines.encode(1, {"x": x}) for x in halves} == {'{"step": 1, "x": 0.5}'}
    ones = [1, np.int32(1), jnp.int32(1), np.True_, np.uint8(1)]
    assert {jsonlines.encode(1, {"x": x}) for x in ones} == {'{"step": 1, "x": 1}'}


def test_what_is_not_finite_is_still_json(path: Path) -> None:
    values = {"a": np.nan, "b": np.inf, "c": jnp.float32(-jnp.inf)}
    json_lines(path).write(1, values)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    record = json.loads(path.read_text(), parse_constant=refuse)
    read = [float(record[name]) for name in values]
    np.testing.assert_array_equal(read, [float(x) for x in values.values()])


def test_arrays_are_no_scalars(path: Path) -> None:
    with pytest.raises(ValueError, match="expected a scalar"):
        json_lines(path).write(1, {"x": np.zeros(2)})


def test_lines_are_in_the_file_before_any_flush(path: Path) -> None:
    """So that SIGKILL loses none."""
    _ = json_lines(path, lines=(1, 2))
    assert steps_in(path) == [1, 2]


def test_flush_reaches_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = json_lines(path, lines=(1,))
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    writer.flush()
    assert synced == [path.stat().st_ino]
    synced.clear()
    json_lines(path, 1)
    assert synced == [path.stat().st_ino, path.parent.stat().st_ino]


@pytest.mark.parametrize(
    "torn", ["", '{"step": 3, "lo', '{"step": 2}', "\0\0\0\0", "[1]\n", '{"a": 1}\n']
)
@pytest.mark.parametrize("restored_step", [0, 2, 9])
def test_resuming_drops_later_and_torn_lines(
    path: Path, restored_step: int, torn: str
) -> None:
    json_lines(path, lines=(1, 2, 3)).close()
    whole = path.read_text().splitlines()
    path.write_text(path.read_text() + torn)
    writer = json_lines(path, restored_step)
    kept = [step for step in (1, 2, 3) if step <= restored_step]
    assert path.read_text().splitlines() == whole[: len(kept)]
    writer.write(restored_step + 1, {})
    assert steps_in(path) == [*kept, restored_step + 1]


def test_a_run_from_scratch_starts_an_empty_file(path: Path) -> None:
    json_lines(path, lines=(1, 2)).close()
    json_lines(path, None, lines=(1,)).close()
    assert steps_in(path) == [1]


def test_a_kill_while_resuming_loses_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    json_lines(path, lines=(1, 2, 3)).close()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        json_lines(path, 1)
    assert steps_in(path) == [1, 2, 3]
    monkeypatch.undo()
    json_lines(path, 2).close()
    assert steps_in(path) == [1, 2]
    assert [p.name for p in path.parent.iterdir()] == ["metrics.jsonl"]


def test_in_an_object_store_flush_writes_the_whole_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "is_remote", lambda path: True)
    writer = json_lines(path, lines=(1, 2))
    assert steps_in(path) == []
    writer.flush()
    assert steps_in(path) == [1, 2]
    writer = json_lines(path, 1, lines=(2, 3))
    assert steps_in(path) == [1]
    writer.close()
    assert steps_in(path) == [1, 2, 3]


@pytest.mark.parametrize(
    ("path", "remote"), [("gs://a/b", True), ("s3://a", True), ("/a/b", False)]
)
def test_what_an_object_store_is(path: str, remote: bool) -> None:
    assert durable.is_remote(epath.Path(path)) == remote


LIMITED = """
import pathlib, resource, sys
from vit_jax import jsonlines, metrics
from vit_jax.errors import UserError
from etils import epath

workdir = epath.Path(sys.argv[1])

def limit(size):
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

def told(act):
    try:
        act()
    except UserError as error:
        print(error)
    else:
        print("no error")
"""


def limited(code: str, path: Path) -> list[str]:
    """The lines of a process of its own, whose files may not grow; none to stderr."""
    command = [sys.executable, "-c", LIMITED + textwrap.dedent(code), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_a_file_that_cannot_grow_is_a_user_error(tmp_path: Path) -> None:
    code = """
        limit(1000)
        path = workdir / "metrics.jsonl"
        writer = jsonlines.JsonLines(path, restored_step=None)
        for step in range(20):
            writer.write(step, {"loss": 1.0})
        told(lambda: writer.write(20, {"long " * 200: 1.0}))
    """
    (line,) = limited(code, tmp_path)
    assert re.search(r"Cannot write .*metrics.jsonl: File too l", line)


def test_a_workdir_that_cannot_be_made_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"Cannot write .*file"):
        make(tmp_path / "file" / "workdir")


# The logger. -----------------------------------------------------------------------


def make(
    workdir: Path, restored_step: int | None = None, progress: bool | None = False
) -> metrics.MetricLogger:
    return metrics.MetricLogger(
        workdir, restored_step=restored_step, total_steps=1000, progress=progress
    )


TRAIN = {
    "loss": np.float32(1.25),
    "learning_rate": jnp.float32(1e-3),
    "grad_norm": 0.7,
    "timing/images_per_s": 1234.2,
    "timing/eta_s": 62.4,
}


def test_everything_reaches_the_file_and_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing import event_accumulator

    logger = make(tmp_path)
    logger.write(100, TRAIN)
    logger.write_config(0, {"seed": 0, "optim": {"learning_rate": 0.25}})
    picture_of = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    logger.write_images(100, {"test/confusion": picture_of})
    logger.flush()
    assert steps_in(tmp_path / "metrics.jsonl") == [100]
    results = {"test/accuracy": 0.5, "test/examples": 2000}
    logger.write(200, {**TRAIN, "loss": 1.0} | results, shown={"loss": 2.0})
    logger.close()
    logger.close()

    logger = make(tmp_path, restored_step=200)
    logger.write(300, TRAIN)
    logger.close()
    assert steps_in(tmp_path / "metrics.jsonl") == [100, 200, 300]

    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    curves = {*TRAIN, "test/accuracy"} - {"timing/eta_s"}
    assert set(events.Tags()["scalars"]) == curves
    hparams_tag = "_hparams_/session_start_info"
    assert set(events.Tags()["tensors"]) == {"config", hparams_tag}
    (picture,) = events.Images("test/confusion")
    assert (picture.step, picture.width, picture.height) == (100, 8, 8)
    png = np.frombuffer(picture.encoded_image_string, np.uint8)
    read_back = np.asarray(cv2.imdecode(png, cv2.IMREAD_COLOR))
    np.testing.assert_array_equal(read_back[..., ::-1], picture_of)
    (text,) = events.Tensors("config")[0].tensor_proto.string_val
    assert b'"learning_rate": 0.25' in text
    plugin_data_pb2: Any = importlib.import_module(
        "tensorboard.plugins.hparams.plugin_data_pb2"
    )
    content = events.SummaryMetadata(hparams_tag).plugin_data.content
    data = plugin_data_pb2.HParamsPluginData.FromString(content)
    hparams = data.session_start_info.hparams
    assert hparams["optim.learning_rate"].number_value == 0.25

    def read(tag: str) -> dict[int, float]:
        return {event.step: event.value for event in events.Scalars(tag)}

    assert read("loss") == {100: 1.25, 200: 1.0, 300: 1.25}
    assert read("test/accuracy") == {200: 0.5}


def test_tensorboard_files_that_cannot_grow_are_a_user_error(tmp_path: Path) -> None:
    code = """
        logger = metrics.MetricLogger(
            workdir, restored_step=None, total_steps=9, progress=False
        )
        logger.flush()
        folder = pathlib.Path(workdir) / "tensorboard"
        limit(max(p.stat().st_size for p in folder.iterdir()) + 100)

        def write():
            logger.write_texts(1, {"config": "x" * 1000})  # may fail already
            logger.flush()

        told(write)
        told(logger.close)
    """
    for line in limited(code, tmp_path):
        assert re.search(r"Cannot write TensorBoard's files: File too large", line)


def test_only_process_0_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    logger = make(tmp_path / "workdir")
    logger.write(1, TRAIN)
    logger.write_texts(1, {"a": "b"})
    logger.print("hello")
    logger.flush()
    logger.close()
    metrics.print_summary(step=1, results={}, seconds=1, places={}, next_command="")
    assert not (tmp_path / "workdir").exists()
    assert capsys.readouterr() == ("", "")


def test_it_does_not_import_tensorflow(tmp_path: Path) -> None:
    """Which takes seconds and hundreds of megabytes in every run."""
    code = (
        "import sys\nfrom vit_jax import metrics\n"
        f"x = metrics.MetricLogger({str(tmp_path)!r}, restored_step=0, total_steps=1)\n"
        "x.write(1, {'loss': 1.0}); x.write_config(1, {'seed': 0}); x.close()\n"
        "print('tensorflow' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stderr == "False\n"


# The console. ----------------------------------------------------------------------


def test_the_console_shows_what_it_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file has the numbers of the step itself."""
    logger = make(tmp_path)
    shown = {"train/loss": 0.75, "train/accuracy": 0.125}
    logger.write(1, {"train/loss": 1.0, "train/accuracy": 0.0}, shown=shown)
    logger.write(2, {"test/accuracy": 0.5}, shown=shown)
    logger.close()
    assert capsys.readouterr().out.splitlines() == [
        "step 1/1000 (0%) loss 0.7500 accuracy 0.1250",
        "step 2/1000 (0%) test: accuracy 0.5000",
    ]
    line = (tmp_path / "metrics.jsonl").read_text().splitlines()[0]
    assert json.loads(line) == {"step": 1, "train/accuracy": 0.0, "train/loss": 1.0}


def console(*, progress: bool) -> metrics.Console:
    return metrics.Console(total_steps=1000, start_step=50, progress=progress)


def test_plain_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = {name: jsonlines.as_number(x) for name, x in TRAIN.items()}
    c = console(progress=False)
    c.write(100, {**numbers, "test/accuracy": 0.91, "test/examples": 2000})
    c.write(110, {"val/loss": 0.5})
    c.print("saved")
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "step 100/1000 (10%) loss 1.2500 lr 1.00e-03 1,234 img/s eta 0:01:02",
        "step 100/1000 (10%) test: accuracy 0.9100 examples 2,000",
        "step 110/1000 (11%) val: loss 0.5000",
        "saved",
    ]
    assert err == ""


def test_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = {name: jsonlines.as_number(x) for name, x in TRAIN.items()}
    c = console(progress=True)
    c.write(100, {**numbers, "test/accuracy": 0.91})
    c.close()
    out, err = capsys.readouterr()
    assert out.strip() == "step 100/1000 (10%) test: accuracy 0.9100"
    assert "100/1000, loss 1.2500 lr 1.00e-03 1,234 img/s eta 0:01:02" in err


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_terminal_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(stderr, "isatty", lambda: is_terminal)
    monkeypatch.setattr(sys, "stderr", stderr)
    logger = make(tmp_path, progress=None)
    logger.write(10, {"loss": 1.0})
    logger.close()
    assert ("10/1000" in stderr.getvalue()) == is_terminal


def test_parameter_overview_takes_shapes_and_arrays() -> None:
    params = {"head": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}}
    table = metrics.parameter_overview(params)
    assert "head/kernel" in table
    assert "(2, 3)" in table
    assert "Total: 9" in table
    assert metrics.parameter_overview(jax.eval_shape(lambda: params)) == table


def test_shots_are_in_the_order_of_their_numbers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On the console and in the last words; one width for all shares."""
    shots = {f"{k}shot": k / 40 for k in (10, 1, 25, 5)}
    in_order = "1shot 0.0250 5shot 0.1250 10shot 0.2500 25shot 0.6250"
    console(progress=False).write(100, {f"few/{k}": v for k, v in shots.items()})
    metrics.print_summary(
        step=1, results={"few": shots}, seconds=1, places={}, next_command=""
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"step 100/1000 (10%) few: {in_order}"
    assert lines[2] == f"  few       {in_order}"
