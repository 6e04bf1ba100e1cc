"""Whether a process of this machine still runs, by the operating system's word.

A busy machine may keep a process from its heartbeats for longer than any limit that
suits a network. On the same machine the kernel knows better: it says at once that a
process has ended, and that one that is merely starved of processor time has not.
"""

import contextlib
import dataclasses
import os
import time
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
    return identity(os.getpid())


def identity(pid: int) -> Identity:
    """A process of this machine that runs now."""
    return Identity(_machine(), pid, _status(pid)[1])


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


def now() -> int:
    """Clock ticks since the boot, as processes' starts are counted; 0 if unknown."""
    if not hasattr(time, "CLOCK_BOOTTIME"):  # not Linux
        return 0
    seconds = time.clock_gettime(time.CLOCK_BOOTTIME)
    return int(seconds * os.sysconf("SC_CLK_TCK"))


def dead_children(since: int) -> dict[int, int]:
    """Children of this process that have ended, and that nobody has asked about.

    Args:
      since: those that started before are left out; see `now`.

    Returns:
      Exit codes by process number; a signal that ended one is negative. Empty where
      the system does not tell.
    """
    try:
        tasks = (_PROC / "self" / "task").iterdir()
        pids = [
            int(p) for task in tasks for p in (task / "children").read_text().split()
        ]
    except OSError:
        return {}
    codes = {}
    for pid in map(int, pids):
        letter, started = _status(pid)
        if letter not in _DEAD or not started or int(started) < since:
            continue
        with contextlib.suppress(OSError):  # another thread has asked just now
            flags = os.WEXITED | os.WNOHANG | os.WNOWAIT  # it can be asked again
            if (end := os.waitid(os.P_PID, pid, flags)) is not None:
                exited = end.si_code == os.CLD_EXITED
                codes[pid] = end.si_status if exited else -end.si_status
    return codes


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
