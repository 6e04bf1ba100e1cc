"""What all commands share: help for every flag, output that cannot fail, mistakes."""

import contextlib
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests import cli
from vit_jax import __main__ as commands
from vit_jax import __version__, flags
from vit_jax.errors import UserError


def command(name: str):
    """The function main(argv) of a command, which takes no program's name if ours."""
    place = f"vit_jax.{name}"
    if name in ("data.prepare", "data.catalog"):
        place += ".__main__"
    if name == "launch.sweep":
        place += ".command"
    return importlib.import_module(place).main


def call(name: str, *argv: str) -> int | str | None:
    """The exit code of a command that runs in this process."""
    try:
        if name.startswith("launch."):
            return flags.run(None, argv, lambda: command(name)(argv))
        return command(name)([name, *argv])
    except SystemExit as end:  # argparse, after its help
        return end.code


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_help_has_a_text_for_every_flag(name: str, capsys, monkeypatch) -> None:
    known: list[str] = []
    add = flags.Parser.add_argument

    def noted(self, *names, **kwargs):
        known.extend(n for n in names if n.startswith("--"))
        return add(self, *names, **kwargs)

    monkeypatch.setattr(flags.Parser, "add_argument", noted)
    assert call(name, "-h") == 0
    text = capsys.readouterr().out
    assert call(name, "--help") == 0
    assert capsys.readouterr().out == text
    assert f"python -m vit_jax.{name}" in text
    call(name, "--nothing_like_it=1")  # so that a flag of ours is made
    capsys.readouterr()
    below = text.partition("\n")[2]
    for flag in known:
        assert re.search(rf"(?<!\S){flag}\b", below), flag
    # Of argparse: a flag without a text stands alone, with nothing below it.
    for alone in re.findall(r"^  (--\w+)[^\n]*\n(?=  --|\n|\Z)", text, re.M):
        assert re.search(rf"^  {alone}.*  \S", text, re.M), alone


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_a_flag_that_there_is_not_is_one_message(name: str, capsys) -> None:
    assert call(name, "--verson=1") == 2
    assert capsys.readouterr().err.startswith("error: --verson=1 is not a flag")
    assert call(name, "--version") == 0
    assert capsys.readouterr().out == f"vit_jax {__version__}\n"


def test_overrides_are_taken_out() -> None:
    argv = ["--config=a.py", "--config.a.b=c=d", "--config.c", "-1", "x"]
    expected = ["--config=a.py", "x"], [("a.b", "c=d"), ("c", "-1")]
    assert flags.split_overrides(argv) == expected
    for wrong in (["--config.a"], ["--config.a", "--config.b=1"]):
        with pytest.raises(UserError, match=r"has no value: give --config\.a=VALUE"):
            flags.split_overrides(wrong)


def test_an_empty_flag_is_an_unset_variable() -> None:
    parser = flags.Parser()
    parser.add_argument("--workdir")
    with pytest.raises(UserError, match="--workdir= is empty"):
        parser.parse(["--workdir="])


def test_a_value_that_argparse_makes_a_list_of() -> None:
    """Of `--flag=--` Python's argparse makes an empty list, whatever the type."""
    for command in ("predict", "convert", "data.prepare", "launch.slurm"):
        assert call(command, "--name=--") == 2
    with pytest.raises(UserError, match=r"--seed=--: -- is no value"):
        flags.check_values(["--x", "--", "--seed=--"])


def run(code: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", code],
        env={**os.environ, "PYTHONPATH": str(cli.ROOT), **environment},
        cwd=cli.ROOT,
        capture_output=True,
    )


def nobody_reads(module: str) -> None:
    done = run(f"{sys.executable} -m {module} --help | true")
    assert done.stderr == b""
    assert done.returncode in (0, 141)


def test_output_that_nobody_reads_is_no_traceback() -> None:
    for module in ("vit_jax", "vit_jax.main", "vit_jax.launch.local"):
        nobody_reads(module)


@pytest.mark.slow
@pytest.mark.parametrize("name", commands.COMMANDS)
def test_output_of_any_command_that_nobody_reads(name: str) -> None:
    nobody_reads(f"vit_jax.{name}")


def test_output_of_another_encoding_is_no_traceback() -> None:
    """What ASCII cannot say is printed as escapes, and so is what is not UTF-8."""
    command = (
        rf"{sys.executable} -m vit_jax.main --config=$'\xff\xc3\xa9.py' --workdir=x"
    )
    for encoding in ("ascii", "utf-8", "latin-1"):
        done = run(command, PYTHONIOENCODING=encoding)
        assert done.returncode == 2
        assert done.stderr.startswith(b"error: --config=\\udcff"), done.stderr
        assert done.stderr.count(b"\n") == 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workdir with a checkpoint, and a picture in it."""
    workdir = tmp_path_factory.mktemp("trained")
    args = ("--config.total_steps=2", "--config.optim.warmup_steps=1")
    cli.call(f"--config={cli.EVERYTHING}", *args, f"--workdir={workdir}")
    picture = np.zeros((28, 28, 3), np.uint8)
    assert cv2.imwrite(f"{workdir}/picture.png", picture)
    return workdir


CONFIG = f"--config={cli.EVERYTHING}"
PREDICT = ["predict", "--checkpoint={trained}", "{trained}/picture.png"]
CONVERT = ["convert", "{trained}", "{trained}/written.npz", "--to=npz"]


@pytest.mark.parametrize(
    "argv",
    [
        ["main", "--print_config", CONFIG],
        ["data.check", CONFIG, "--output={folder}"],
        ["data.catalog"],
        ["launch.gke", "--help"],
        pytest.param(PREDICT, marks=pytest.mark.slow),
        pytest.param([*PREDICT, "--json"], marks=pytest.mark.slow),
        pytest.param(CONVERT, marks=pytest.mark.slow),
        pytest.param(["plan", CONFIG, "--topology=local"], marks=pytest.mark.slow),
        pytest.param(["fsck", "{trained}"], marks=pytest.mark.slow),
    ],
    ids=lambda argv: argv[0],
)
def test_a_full_disk_behind_stdout_is_one_message(
    argv: list[str], request: pytest.FixtureRequest, tmp_path: Path, capsys
) -> None:
    names = {"folder": tmp_path}
    if any("{trained}" in text for text in argv):
        names["trained"] = request.getfixturevalue("trained")
        capsys.readouterr()
    name, *given = (text.format(**names) for text in argv)
    with open("/dev/full", "w") as full, contextlib.redirect_stdout(full):
        assert call(name, *given) == 2
        full.flush()  # as Python does at the end: nothing is left to write
    (message,) = re.findall(r"^error: .*", capsys.readouterr().err, re.M)
    assert message == (
        "error: stdout cannot be written (No space left on device), so the results "
        "are not complete: free space there, or send them elsewhere (> FILE)"
    )
