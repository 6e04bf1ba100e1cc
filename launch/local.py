"""python -m vit_jax.launch.local --processes=N --config=PATH.py[:ARG] --workdir=DIR

Starts N processes of vit_jax.main on this machine that train together, as hosts do: for
debugging what crosses hosts. Each line of output begins with the number of its process.
When one fails, the others are ended and all start again in the same workdir.

  --config.KEY=VALUE   overrides a key of the config, such as --config.seed=1
"""

import contextlib
import ctypes
import importlib.util
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from vit_jax import limits, streams
from vit_jax.authentication import RUN_KEY, new_key
from vit_jax.errors import (
    NonFiniteLossError,
    PeerLost,
    Preempted,
    UserError,
    WorkerLost,
)
from vit_jax.launch import job

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LOST_PEER = PeerLost.exit_code
# Seconds that the others have when one has crashed or was killed: nothing can be saved
# without it, and they miss it within three. One that ends in order may be saving.
_AFTER_A_CRASH = 10.0
_MEANINGS = {
    0: "done",
    UserError.exit_code: "bad input",
    NonFiniteLossError.exit_code: "the loss is not finite",
    Preempted.exit_code: "stopped by a signal, and saved",
    WorkerLost.exit_code: "a process that reads data was lost",
    _LOST_PEER: "another process was lost",
}


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit code of the run."""
    parser = job.Parser("local", __doc__)
    parser.add_argument("--processes", type=int, default=1, help="how many (1)")
    parser.add_argument(
        "--devices_per_process", type=int, help="CPU: virtual ones (1); GPU: its share"
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=60,
        help="seconds that the others have to end by themselves when one has (60; at "
        f"most {_AFTER_A_CRASH:g} when it was killed or has crashed)",
    )
    run, flags = job.parse(parser, argv)
    devices = device_variables(flags.processes, flags.devices_per_process, os.environ)
    if flags.dry_run:
        lines = commands(run, flags.processes, "127.0.0.1:PORT")
        for line, variables in zip(lines, devices, strict=True):
            print(job.shell(line, variables))
        return 0
    return Launcher(run, devices, flags.grace).run_to_the_end()


def commands(run: job.Job, processes: int, address: str) -> list[list[str]]:
    """The command line of each process; one alone needs no other to be told of."""
    if processes == 1:
        return [run.command()]
    together = [f"--coordinator_address={address}", f"--num_processes={processes}"]
    numbers = [f"--process_id={i}" for i in range(processes)]
    return [run.command(extra=[*together, number]) for number in numbers]


def device_variables(
    processes: int, per_process: int | None, environment: Mapping[str, str]
) -> list[dict[str, str]]:
    """The environment variables that give each process devices of its own.

    One process, of which nothing is asked, takes what JAX finds.

    Raises:
      UserError: if there are not enough, or if they cannot be shared.
    """
    for flag, value in (
        ("processes", processes),
        ("devices_per_process", per_process),
    ):
        if value is not None and not 1 <= value <= limits.WORKERS:
            raise UserError(
                f"--{flag}={value} must be at least 1, and at most {limits.WORKERS:,}"
            )
    if processes == 1 and per_process is None:
        return [{}]
    platform = environment.get("JAX_PLATFORMS", "").partition(",")[0]
    gpus = visible_gpus(environment) if platform in ("", "cuda", "gpu") else []
    if gpus:
        return share(gpus, processes, per_process)
    if platform in ("", "cpu"):
        count = f"--xla_force_host_platform_device_count={per_process or 1}"
        flags = f"{environment.get('XLA_FLAGS', '')} {count}".strip()
        return [{"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}] * processes
    raise UserError(
        f"JAX_PLATFORMS={platform}: this launcher can share out NVIDIA GPUs (none was "
        "found) and virtual CPU devices (JAX_PLATFORMS=cpu)"
    )


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """The NVIDIA GPUs that JAX would find here, as CUDA_VISIBLE_DEVICES names them."""
    if not any(importlib.util.find_spec(f"jax_cuda{v}_plugin") for v in (12, 13)):
        return []
    if "CUDA_VISIBLE_DEVICES" in environment:
        return [g for g in environment["CUDA_VISIBLE_DEVICES"].split(",") if g]
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True).stdout.split()


def share(
    gpus: Sequence[str], processes: int, per_process: int | None
) -> list[dict[str, str]]:
    """An equal share of the GPUs for each process.

    >>> share(["0", "1", "2", "3", "4"], 2, None)
    [{'CUDA_VISIBLE_DEVICES': '0,1'}, {'CUDA_VISIBLE_DEVICES': '2,3'}]
    """
    each = per_process or len(gpus) // processes
    if each == 0 or each * processes > len(gpus):
        raise UserError(
            f"--processes={processes} with {per_process or 'one or more'} GPUs each: "
            f"{len(gpus)} can be seen here; JAX_PLATFORMS=cpu tries it without GPUs"
        )
    shares = [gpus[i * each : (i + 1) * each] for i in range(processes)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(s)} for s in shares]


class Process:
    """One running process of vit_jax.main, in a process group of its own.

    Of its own so that Ctrl-C in a terminal reaches it once, through the launcher: a
    second SIGINT means "at once" to it.
    """

    def __init__(
        self, number: int, command: Sequence[str], variables: Mapping[str, str]
    ) -> None:
        self.number = number
        self.was_killed = False
        self._popen = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
            preexec_fn=_die_with(os.getpid()),
        )
        self._begun_line = b""

    def fileno(self) -> int:
        """The reading end of its output: what `selectors` asks for."""
        assert self._popen.stdout is not None
        return self._popen.stdout.fileno()

    def copy_output(self) -> bool:
        """Prints the lines that have come; False at the end of the output."""
        block = os.read(self.fileno(), 1 << 16)
        *lines, self._begun_line = (self._begun_line + block).split(b"\n")
        if not block and self._begun_line:
            lines.append(self._begun_line)
        for line in lines:
            streams.say(f"[{self.number}] {line.decode(errors='replace')}")
        return bool(block)

    def signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self._popen.pid, number)

    def kill(self) -> None:
        """Ends it and the processes that it has started."""
        if self.poll() is None:
            self.was_killed = True
            self._kill_group()

    def poll(self) -> int | None:
        """The exit code once it has ended, as shells give it (128 + signal)."""
        if self._popen.returncode is None:
            # Its number stays its own until `wait`: the rest of its group can be ended.
            ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
            if os.waitid(os.P_PID, self._popen.pid, ended) is None:
                return None
            self._kill_group()
        code = self._popen.wait()
        return code if code >= 0 else 128 - code

    def _kill_group(self) -> None:
        """Kills the group but for Python's resource trackers.

        These end by themselves when all others have, and first remove from /dev/shm
        what those have left.
        """
        members = group_members(self._popen.pid)
        if members is None:
            # There is no group of one that was killed before it became a program.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._popen.pid, signal.SIGKILL)
            return
        for member in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)

    def close(self) -> None:
        """Ends it if it runs, and lets go of its output."""
        self.kill()
        self._popen.wait()
        assert self._popen.stdout is not None
        self._popen.stdout.close()


def group_members(group: int) -> list[int] | None:
    """The processes of a group without resource trackers; None if not Linux."""
    if sys.platform != "linux":
        return None
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            # The name of the program, in parentheses, may hold anything.
            fields = (path / "stat").read_text(errors="replace").rpartition(")")[2]
            if int(fields.split()[2]) != group:
                continue
            if (
                b"multiprocessing.resource_tracker"
                not in (path / "cmdline").read_bytes()
            ):
                found.append(int(path.name))
    return found


def _die_with(parent: int):
    """For the new process to call: SIGKILL when the launcher dies, however it dies."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def in_child() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before it was asked for
            os._exit(1)

    return in_child


