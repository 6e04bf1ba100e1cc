"""Sweeps in tests: the real command line, on a fake vit_jax.main or the true one."""

import csv
import itertools
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests import cli
from tests.launch import programs
from vit_jax import config

RECIPE = "tests/recipes/sweep.py"
STEPS = 12

# The command line, with another interpreter for the trials than for the sweep, and with
# the fake's configs: to check them with vit_jax takes two seconds each time.
SWEEP = """
import sys, types
real, sys.executable = sys.executable, sys.argv.pop(1)
from vit_jax.launch import job
sys.executable = real
from tests.launch.fakes import sweep_main
job.configs.load = lambda recipe, overrides: types.SimpleNamespace(
    to_dict=lambda: sweep_main.load(overrides)
)
job.configs.results.names = lambda config: ["test/accuracy", "test/loss", "train/loss"]
from vit_jax.launch import sweep
sys.exit(job.run_main(sweep.main))
"""


def start(
    tmp_path: Path,
    *argv: str,
    workdir: str = "sweep",
    given: Sequence[str] = (f"--config={RECIPE}",),
) -> subprocess.Popen[str]:
    """Starts a sweep of the fake main in `tmp_path / workdir`."""
    python = programs.install(tmp_path / "bin", "python", "sweep_main")
    template = write_template(tmp_path)
    flags = [*given, f"--workdir={tmp_path / workdir}", *argv]
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    return subprocess.Popen(
        [sys.executable, "-c", SWEEP, python, *flags],
        cwd=cli.ROOT,
        env=os.environ | {"SWEEP_TEMPLATE": str(template), "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def write_template(tmp_path: Path) -> Path:
    """The complete config that the fake main reads."""
    path = tmp_path / "template.json"
    path.write_text(json.dumps(config.load(RECIPE, []).to_dict()))
    return path


def run(
    tmp_path: Path,
    *argv: str,
    expect: int = 0,
    workdir: str = "sweep",
    given: Sequence[str] = (f"--config={RECIPE}",),
) -> str:
    """Runs a sweep of the fake main to its end; returns what it printed."""
    return end(start(tmp_path, *argv, workdir=workdir, given=given), expect)


def end(process: subprocess.Popen[str], expect: int) -> str:
    output, _ = process.communicate(timeout=1150)
    assert process.returncode == expect, output
    return output


def wait_until(condition: Callable[[], Any], seconds: float = 600) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it does not come"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def processes_of(sweep: Path) -> list[int]:
    """Processes whose command line names a workdir in the folder of a sweep."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:  # it has ended meanwhile
            continue
        if f"--workdir={sweep}/".encode() in words and is_alive(int(path.parent.name)):
            found.append(int(path.parent.name))
    return found


def trials(sweep: Path) -> list[Path]:
    """The workdirs of the trials that have begun."""
    return sorted(p for p in sweep.glob("*") if p.is_dir())


def witnesses(sweep: Path) -> dict[str, list[str]]:
    """What each trial of the fake main has noted."""
    paths = [p / "witness" for p in trials(sweep)]
    return {p.parent.name: p.read_text().splitlines() for p in paths if p.exists()}


def steps(lines: list[str]) -> list[int]:
    """The steps that a trial of the fake main has done, over all its attempts."""
    return [int(s.split()[1]) for s in lines if s.startswith("step ")]


def pids(lines: list[str]) -> list[int]:
    """The processes that a trial of the fake main has had."""
    return [int(m[1]) for s in lines if (m := re.search(r"of process (\d+)", s))]


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def check_table(sweep: Path, metric: str, *, total_steps: int) -> list[dict[str, str]]:
    """Compares sweep.csv with each trial's metrics.jsonl; returns its rows.

    Only for trials that have finished, and a metric that grows.
    """
    rows = read_csv(sweep / "sweep.csv")
    assert {row["trial"] for row in rows} == {p.name for p in trials(sweep)}
    for row in rows:
        lines = cli.metric_lines(sweep / row["trial"], timing=True)
        assert [line["step"] for line in lines] == list(range(1, total_steps + 1))
        values = [line[metric] for line in lines if metric in line]
        assert float(row[metric]) == values[-1]
        assert float(row[f"best {metric}"]) == max(values)
        assert row["state"] == "finished"
        assert int(row["steps"]) == total_steps
        elapsed = [0.0] + [line["timing/elapsed_s"] for line in lines]
        pairs = itertools.pairwise(elapsed)
        total = sum(b - a if b > a else b for a, b in pairs)
        assert math.isclose(float(row["seconds"]), total, abs_tol=0.06)
        written = json.loads((sweep / row["trial"] / "config.json").read_text())
        assert float(row["optim.learning_rate"]) == written["optim"]["learning_rate"]
        assert int(row["seed"]) == written["seed"]
    finals = [float(row[metric]) for row in rows]
    assert finals == sorted(finals, reverse=True)
    return rows
