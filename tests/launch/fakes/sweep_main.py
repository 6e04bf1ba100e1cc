"""Stands for `python -m vit_jax.main` in sweeps: leaves what it leaves, learns nothing.

The recipe is tests/recipes/sweep.py: 12 steps with a checkpoint each 3, here of 30 ms
each. Its complete config is read from the file $SWEEP_TEMPLATE. It resumes, saves on
SIGTERM (75), ends with 70 for learning rates above 1, and with 2 for a width of 13. In
the file `witness` of its workdir it notes each start, each step, and its end.

A file WORKDIR.crash makes it die of SIGKILL in step 8, once.
"""

import ast
import fcntl
import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

STEPS, EVERY, EXAMPLES, BATCH = 12, 3, 8000, 16


def value(text: str, old: Any) -> Any:
    try:
        new = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return float(new) if isinstance(old, float) else new


def load(overrides: list[tuple[str, str]]) -> dict[str, Any]:
    """The config of a trial."""
    config = json.loads(Path(os.environ["SWEEP_TEMPLATE"]).read_text())
    for key, text in overrides:
        override(config, key, text)
    return config


def override(config: dict[str, Any], path: str, text: str) -> None:
    *sections, key = path.split(".")
    for name in sections:
        config = config[name]
    config[key] = value(text, config[key])


def accuracy(config: dict[str, Any], step: int) -> float:
    """Best at a learning rate of 1e-3 and at step 8."""
    rate = config["optim"]["learning_rate"]
    best = 0.9 - 0.1 * abs(math.log10(rate) + 3) + 0.01 * config["seed"]
    return best - 0.001 * abs(step - 8)


def newest(workdir: Path) -> int:
    saved = [int(p.name) for p in (workdir / "checkpoints").iterdir()]
    return max(saved, default=0)


def train(workdir: Path, config: dict[str, Any], note: Any, signals: list[int]) -> int:
    first = newest(workdir)
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if json.loads(line)["step"] <= first]
    path.write_text("".join(kept))
    began = time.monotonic()
    for step in range(first + 1, STEPS + 1):
        time.sleep(0.03)
        crash = workdir.with_name(workdir.name + ".crash")
        if step == 8 and crash.exists():
            crash.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        note(f"step {step}")
        seen = step * BATCH
        line: dict[str, Any] = {"step": step, "train/loss": 2.0, "train/update_norm": 1}
        line |= {"train/examples_seen": seen, "train/epoch": seen / EXAMPLES}
        line["timing/elapsed_s"] = time.monotonic() - began
        bad = config["optim"]["learning_rate"] > 1 and step == 5
        if bad:
            line["train/loss"] = "NaN"
        if step % 4 == 0:
            line["test/accuracy"] = accuracy(config, step)
        with open(path, "a") as file:
            file.write(json.dumps(line) + "\n")
        if bad:
            print(f"error: step {step}: the loss is nan", file=sys.stderr)
            return 70
        stop = bool(signals) and step < STEPS
        if step % EVERY == 0 or stop:
            (workdir / "checkpoints" / str(step)).mkdir()
        if stop:
            print("stopped: saved", file=sys.stderr)
            return 75
    return 0


def main(argv: list[str]) -> int:
    signals: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
    assert argv[:2] == ["-m", "vit_jax.main"], argv
    given = dict(a.removeprefix("--").split("=", 1) for a in argv[2:])
    workdir = Path(given.pop("workdir"))
    given.pop("config")
    config = load([(k.removeprefix("config."), text) for k, text in given.items()])
    (workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
    with (
        open(workdir / "witness", "a", buffering=1) as witness,
        open(workdir / ".lock", "a") as lock,
    ):

        def note(text: str) -> None:
            witness.write(f"{text} {time.time()}\n")

        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        cores = len(os.sched_getaffinity(0))
        note(f"start of process {os.getpid()} on {cores} cores at")
        if config["model"]["width"] == 13:
            print("error: config.model.width is 13:\n  bad luck", file=sys.stderr)
            return 2
        (workdir / "config.json").write_text(json.dumps(config))
        code = train(workdir, config, note, signals)
        note("end")
        return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
