"""What the README and docs/launching.md say can be typed."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests import cli

PAGES = ("README.md", "docs/launching.md")
COMMANDS = [
    line
    for page in PAGES
    for block in re.findall(r"```bash\n(.*?)```", (cli.ROOT / page).read_text(), re.S)
    for line in block.replace("\\\n", " ").splitlines()
    if re.match(r"python -m vit_jax\.launch\.[a-z]", line)
]


def test_commands_are_found() -> None:
    assert len(COMMANDS) >= 4


@pytest.mark.parametrize("command", COMMANDS)
def test_a_dry_run_accepts_the_command(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In an empty folder, but for what takes the code from a checkout."""
    of_checkout = "launch.tpu" in command or "--build" in command
    monkeypatch.chdir(cli.ROOT if of_checkout else tmp_path)
    _, _, module, *argv = shlex.split(command)
    assert importlib.import_module(module).main([*argv, "--dry_run"]) == 0
    assert "vit_jax.main" in capsys.readouterr().out


def test_in_a_checkout_its_folder_is_a_package_too() -> None:
    python = [sys.executable, "-m", "launch.local", "--dry_run", "--workdir=w"]
    command = [*python, "--config=configs/quickstart.py"]
    printed = subprocess.check_output(command, cwd=cli.ROOT, text=True)
    assert "-m vit_jax.main --config=configs/quickstart.py" in printed
