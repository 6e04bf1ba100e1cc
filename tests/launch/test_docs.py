"""What the README and docs/launching.md say can be typed."""

import importlib
import re
import shlex

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
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(cli.ROOT)
    _, _, module, *argv = shlex.split(command)
    assert importlib.import_module(module).main([*argv, "--dry_run"]) == 0
    assert "vit_jax.main" in capsys.readouterr().out
