"""A run that everything befalls ends as the run that nothing did.

Signals, lost and hanging processes, a full disk and a lost directory come in an order
and at moments that the seed decides. After each the same command goes on.
"""

import contextlib
import dataclasses
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import cli
from tests.launch.test_local import mains

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
SEED = int(os.environ.get("VIT_JAX_FAULTS_SEED", "1"))
SHARED = Path("/dev/shm")
TWO = ("--processes=2", "--grace=8", "--config.peer_timeout=6")
# What a process ends with of which nothing was asked: codes of vit_jax.errors, and 128 +
# SIGKILL, which a launcher hands on.
DOCUMENTED = {0, 71, 75, 76, 128 + signal.SIGKILL}
# One of each main kind, fewest starts: the first two end nothing.
SLICE = ["SIGUSR1", "SIGSTOP", "worker SIGKILL", "full", "renamed", "SIGTERM"]
OF_ONE = {
    "SIGKILL": 16,
    "SIGTERM": 6,
    "SIGHUP": 5,
    "SIGINT": 5,
    "SIGUSR1": 5,
    "SIGSTOP": 5,
    "worker SIGKILL": 6,
    "worker SIGSTOP": 3,
    "worker SIGSTOP, SIGTERM": 3,
    "full": 3,
    "read-only": 3,
}
OF_ONE["renamed"] = 60 - sum(OF_ONE.values())
OF_TWO = {
    "SIGKILL": 4,
    "SIGTERM": 2,
    "SIGHUP": 1,
    "SIGUSR1": 1,
    "SIGSTOP": 1,
    "SIGSTOP for good": 2,
    "worker SIGKILL": 2,
    "launcher SIGKILL": 2,
    "launcher SIGTERM": 1,
    "launcher SIGHUP": 1,
    "launcher SIGSTOP": 1,
    "full": 1,
}
OF_TWO["renamed"] = 20 - sum(OF_TWO.values())


def deck(counts: dict[str, int]) -> list[str]:
    cards = [kind for kind, count in counts.items() for _ in range(count)]
    random.Random(SEED).shuffle(cards)
    return cards


@dataclasses.dataclass
class Disk:
    """Where workdirs are; what can be done to it is put right by `repair`."""

    root: Path
    mounted: bool  # a small file system of its own
    spoilt: contextlib.ExitStack = dataclasses.field(
        default_factory=contextlib.ExitStack
    )

    def fill(self, pid: int) -> None:
        if not self.mounted:  # no file of the process grows beyond what it has printed
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (50_000, 50_000))
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
        run = subprocess.check_call
        run(["mount", "--bind", directory, directory])
        self.spoilt.callback(run, ["umount", "--lazy", directory])
        run(["mount", "-o", "remount,bind,ro", directory])

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


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    command = ["mount", "-t", "tmpfs", "-o", "size=100m", "none", tmp_path]
    mounted = os.geteuid() == 0 and subprocess.call(command) == 0
    if not mounted and os.geteuid() == 0:
        pytest.skip("root may write anywhere, and cannot mount a file system here")
    made = Disk(tmp_path, mounted)
    yield made
    made.repair()
    if mounted:
        subprocess.call(["umount", "--lazy", tmp_path])


