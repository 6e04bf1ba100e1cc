"""Trials of a sweep, and how far each has come, told from what its run has left."""

import dataclasses
import hashlib
import json
import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from vit_jax import config as configs
from vit_jax import workdirs
from vit_jax.errors import UserError, did_you_mean
from vit_jax.launch import job
from vit_jax.launch.sweep.points import Point

LONGEST_NAME = 100  # characters; file systems take 255 bytes

Line = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
      name: of its workdir below the sweep's, the same for the same parameters.
      parameters: the overrides of this trial, with the values that its config has.
      job: its command line.
      config: complete, as the run writes it into config.json.
      log: what the run prints; a local file.
    """

    name: str
    parameters: dict[str, Any]
    job: job.Job
    config: dict[str, Any]
    log: Path

    @property
    def workdir(self) -> epath.Path:
        return epath.Path(self.job.workdir)


@dataclasses.dataclass(frozen=True)
class Status:
    """How far a trial has come.

    Attributes:
      state: "finished"; "diverged" (its loss is not finite: it would be so again);
        "running"; "failed" (its last attempt ended with an error); "unfinished" (to be
        resumed); "new"; "changed" (its workdir is of another config).
      message: the last words of an attempt that failed, or what has changed.
      steps: done, by metrics.jsonl.
      total_steps: None until the run has logged a step.
      last: the newest value of the metric, NaN if there is none.
      best: its best value.
      seconds: of training, over all attempts; without starting up.
    """

    state: str
    message: str = ""
    steps: int = 0
    total_steps: int | None = None
    last: float = math.nan
    best: float = math.nan
    seconds: float = 0.0

    @property
    def share(self) -> float:
        """The share of its steps that is done."""
        return self.steps / self.total_steps if self.total_steps else 0.0


def make(base: job.Job, point: Point) -> Trial:
    """The trial of a point; `base` is the job without it, with the sweep's workdir.

    Raises:
      UserError: for a key that does not exist or a value of a wrong type.
    """
    overrides = [f"--config.{key}={text}" for key, text in point.items()]
    arguments = [*base.arguments, *overrides]
    config = configs.load(base.config, pairs(arguments)).to_dict()
    parameters = {key: value_at(config, key) for key in point}
    name = trial_name(parameters)
    workdir = workdirs.absolute(base.workdir) / name
    logs = log_directory(base.workdir)
    return Trial(
        name=name,
        parameters=parameters,
        job=job.Job(base.config, str(workdir), tuple(arguments)),
        config=json.loads(json.dumps(config)),
        log=logs / name / "log.txt",
    )


def pairs(arguments: Iterable[str]) -> list[tuple[str, str]]:
    """The key and text of each `--config.KEY=TEXT`."""
    given = (a.removeprefix("--config.").partition("=") for a in arguments)
    return [(key, text) for key, _, text in given]


def unique(trials: Iterable[Trial]) -> list[Trial]:
    """The first trial of each name: the others would be the same run again."""
    return list({trial.name: trial for trial in reversed(list(trials))}.values())[::-1]


def log_directory(workdir: str) -> Path:
    """Where the output of the trials goes: their workdirs, or ~/.cache for a bucket."""
    if "://" not in workdir:
        return Path(workdirs.absolute(workdir))
    digest = hashlib.sha256(workdir.encode()).hexdigest()[:12]
    return Path("~/.cache/vit_jax/sweeps").expanduser() / digest


def value_at(config: Mapping[str, Any], path: str) -> Any:
    """The value of a dotted key."""
    for name in path.split("."):
        config = config[name]
    return config


def trial_name(parameters: Mapping[str, Any]) -> str:
    """A name for files: readable, unique, and a function of the parameters alone.

    What is long or has unusual letters is shortened, and ends with a hash of the whole.

    >>> trial_name({"optim.learning_rate": 3e-4, "model.variant": None})
    'model.variant=none,optim.learning_rate=0.0003'
    >>> trial_name({"model.variant": "B/16"})
    'model.variant=B-16-604c0c9d'
    """
    whole = ",".join(f"{key}={shown(parameters[key])}" for key in sorted(parameters))
    safe = re.sub(r"[^A-Za-z0-9_.,=+-]+", "-", whole)
    if safe == whole and len(whole) <= LONGEST_NAME:
        return whole
    digest = hashlib.sha256(whole.encode()).hexdigest()[:8]
    return f"{safe[: LONGEST_NAME - 9]}-{digest}"


def shown(value: Any) -> str:
    """A value of a config as the command line takes it.

    >>> shown(None), shown(True), shown((14, 16)), shown(1e-3)
    ('none', 'true', '(14,16)', '0.001')
    """
    if isinstance(value, list | tuple):
        return f"({','.join(shown(v) for v in value)})"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value)


def falls(metric: str) -> bool:
    """Whether less is better; the same rule as for `config.checkpoint.best`."""
    return metric.endswith(("loss", "error"))


def look(trial: Trial, metric: str) -> Status:
    """How far a trial has come, from config.json, metrics.jsonl and checkpoints/."""
    path = trial.workdir / "config.json"
    words = last_words(trial.log)
    running = is_locked(trial.workdir / ".lock")
    if not path.exists():
        state = "running" if running else "failed" if words else "new"
        return Status(state, message="" if running else words)
    before = json.loads(path.read_text())
    lines = read_lines(trial.workdir / "metrics.jsonl")
    steps = int(lines[-1]["step"]) if lines else 0
    total = total_steps(before, lines)
    values = [float(line[metric]) for line in lines if metric in line]
    better = min if falls(metric) else max
    status = Status(
        "unfinished",
        steps=steps,
        total_steps=total,
        last=values[-1] if values else math.nan,
        best=better((v for v in values if not math.isnan(v)), default=math.nan),
        seconds=seconds(lines),
    )
    if before != trial.config:
        changes = "; ".join(workdirs.difference(before, trial.config))
        return dataclasses.replace(status, state="changed", message=changes)
    # The line of the last step is written after its evaluations, and before its
    # checkpoint: only with both is nothing owed.
    if steps == total and job.newest_step(trial.job.workdir) == total:
        return dataclasses.replace(status, state="finished")
    if running:
        return dataclasses.replace(status, state="running")
    if lines and not all(math.isfinite(float(lines[-1][k])) for k in _GUARDED):
        return dataclasses.replace(status, state="diverged", message=words)
    if words:
        return dataclasses.replace(status, state="failed", message=words)
    return status


# A run ends when one of these is not finite, and writes them first.
_GUARDED = ("train/loss", "train/update_norm")


def read_lines(path: epath.Path) -> list[Line]:
    """The whole lines of metrics.jsonl; the last may be half written."""
    if not path.exists():
        return []
    text = path.read_text()
    return [json.loads(s) for s in text[: text.rfind("\n") + 1].splitlines()]


def total_steps(config: Mapping[str, Any], lines: Sequence[Line]) -> int | None:
    """Of a run: its config's, or from its epochs and the number of examples.

    That number is not in the config; each line tells how many examples have been seen
    and how many epochs that is.
    """
    if config["total_steps"] is not None:
        return config["total_steps"]
    for line in reversed(lines):
        if line["train/epoch"] > 0:
            examples = round(line["train/examples_seen"] / line["train/epoch"])
            return math.ceil(config["total_epochs"] * examples / config["batch_size"])
    return None


def seconds(lines: Iterable[Line]) -> float:
    """Of training, by `timing/elapsed_s`.

    It goes on over the starts of a run; older runs began each from 0.

    >>> seconds([{"timing/elapsed_s": s} for s in (1, 5, 2, 4)])
    9.0
    """
    total, before = 0.0, 0.0
    for line in lines:
        if "timing/elapsed_s" in line:
            now = line["timing/elapsed_s"]
            total += now - before if now >= before else now
            before = now
    return total


def last_words(log: Path) -> str:
    """The error with which the last attempt ended, "" if it did not end so.

    Each attempt begins with its command, in a line that begins with "$ ".
    """
    if not log.exists():
        return ""
    attempt = log.read_text(errors="replace").rpartition("\n$ ")[2]
    if match := re.search(r"^error: (.*)\Z", attempt.strip(), re.DOTALL | re.MULTILINE):
        return " ".join(match[1].split())
    if "\nTraceback (most recent call last):" in attempt:
        return attempt.strip().splitlines()[-1]
    return ""


def is_locked(path: epath.Path) -> bool:
    """Whether a process holds the lock of a workdir.

    Asks the kernel (Linux; elsewhere the answer is no). Trying to take the lock could
    get in the way of a run that is about to.
    """
    locks = Path("/proc/locks")
    if "://" in str(path) or not path.exists() or not locks.exists():
        return False
    inode = Path(path).stat().st_ino
    lines = locks.read_text().splitlines()
    return any(f":{inode} " in line for line in lines if "FLOCK" in line)


def check_metric(trial: Trial, metric: str) -> None:
    """Refuses a metric that a finished trial has not logged.

    Raises:
      UserError: with the names that it has.
    """
    path = trial.workdir / "metrics.jsonl"
    names = {name for line in read_lines(path) for name in line} - {"step"}
    if metric not in names:
        names = {name for name in names if not name.startswith("timing/")}
        raise UserError(
            f'--metric={metric}: there is no "{metric}" in {path}; '
            + did_you_mean(metric, names)
        )


def refuse_changed(trial: Trial, status: Status) -> None:
    """Refuses to go on with a trial that was begun with another config.

    Raises:
      UserError: with what has changed.
    """
    if status.state == "changed":
        raise UserError(
            f"{trial.workdir} was begun with another config: {status.message}. Trials "
            "of two configs cannot be compared: use another --workdir, or remove it"
        )


def order(status: Status, metric: str) -> tuple[bool, bool, float]:
    """The key that sorts the best first: finished before others, NaN last."""
    value = status.last if falls(metric) else operator.neg(status.last)
    return status.state != "finished", math.isnan(value), value
