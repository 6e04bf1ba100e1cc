"""The real command line, driven from tests."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).parent.parent
EVERYTHING = "tests/recipes/everything.py"


def start(
    *args: str, root: Path = ROOT, devices: int = 1, group: bool = False
) -> subprocess.Popen[str]:
    """Starts `python -m vit_jax.main`; with `group`, in a process group of its own."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-m", "vit_jax.main", *args],
        cwd=root,
        env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=group,
    )


def run(*args: str, expect: int | None = 0, root: Path = ROOT, devices: int = 1) -> str:
    """Runs to the end; returns stdout and stderr. Fails on another exit code."""
    process = start(*args, root=root, devices=devices)
    output, _ = process.communicate(timeout=1150)
    if expect is not None:
        assert process.returncode == expect, output
    return output


def run_and_signal(
    when: Callable[[float], bool], number: signal.Signals, *args: str
) -> tuple[int, str]:
    """Runs, and sends a signal once `when(seconds)` is true; (exit code, output)."""
    process, began = start(*args), time.monotonic()
    while process.poll() is None:
        if when(time.monotonic() - began):
            process.send_signal(number)
            break
        time.sleep(0.0005)
    output, _ = process.communicate(timeout=1150)
    return process.returncode, output


def metric_lines(workdir: Path, *, timing: bool = False) -> list[dict[str, Any]]:
    lines = [
        json.loads(s) for s in (workdir / "metrics.jsonl").read_text().splitlines()
    ]
    return [
        {k: v for k, v in line.items() if timing or not k.startswith("timing/")}
        for line in lines
    ]


def saved_steps(workdir: Path) -> list[int]:
    names = (p.name for p in (workdir / "checkpoints").glob("*"))
    return sorted(int(name) for name in names if name.isdigit())


def saved_arrays(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint by path, read by Orbax without any of our code."""
    import jax

    arrays: dict[str, np.ndarray] = {}
    with ocp.StandardCheckpointer() as checkpointer:
        for item in ("params", "ema_params", "rest"):
            directory = workdir / "checkpoints" / str(step) / item
            if directory.exists():
                tree = checkpointer.restore(directory)
                for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                    arrays[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return arrays


def assert_same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    assert len(a) > 10
    different = [name for name in a if a[name].tobytes() != b[name].tobytes()]
    assert not different, different[:5]
