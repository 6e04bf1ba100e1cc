"""What the README says can be typed."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests import cli
from vit_jax import config, main

README = (cli.ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)


def lines(block: str) -> list[str]:
    """Whole lines, with the values of the variables that the block sets."""
    for name, value in re.findall(r'^(\w+)="(.*?)"', block, re.DOTALL | re.MULTILINE):
        block = block.replace(f"${name}", " ".join(value.split()))
    return block.replace("\\\n", " ").splitlines()


COMMANDS = [
    line
    for block in BLOCKS
    for line in lines(block)
    if line.startswith("python -m vit_jax.main")
]


def test_commands_are_found() -> None:
    assert len(COMMANDS) >= 4


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_valid(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flags, recipe and every override, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    args, overrides = main.parse(shlex.split(command)[3:])
    config.load(args.config, overrides)


def test_targets_and_files_exist() -> None:
    makefile = (cli.ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([a-z-]+)", "\n".join(BLOCKS), re.MULTILINE):
        assert f"\n{target}:" in makefile
    for path in re.findall(r"\]\(([a-zA-Z./-]+)\)", README):
        assert (cli.ROOT / path).exists(), path
    for path in re.findall(r"`(configs/\w+\.py)", README):
        assert (cli.ROOT / path).exists(), path


def test_git_ignores_what_the_readme_has_one_write() -> None:
    folders = "workdirs data data_check images overlays exported huggingface vit_b16"
    for name in (*(f"{folder}/x" for folder in folders.split()), "sheet.png"):
        command = ["git", "check-ignore", "--quiet", name]
        assert subprocess.run(command, cwd=cli.ROOT).returncode == 0, name