class Start:
    """One start of the command, in a session of its own."""

    def __init__(self, args: list[str], workdir: Path, launched: bool) -> None:
        self.workdir, self.launched = workdir, launched
        self.log = workdir.parent / "output.txt"
        module = "vit_jax.launch.local" if launched else "vit_jax.main"
        with open(self.log, "w") as output:
            self.process = cli.start(
                *args, f"--workdir={workdir}", module=module, group=True, stdout=output
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
        until = time.monotonic() + 300
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

    def end(self) -> tuple[int, str]:
        """Its exit code and output, when all that it has started is gone as well."""
        self.process.wait(timeout=300)
        wait_until(lambda: not of_session(self.process.pid), "processes are left")
        return self.process.returncode, self.log.read_text()


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


def strike(start: Start, kind: str, disk: Disk, draw: random.Random) -> set[int]:
    """Lets it happen; the exit codes that are right, or none if the run goes on."""
    checkpoints = start.workdir / "checkpoints"
    whom, _, what = kind.rpartition(" ")
    victims = {"launcher": lambda: [start.process.pid], "worker": start.workers}
    pids = (victims[whom] if whom in victims else start.mains)()
    if kind in ("full", "read-only", "renamed"):
        if kind == "full":
            disk.fill(start.process.pid)
        else:
            (disk.forbid if kind == "read-only" else disk.rename)(checkpoints)
        return {0, 2}
    if not pids:  # between two starts of a launcher
        return set()
    pid = draw.choice(pids)
    if kind == "SIGSTOP for good":
        os.kill(pid, signal.SIGSTOP)
        return set()
    if kind == "worker SIGSTOP, SIGTERM":
        os.kill(draw.choice(start.workers()), signal.SIGSTOP)
        time.sleep(draw.uniform(0, 3))
        os.kill(start.process.pid, signal.SIGTERM)
        return {0, 75}
    number = signal.Signals[what]
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
        if number == signal.SIGSTOP:
            time.sleep(draw.uniform(1, 4))
            os.kill(pid, signal.SIGCONT)
    if number in (signal.SIGSTOP, signal.SIGUSR1) or (
        start.launched and whom != "launcher"
    ):
        return set()
    if whom == "worker":
        return {0, 71}
    stopped = {-number} if number == signal.SIGKILL else {75, -number}
    return {0, *stopped}


def disturb(
    start: Start,
    cards: list[str],
    disk: Disk,
    draw: random.Random,
    found: list[str],
) -> int:
    """Lets things happen until it ends; returns its exit code.

    What is wrong with the end is added to `found`: the run can go on all the same.
    """
    right, kind = set[int](), "nothing"
    while cards and not right:
        kind = cards[-1]
        after, line = draw.uniform(0, 10), start.lines() + draw.randint(1, 18)
        began = time.monotonic()
        when = draw.choice(["time", "line", "line", "line", "save"])
        if when == "time" and kind not in ("full", "read-only", "renamed"):
            moment = lambda: time.monotonic() > began + after  # noqa: E731
        elif when == "save":
            moment = lambda: start.temporary() - start.half_written  # noqa: E731
        else:
            moment = lambda: start.lines() >= line  # noqa: E731
        if kind.startswith("worker") and not start.reaches(start.workers):
            break
        if not start.reaches(moment):
            break
        cards.pop()
        seconds = time.monotonic() - start.began
        print(f"{kind} ({when}) after {seconds:.1f} s, at line {start.lines()}")
        right = strike(start, kind, disk, draw)
    code, output = start.end()
    disk.repair()
    print(f"  ended with {code}", *output.splitlines()[-2:], sep="\n    ", flush=True)
    right = right or (DOCUMENTED if start.launched else {0})
    wrong = {
        f"its code is {code}, not of {right}": code not in right,
        "there is a traceback": "Traceback" in output,
        "it does not say what to do": code == 75
        and "run the same command" not in output,
        "there is not one error": code in (2, 71) and output.count("error: ") != 1,
    }
    found += [f"{kind}: {what}:\n{output}" for what in wrong if wrong[what]]
    for what in wrong:
        if wrong[what]:
            print(f"  FOUND: {what}\n{output}", flush=True)
    return code


def campaign(cards: list[str], disk: Disk, *args: str, launched: bool) -> None:
    """Deals out all cards, over as many runs as it takes, and compares each run."""
    before = {path.name for path in SHARED.iterdir()}
    given = [f"--config={cli.EVERYTHING}", *args]
    whole = Start(given, disk.root / "whole", launched)
    code, output = whole.end()
    assert code == 0, output
    steps = whole.lines()
    draw, runs, found = random.Random(SEED), 0, list[str]()
    while cards:
        workdir, code = disk.root / str(runs), None
        while code != 0:
            code = disturb(Start(given, workdir, launched), cards, disk, draw, found)
        assert cli.metric_lines(workdir) == cli.metric_lines(whole.workdir)
        last = [cli.saved_arrays(w, steps) for w in (workdir, whole.workdir)]
        cli.assert_same_bits(*last)
        assert not (workdir / "broken_checkpoints").exists()
        assert "is whole" in cli.run(str(workdir), module="vit_jax.fsck")
        shutil.rmtree(workdir)
        runs += 1
    wait_until(lambda: not leaked(before), f"in /dev/shm: {leaked(before)}")
    assert not found, "\n".join(found)


@pytest.mark.slow
def test_one_of_each_kind(disk: Disk) -> None:
    args = "--config.total_steps=70", "--config.data.num_workers=1"
    campaign(SLICE[::-1], disk, *args, launched=False)


@pytest.mark.campaign
@pytest.mark.timeout(7200)
def test_a_campaign_against_one_process(disk: Disk) -> None:
    args = "--config.total_steps=700", "--config.data.num_workers=2"
    campaign(deck(OF_ONE), disk, *args, launched=False)


@pytest.mark.campaign
@pytest.mark.timeout(7200)
def test_a_campaign_against_two_processes(disk: Disk) -> None:
    args = "--config.total_steps=240", "--config.data.num_workers=1", *TWO
    campaign(deck(OF_TWO), disk, *args, launched=True)
