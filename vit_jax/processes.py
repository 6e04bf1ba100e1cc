"""Whether a process of this machine still runs, by the operating system's word.

A busy machine may keep a process from its heartbeats for longer than any limit that
suits a network. On the same machine the kernel knows better: it says at once that a
process has ended, and that one that is merely starved of processor time has not.
"""

import dataclasses
import os
from pathlib import Path
from typing import Literal

State = Literal["runs", "ended", "unknown"]

_PROC = Path("/proc")
# Of proc(5): stopped by a signal or a debugger; a zombie, or dead.
_STOPPED, _DEAD = "Tt", "ZXx"


@dataclasses.dataclass(frozen=True)
class Identity:
    """One process, unlike any other, also one that is given the same number later.

    Attributes:
      machine: the boot of the kernel, and the namespaces that numbers of processes and
        addresses are of; "" where the system does not tell.
      pid: its number there.
      started: when it started, in clock ticks since the boot.
    """

    machine: str
    pid: int
    started: str


def own() -> Identity:
    """The calling process."""
    return Identity(_machine(), os.getpid(), _status(os.getpid())[1])


def state(process: Identity) -> State:
    """What the operating system says of a process.

    A process that was stopped (SIGSTOP) is "unknown": nothing says that it will go on.
    So is one of another machine, or of another container of this one.

    >>> state(own()), state(dataclasses.replace(own(), machine="elsewhere"))
    ('runs', 'unknown')
    """
    if not process.machine or process.machine != _machine():
        return "unknown"
    letter, started = _status(process.pid)
    if started != process.started or letter in _DEAD:
        return "ended"
    return "unknown" if letter in _STOPPED else "runs"


def _machine() -> str:
    """Tells this machine, and the namespaces of this process, from all others."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        spaces = [os.readlink(_PROC / "self/ns" / name) for name in ("pid", "net")]
    except OSError:  # not Linux
        return ""
    return " ".join((boot, *spaces))


def _status(pid: int) -> tuple[str, str]:
    """A process's letter of state, and when it started; "X" and "" if there is none."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return "X", ""
    fields = text.rpartition(")")[2].split()  # the name before may hold anything
    return fields[0], fields[19]
