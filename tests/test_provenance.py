"""What a workdir says of how it was started, each time."""

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax
import pytest
from etils import epath

from tests import cli
from vit_jax import provenance


def write(workdir: Path, config: dict[str, Any], *command: str) -> None:
    about = provenance.collect(["main", *command], "a.py:B/16", [("seed", "1")])
    provenance.write(
        epath.Path(workdir),
        about,
        config,
        step=7,
        hosts=["h0", "h1"],
        devices="2 x cpu",
    )


def lines(workdir: Path) -> list[dict[str, Any]]:
    text = (workdir / "runs.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_a_line_for_each_start(tmp_path: Path) -> None:
    """The config stands where it is another than before, so that none is lost."""
    write(tmp_path, {"seed": 1}, "--config=a b.py")
    write(tmp_path, {"seed": 1})
    write(tmp_path, {"seed": 2, "mean": (0.5,)})
    write(tmp_path, {"seed": 2, "mean": (0.5,)})
    first, second, third, fourth = lines(tmp_path)
    assert first["command"] == ["main", "--config=a b.py"]
    assert first["recipe"] == "a.py:B/16" and first["changes"] == ["seed=1"]
    assert first["hosts"] == ["h0", "h1"] and first["devices"] == "2 x cpu"
    assert first["step"] == 7 and first["started"].endswith("+00:00")
    assert first["config"] == {"seed": 1}
    assert third["config"] == {"seed": 2, "mean": [0.5]}
    assert "config" not in second and "config" not in fourth
    assert first["versions"]["jax"] == jax.__version__
    assert first["versions"]["python"] == platform.python_version()


def test_the_commit_is_gits() -> None:
    head = ["git", "-C", str(cli.ROOT), "rev-parse", "HEAD"]
    done = subprocess.run(head, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a checkout of git")
    found = provenance.git()
    assert found is not None
    assert found["commit"] == done.stdout.strip()


def test_workdirs_of_before_and_damaged_lines(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"seed": 0}')
    write(tmp_path, {"seed": 1})
    old, new = lines(tmp_path)
    assert old["config"] == {"seed": 0} and new["config"] == {"seed": 1}
    with (tmp_path / "runs.jsonl").open("ab") as file:
        file.write(b'{"half\xff')
    write(tmp_path, {"seed": 1})
    assert len(lines(tmp_path)) == 3
