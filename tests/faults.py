"""Runs that faults befall: their processes, and the disk that they write to."""

import contextlib
import dataclasses
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests import cli
from tests.launch.test_local import mains

SHARED = Path("/dev/shm")


@dataclasses.dataclass
class Disk:
    """Where workdirs are; what can be done to it is put right by `repair`."""

    root: Path
    mounted: bool  # a small file system of its own
    spoilt: contextlib.ExitStack = dataclasses.field(
        default_factory=contextlib.ExitStack
    )

    def fill(self, pids: list[int]) -> None:
        if not self.mounted:  # no file that these processes write can grow further
            for pid in pids:
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (20_000, 20_000))
            return
        filler = self.root / "filler"
        self.spoilt.callback(filler.unlink)
        with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def forbid(self, directory: Path) -> None:
        if not self.mounted:
            directory.chmod(0o555)
            self.spoilt.callback(directory.chmod, 0o755)
            return
        subprocess.check_call(["mount", "--bind", directory, directory])
        self.spoilt.callback(subprocess.check_call, ["umount", "--lazy", directory])
        forbid = ["mount", "-o", "remount,bind,ro", directory]
        # Not while a file in it is open for writing.
        wait_until(lambda: subprocess.call(forbid) == 0, "it stays busy")

    def rename(self, directory: Path) -> None:
        away = directory.with_name("away")
        directory.rename(away)
        self.spoilt.callback(put_back, away, directory)

    def repair(self) -> None:
        self.spoilt.close()


def put_back(away: Path, directory: Path) -> None:
    """A save that was under way may have made the directory again, and failed."""
    if directory.exists():
        assert not [path for path in directory.iterdir() if path.name.isdigit()]
        shutil.rmtree(directory)
    away.rename(directory)


class Start:
    """One start of the command, in a session of its own."""

    def __init__(
        self, args: list[str], steps: int, launched: bool, workdir: Path
    ) -> None:
        self.workdir, self.launched, self.steps = workdir, launched, steps
        self.log = workdir.parent / "output.txt"
        module = "vit_jax.launch.local" if launched else "vit_jax.main"
        with open(self.log, "w") as output, heeding(signal.SIGHUP):
            self.process = cli.start(
                *args,
                f"--config.total_steps={steps}",
                f"--workdir={workdir}",
                module=module,
                group=True,
                stdout=output,
            )
        self.began, self.half_written = time.monotonic(), self.temporary()

    def ended(self) -> bool:
        return self.process.poll() is not None

    def lines(self) -> int:
        path = self.workdir / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def temporary(self) -> set[Path]:
        return set((self.workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))

    def reaches(self, moment: Callable[[], Any]) -> bool:
        """Waits for it; False if the process ends before."""
        until = time.monotonic() + 600
        while not moment():
            if self.ended():
                return False
            assert time.monotonic() < until, f"hangs\n{self.log.read_text()}"
            time.sleep(0.001)
        return not self.ended()

    def mains(self) -> list[int]:
        return mains(self.process) if self.launched else [self.process.pid]

    def workers(self) -> list[int]:
        """What reads data, and waits for the next batch."""
        session = of_session(self.process.pid)
        return [pid for pid in session if b"spawn_main" in command_of(pid)]

    def kill(self) -> None:
        for pid in of_session(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def end(self) -> tuple[int, str]:
        """Its exit code and output, when all that it has started is gone as well."""
        self.process.wait(timeout=600)
        wait_until(lambda: not of_session(self.process.pid), "processes are left")
        return self.process.returncode, self.log.read_text()


@contextlib.contextmanager
def heeding(number: signal.Signals) -> Iterator[None]:
    """What is started within does not ignore a signal, as `nohup` asks for."""
    before = signal.signal(number, signal.SIG_DFL)
    yield
    signal.signal(number, before)


def of_session(number: int) -> list[int]:
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == number and fields[0] != "Z":
                found.append(int(path.name))
    return found


def command_of(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def wait_until(condition: Callable[[], Any], otherwise: str) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until, otherwise
        time.sleep(0.05)


def leaked(before: set[str]) -> set[str]:
    """Names in /dev/shm that are new and that no process uses (others may run)."""
    found = {path.name for path in SHARED.iterdir()} - before
    for path in Path("/proc").glob("[0-9]*/maps") if found else ():
        with contextlib.suppress(OSError):
            used = path.read_text()
            found = {name for name in found if f"/dev/shm/{name}" not in used}
    return found
