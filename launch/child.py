"""Starts programs that do not outlive the process that started them.

    python child.py PARENT CORES COMMAND [ARGUMENT ...]

becomes COMMAND, after it has asked the kernel for a SIGTERM when PARENT ends, however
that ends, and has bound itself to CORES ("0,1", or "" for all). It is a program of its
own and not a `preexec_fn`, which is unsafe in a process with threads, as JAX has.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def start(
    command: Sequence[str],
    *,
    output: IO[Any] | int | None = None,
    environment: Mapping[str, str] | None = None,
    cores: Sequence[int] = (),
) -> subprocess.Popen[Any]:
    """Starts a command in a session of its own, tied to the life of this process.

    A Ctrl-C in the terminal does not reach it: the caller passes on what it wants to.
    Call it from the main thread: the kernel watches the thread that starts the child.
    Other systems than Linux have neither a signal at the parent's end nor cores to
    bind to.

    Args:
      command: program and arguments.
      output: gets stdout and stderr; None is this process's own.
      environment: added to this process's.
      cores: that it may use; none is all of them.
    """
    if sys.platform == "linux":
        bound = ",".join(map(str, cores))
        wrapper = [sys.executable, "-I", "-S", __file__, str(os.getpid()), bound]
    else:
        wrapper = []
    return subprocess.Popen(
        [*wrapper, *command],
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
        start_new_session=True,
    )


def become(parent: int, cores: str, command: Sequence[str]) -> None:
    """Replaces this process by the command, tied to its parent."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before we asked
        sys.exit(f"{command[0]}: the process that started it is gone")
    if cores:
        os.sched_setaffinity(0, map(int, cores.split(",")))
    os.execvp(command[0], list(command))


if __name__ == "__main__":
    become(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
