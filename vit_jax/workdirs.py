"""The directory of a run: `config.json`, and whether it can be written at all.

A workdir holds config.json, parameters.txt, labels.json (the names of the classes,
where the data has them), metrics.jsonl, checkpoints/, evals/ and tensorboard/.
"""

import fcntl
import json
import os
from typing import IO, Any

from absl import logging
from etils import epath

from vit_jax.errors import UserError

LABEL_NAMES = "labels.json"


def absolute(path: str) -> epath.Path:
    """A path as a user gives it, in full: Orbax takes no other.

    >>> absolute("gs://bucket/run") == epath.Path("gs://bucket/run")
    True
    """
    if "://" in path:
        return epath.Path(path)
    return epath.Path(os.path.abspath(os.path.expanduser(path)))


def check_writable(workdir: epath.Path) -> None:
    """Makes the directory and writes a file in it.

    Raises:
      UserError: if that fails.
    """
    probe = workdir / ".writable"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} cannot be written ({error.strerror or error}): give "
            "a directory that can"
        ) from error


def lock(workdir: epath.Path) -> IO[str]:
    """Keeps other processes on this machine out of a workdir.

    Returns:
      A file: the lock is held until it is closed or the process ends, however it ends.

    Raises:
      UserError: if the directory cannot be written, or another process is at work.
    """
    check_writable(workdir)
    if "://" in os.fspath(workdir):
        return open(os.devnull)
    file = open(workdir / ".lock", "a")  # noqa: SIM115 (held by the caller)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise UserError(
            f"--workdir={workdir} is in use by another process: wait for it, or give "
            "another directory"
        ) from error
    return file


def write_config(workdir: epath.Path, config: dict[str, Any]) -> None:
    """Writes config.json; says what has changed since the run began, if it had one."""
    path = workdir / "config.json"
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    if path.exists() and path.read_text() != text:
        changes = difference(json.loads(path.read_text()), json.loads(text))
        logging.warning(
            "%s: this run goes on with another config:\n%s",
            workdir,
            "\n".join(f"  {line}" for line in changes),
        )
    write_atomically(path, text)


def write_atomically(path: epath.Path, content: str | bytes) -> None:
    """All of the content under its name, or none of it.

    Raises:
      UserError: if it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content.encode() if isinstance(content, str) else content
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def difference(old: dict[str, Any], new: dict[str, Any], path: str = "") -> list[str]:
    """Lines `key: old -> new` for each leaf that differs.

    >>> difference({"a": {"b": 1}}, {"a": {"b": 2}, "c": 3})
    ['a.b: 1 -> 2', 'c: (absent) -> 3']
    """
    lines: list[str] = []
    for name in sorted(old.keys() | new.keys()):
        was = old[name] if name in old else "(absent)"
        now = new[name] if name in new else "(absent)"
        where = f"{path}.{name}" if path else name
        if isinstance(was, dict) and isinstance(now, dict):
            lines += difference(was, now, where)
        elif was != now:
            lines.append(f"{where}: {was} -> {now}")
    return lines