class Launcher:
    """Keeps one run going. It has no threads: a child dies with the thread it is of."""

    def __init__(
        self, run: job.Job, devices: Sequence[Mapping[str, str]], grace: float
    ) -> None:
        self._run, self._devices, self._grace = run, devices, grace
        self._signals: list[int] = []  # that came and are not handed on yet
        self._stopping = False

    def run_to_the_end(self) -> int:
        """Starts the processes until the run ends for good; returns its exit code."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._note)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as `nohup` asks
            signal.signal(signal.SIGHUP, self._note)
        restarts = job.Restarts(lambda: job.newest_step(self._run.workdir))
        while True:
            code = self._run_once()
            wait = None if self._stopping else restarts.after(code)
            if wait is None:
                break
            step = job.newest_step(self._run.workdir)
            where = "the beginning" if step is None else f"step {step}"
            streams.say(f"launch: restart {restarts.count} from {where} in {wait:g} s")
            self._sleep(wait)
            if self._stopping:
                break
        streams.say(f"launch: {describe(code)}, after {restarts.count} restarts")
        streams.settle()
        return code

    def _run_once(self) -> int:
        """Runs all processes until none is left; returns the code of the run."""
        lines = commands(self._run, len(self._devices), f"127.0.0.1:{free_port()}")
        processes: list[Process] = []
        key = {RUN_KEY: new_key()}  # not in the command line: all see that
        try:
            for i, (line, devices) in enumerate(zip(lines, self._devices, strict=True)):
                processes.append(Process(i, line, {**devices, **key}))
            return run_code(self._watch(processes))
        finally:
            for process in processes:
                process.close()

    def _watch(self, processes: Sequence[Process]) -> list[int]:
        """Copies output until all have ended.

        Returns:
          The exit codes in the order of the ends, without the processes killed here.
        """
        codes: list[int] = []
        running, deadline, limit = list(processes), float("inf"), self._grace
        with selectors.DefaultSelector() as outputs:
            for process in processes:
                outputs.register(process, selectors.EVENT_READ, process)
            while True:
                self._hand_on_signals(running)
                ready = outputs.select(timeout=0.1)
                if not running and not ready:
                    return codes
                for key, _ in ready:
                    if not key.data.copy_output():
                        outputs.unregister(key.data)
                for process in list(running):
                    if (code := process.poll()) is None:
                        continue
                    running.remove(process)
                    if process.was_killed:
                        continue
                    codes.append(code)
                    if code:
                        streams.say(
                            f"launch: process {process.number}: {describe(code)}"
                        )
                        if code not in _MEANINGS:
                            limit = min(limit, _AFTER_A_CRASH)
                        deadline = min(deadline, time.monotonic() + limit)
                if time.monotonic() > deadline:
                    end(running, f"still there after {limit:g} s, killed")
                    deadline = float("inf")

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)
        self._stopping = self._stopping or number != signal.SIGUSR1

    def _hand_on_signals(self, processes: Sequence[Process]) -> None:
        while self._signals:
            number = self._signals.pop(0)
            for process in processes:
                process.signal(number)

    def _sleep(self, seconds: float) -> None:
        """Sleeps, unless it is asked to stop."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._stopping:
            time.sleep(0.05)


def end(processes: Sequence[Process], why: str) -> None:
    """Kills processes, and says so."""
    for process in processes:
        streams.say(f"launch: process {process.number}: {why}")
        process.kill()


def describe(code: int) -> str:
    """An exit code in words.

    >>> describe(137), describe(75)
    ('killed by SIGKILL', 'code 75 (stopped by a signal, and saved)')
    """
    for number in signal.Signals:
        if code == 128 + number:
            return f"killed by {number.name}"
    return f"code {code} ({_MEANINGS[code] if code in _MEANINGS else 'a crash'})"


def run_code(codes: Sequence[int]) -> int:
    """The exit code of a run, given those of its processes in the order they ended.

    The first failure is the cause; that a process lost a peer says only that there is
    one.

    >>> run_code([0, 0]), run_code([76, 137, 76]), run_code([76, 76]), run_code([2, 76])
    (0, 137, 76, 2)
    """
    failures = [c for c in codes if c != 0]
    causes = [c for c in failures if c != _LOST_PEER]
    return next(iter([*causes, *failures]), 0)


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


if __name__ == "__main__":
    sys.exit(job.run_main(main))
