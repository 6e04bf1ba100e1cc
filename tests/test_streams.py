"""A run whose output cannot be written goes on, and ends with its own exit code."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import cli
from vit_jax import main

ARGS = (
    f"--config={cli.EVERYTHING}",
    "--config.total_steps=3",
    "--config.optim.warmup_steps=1",
)


@pytest.mark.parametrize(
    "where, override, code",
    [
        ("full", "--config.seed=3", 0),
        pytest.param("no reader", "--config.seed=3", 0, marks=pytest.mark.slow),
        pytest.param("closed", "--config.seed=3", 0, marks=pytest.mark.slow),
        ("full", "--config.seed=x", 2),
        ("no reader", "--config.seed=x", 2),
        ("closed", "--config.seed=x", 2),
    ],
)
def test_output_that_cannot_be_written(
    where: str, override: str, code: int, tmp_path: Path
) -> None:
    """Both streams at once, in this process."""
    stream = unwritable(where)
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        assert main.main(["main", *ARGS, f"--workdir={tmp_path}", override]) == code
        if stream is not None:
            stream.flush()  # as Python does at the end
            stream.close()
    if code == 0:
        assert [line["step"] for line in cli.metric_lines(tmp_path)] == [1, 2, 3]
        assert cli.saved_steps(tmp_path) == [3]


def unwritable(where: str):
    """A stream as the interpreter makes it."""
    if where == "closed":
        return None
    if where == "full":
        return open("/dev/full", "w", buffering=1)
    reading, writing = os.pipe()
    os.close(reading)
    return open(writing, "w", buffering=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "redirection", ["| head -n 1", ">&- 2>&-", "> /dev/full 2> /dev/full", "2>&1 | :"]
)
def test_in_a_shell(redirection: str, tmp_path: Path) -> None:
    python = f"{sys.executable} -m vit_jax.main {' '.join(ARGS)}"
    script = f"set -o pipefail; {python} --workdir={tmp_path} {redirection}"
    environment = os.environ | {"PYTHONPATH": str(cli.ROOT)}
    assert subprocess.run(["bash", "-c", script], env=environment).returncode == 0
    assert [line["step"] for line in cli.metric_lines(tmp_path)] == [1, 2, 3]
    assert cli.saved_steps(tmp_path) == [3]
