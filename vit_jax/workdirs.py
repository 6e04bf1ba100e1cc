"""The directory of a run: `config.json`, and whether it can be written at all.

A workdir holds config.json, parameters.txt, labels.json (the names of the classes,
where the data has them), class_weights.json (with loss.class_weights=balanced: the
images and the weight of each class), runs.jsonl (how it was started, each time),
log.txt (what it printed), metrics.jsonl, curves.png, checkpoints/, evals/ and
tensorboard/.
"""

import contextlib
import fcntl
import json
import os
import re
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from absl import logging
from etils import epath

from vit_jax import durable
from vit_jax.durable import is_remote
from vit_jax.errors import UserError

CONFIG = "config.json"
LABEL_NAMES = "labels.json"
RUNS = "runs.jsonl"
CLASS_WEIGHTS = "class_weights.json"
LOCK = ".lock"
_LEFT_OVER = re.compile(r".+\.\d+\.tmp")
_FILES = (CONFIG, LABEL_NAMES, LOCK, "metrics.jsonl", "runs.jsonl", "parameters.txt")
_DIRECTORIES = ("checkpoints", "broken_checkpoints", "evals", "tensorboard")


def absolute(path: str | os.PathLike[str], *, of: str = "") -> epath.Path:
    """A path as a user gives it, in full: Orbax takes no other.

    Args:
      path: local, or in Google Cloud Storage.
      of: the flag or key that it is of, for messages.

    Raises:
      UserError: if it is empty, of another store, or not UTF-8.

    >>> absolute("gs://bucket/run") == epath.Path("gs://bucket/run")
    True
    """
    text = os.fspath(path)
    given = f"{of}={text}" if of else f'"{text}"'
    if not text.strip():
        raise UserError(
            f"{given} is empty (an unset variable of the shell?): give a path"
        )
    scheme, found, _ = text.partition("://")
    if found and scheme in ("http", "https"):
        raise UserError(f"{given}: download it, and give the file's path")
    if found and scheme != "gs":
        raise UserError(
            f"{given}: paths are local or begin with gs://; mount {scheme}://, or copy "
            "what is there"
        )
    if found:
        return epath.Path(text)
    if "\0" in text or not _is_utf8(text):
        raise UserError(f"{given!a}: the path is not UTF-8; rename it")
    return epath.Path(os.path.abspath(os.path.expanduser(text)))


def local(path: epath.Path) -> Path:
    """The path of a checkpoint of another library, which is read from a local file.

    Raises:
      UserError: if it is in an object store.
    """
    if is_remote(path):
        raise UserError(
            f"{os.fspath(path)} holds no run of vit_jax, and other checkpoints are "
            "read from local files: download it, and give the file's path"
        )
    return Path(path)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # Python reads other bytes as lone surrogates
        return False
    return True


def check_writable(workdir: epath.Path) -> None:
    """Makes the directory and writes a file in it.

    Raises:
      UserError: if that fails.
    """
    probe = workdir / ".writable"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # A new file: what somebody else has put under the name is not written through.
        probe.unlink(missing_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} cannot be written ({error.strerror or error}): give "
            "a directory that can"
        ) from error


def check_kinds(workdir: epath.Path) -> None:
    """Refuses a directory where a run has a file, and a file for a directory.

    Raises:
      UserError: with its name.
    """
    for name in _FILES:
        if (workdir / name).is_dir():
            raise UserError(
                f"{workdir / name} is a directory, and a run has a file of this name: "
                "move it away, or use another --workdir"
            )
    for name in _DIRECTORIES:
        if (workdir / name).exists() and not (workdir / name).is_dir():
            raise UserError(
                f"{workdir / name} is no directory, and a run has one of this name: "
                "move it away, or use another --workdir"
            )


def lock(workdir: epath.Path) -> IO[str]:
    """Keeps other processes on this machine out of a workdir.

    Returns:
      A file: the lock is held until it is closed or the process ends, however it ends.

    Raises:
      UserError: if the directory cannot be written, or another process is at work.
    """
    check_writable(workdir)
    check_kinds(workdir)
    if is_remote(workdir):
        return open(os.devnull)
    while True:
        file = _open_lock(workdir / LOCK)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise UserError(
                f"--workdir={workdir} is in use by {holder}: wait for it, or give "
                "another directory"
            ) from error
        if _still_there(file, workdir / LOCK):
            break
        file.close()  # who held it has just removed it
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    _remove_left_over(workdir)
    return file


def _open_lock(path: epath.Path) -> IO[str]:
    """The file of the lock; a link of this name would lead to somebody else's file.

    Raises:
      UserError: if it is one, or cannot be opened.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.fdopen(os.open(path, flags, 0o666), "a+")
    except OSError as error:
        raise UserError(
            f"{path} cannot be opened ({error.strerror}): it is a link, or belongs to "
            "somebody else; remove it"
        ) from error


def _remove_left_over(workdir: epath.Path) -> None:
    """Removes what `durable.write` of a process that was killed has left."""
    for folder in (workdir, workdir / "evals"):
        for path in folder.glob("*.tmp") if folder.is_dir() else ():
            if _LEFT_OVER.fullmatch(path.name):
                path.unlink(missing_ok=True)


def _still_there(file: IO[str], path: epath.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def held(workdir: epath.Path) -> Iterator[None]:
    """Holds the lock; what fails before it has written anything leaves nothing behind.

    Raises:
      UserError: as `lock`.
    """
    missing = [p for p in (workdir, *workdir.parents) if not p.exists()]
    file = lock(workdir)
    try:
        yield
    except BaseException:
        if not is_remote(workdir):
            _remove_empty(workdir, missing)
        raise
    finally:
        file.close()


def _remove_empty(workdir: epath.Path, missing: Sequence[epath.Path]) -> None:
    """Removes what `held` has made, unless it holds something by now."""
    with contextlib.suppress(OSError):
        os.rmdir(workdir / "checkpoints")
    with contextlib.suppress(OSError):
        if os.listdir(workdir) == [LOCK]:
            os.unlink(workdir / LOCK)
        for directory in missing:
            os.rmdir(directory)


def write_config(workdir: epath.Path, config: dict[str, Any]) -> None:
    """Writes config.json; says what has changed since the run began, if it had one."""
    path = workdir / CONFIG
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    stored = read_config(workdir)
    if path.exists() and not stored:
        logging.warning("%s is damaged: it is written anew", path)
    elif stored and (changes := difference(stored, json.loads(text))):
        logging.warning(
            "%s: this run goes on with another config:\n%s",
            workdir,
            "\n".join(f"  {line}" for line in changes),
        )
    write_atomically(path, text)


def read_config(workdir: epath.Path) -> dict[str, Any]:
    """What config.json says; nothing if there is none or it is damaged."""
    try:
        config = json.loads((workdir / CONFIG).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def write_atomically(path: epath.Path, content: str | bytes) -> None:
    """All of the content under its name, or none of it; on disk when this returns.

    Raises:
      UserError: if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content.encode() if isinstance(content, str) else content
        durable.write(path, data)
    except OSError as error:
        raise UserError(f"cannot write {path}: {durable.explained(error)}") from error


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
