"""Programs that stand for others in tests of the launchers."""

import json
import sys
from pathlib import Path
from typing import Any

FAKES = Path(__file__).parent / "fakes"
RECIPE = "--config=configs/quickstart.py"
STEPS = 6  # as fakes/main.py has it


def install(folder: Path, name: str, script: str) -> Path:
    """Puts a fake program into a folder: `fakes/SCRIPT.py` under the name `name`."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKES / script}.py "$@"\n')
    path.chmod(0o755)
    return path


def add_fault(workdir: Path, process: int, step: int, action: str | int) -> None:
    """What is to happen to a process of the fake main, once."""
    faults = workdir / "faults"
    faults.mkdir(parents=True, exist_ok=True)
    (faults / f"{process}.{step}.{action}").touch()


def starts(workdir: Path) -> list[list[dict[str, Any]]]:
    """For each start of the fake main, what its processes were given, by number."""
    folders = sorted((workdir / "starts").iterdir(), key=lambda p: p.stat().st_ctime)
    files = [sorted(folder.glob("*.json")) for folder in folders]
    return [[json.loads(path.read_text()) for path in start] for start in files]


def steps(workdir: Path) -> list[int]:
    """Steps of the checkpoints of the fake main."""
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())
