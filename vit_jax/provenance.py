"""How a run was started: `workdir/runs.jsonl`, a line for each start.

It says the command, the recipe and what was changed in it, the commit, the versions,
hosts and devices, and the complete config where it is not that of the line before. So a
workdir says by itself what made it, also after it went on with another config.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from vit_jax import __version__, workdirs

_PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy"),
    *("ml_collections", "tensorflow", "tensorflow_datasets", "libtpu"),
)
_PACKAGE = Path(__file__).resolve().parent
_GIT_SECONDS = 10
Record = dict[str, Any]


def collect(
    command: Sequence[str], recipe: str | None, changes: Sequence[tuple[str, Any]]
) -> Record:
    """What is known before anything starts.

    Args:
      command: as it was typed, or the name of the function that was called.
      recipe: as it was given; None for a config that is no file.
      changes: to it, keys and values.
    """
    return {
        "started": _now(),
        "command": list(command),
        "directory": os.getcwd(),
        "recipe": recipe,
        "changes": [f"{key}={value}" for key, value in changes],
        "git": git(),
        "versions": versions(),
    }


def write(
    workdir: epath.Path,
    about: Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    step: int,
    hosts: Sequence[str],
    devices: str,
) -> None:
    """Adds the line of a start. Call it before config.json is replaced.

    Args:
      workdir: of the run.
      about: from `collect`.
      config: complete.
      step: that the run goes on from, 0 at its beginning.
      hosts: of its processes.
      devices: how many of which kind.

    Raises:
      UserError: if it cannot be written.
    """
    lines = read(workdir)
    known = [line["config"] for line in lines if "config" in line]
    stored = workdir / workdirs.CONFIG
    if not lines and stored.exists():  # made before there was such a file
        known.append(workdirs.read_config(workdir))
        lines.append({"note": "what config.json said before", "config": known[-1]})
    line = {**about, "step": step, "hosts": list(hosts), "devices": devices}
    now = json.loads(json.dumps(config))
    if not known or known[-1] != now:
        line["config"] = now
    lines.append(line)
    text = "".join(json.dumps(each, default=str) + "\n" for each in lines)
    workdirs.write_atomically(workdir / workdirs.RUNS, text)


def read(workdir: epath.Path) -> list[Record]:
    """The lines so far; what is not one (a damaged file) is left out."""
    path = workdir / workdirs.RUNS
    if not path.exists():
        return []
    lines: list[Record] = []
    for text in path.read_bytes().decode(errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines


def versions() -> dict[str, str]:
    """Of Python, of vit_jax and of what it stands on, as far as it is installed."""
    found = {"python": platform.python_version(), "vit_jax": __version__}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git() -> dict[str, Any] | None:
    """The commit of the checkout of vit_jax, else of the current directory."""
    installed = "site-packages" in _PACKAGE.parts
    directory = os.getcwd() if installed else os.fspath(_PACKAGE)
    commit = _git(directory, "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = _git(directory, "status", "--porcelain", "--untracked-files=no")
    return {"directory": directory, "commit": commit, "changed_files": bool(changed)}


def _git(directory: str, *arguments: str) -> str | None:
    """What a command of git prints; None if there is no git or no checkout."""
    try:
        done = subprocess.run(
            ["git", "-C", directory, *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def host() -> str:
    """The name of this machine."""
    return socket.gethostname()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
