"""A run that everything befalls ends as the run that nothing did.

Signals, lost and hanging processes, a full disk and a lost directory come in an order
and at moments that the seed decides. After each the same command goes on.
"""

import contextlib
import functools
import os
import random
import re
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
from tests.faults import SHARED, Disk, Start, leaked, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
SEED = int(os.environ.get("VIT_JAX_FAULTS_SEED", "1"))
ARGS = (
    f"--config={cli.EVERYTHING}",
    "--config.evals.test.every=20",
    "--config.evals.test.split=test[:64]",
    "--config.checkpoint.every=4",
)
TWO = ("--processes=2", "--grace=8", "--config.peer_timeout=6")
# What a process ends with of which nothing was asked: codes of vit_jax.errors, and
# 128 + SIGKILL, which a launcher hands on.
DOCUMENTED = {0, 71, 75, 76, 128 + signal.SIGKILL}
# One of each main kind, fewest starts: the first two end nothing.
SLICE = ["SIGUSR1", "SIGSTOP", "worker SIGKILL", "full", "renamed", "SIGTERM"]
OF_ONE = {
    "SIGKILL": 13,
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
    "renamed": 3,
}
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
    "renamed": 1,
}
assert (sum(OF_ONE.values()), sum(OF_TWO.values())) == (60, 20)


def deck(counts: dict[str, int]) -> list[str]:
    cards = [kind for kind, count in counts.items() for _ in range(count)]
    random.Random(SEED).shuffle(cards)
    return cards


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


def strike(start: Start, kind: str, disk: Disk, draw: random.Random) -> set[int]:
    """Lets it happen; the exit codes that are right, or none if the run goes on."""
    checkpoints = start.workdir / "checkpoints"
    whom, _, what = kind.rpartition(" ")
    victims = {"launcher": lambda: [start.process.pid], "worker": start.workers}
    pids = (victims[whom] if whom in victims else start.mains)()
    if kind in ("full", "read-only", "renamed"):
        if kind == "full":
            disk.fill(start.mains())
        else:
            (disk.forbid if kind == "read-only" else disk.rename)(checkpoints)
        return {2}
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
        return {75}
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
        return {71}
    return {-number} if number == signal.SIGKILL else {75, -number}


def draw_moment(
    start: Start, kind: str, draw: random.Random
) -> tuple[str, Callable[[], Any]]:
    """When the next thing happens: in words, and a function that says it is time."""
    when = draw.choice(["time", "line", "line", "line", "save"])
    seconds = time.monotonic() + draw.uniform(0, 10)
    line = start.lines() + draw.randint(1, 5)
    if when == "save":
        return when, lambda: start.temporary() - start.half_written
    # A start looks at its directories once: what befalls them comes in mid-run.
    if when == "time" and kind not in ("full", "read-only", "renamed"):
        return when, lambda: time.monotonic() > seconds
    return f"line {line}", lambda: start.lines() >= line


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
        if kind.startswith("worker") and not start.reaches(start.workers):
            break
        when, moment = draw_moment(start, kind, draw)
        if not start.reaches(moment):
            break
        cards.pop()
        seconds = time.monotonic() - start.began
        print(
            f"{kind} ({when}) after {seconds:.1f} s, at line {start.lines()}",
            flush=True,
        )
        late = start.lines() > start.steps - 8  # it may end before it is noticed
        right = strike(start, kind, disk, draw)
        right |= {0} if right and late else set()
    code, output = start.end()
    disk.repair()
    print(f"  ended with {code}", *output.splitlines()[-2:], sep="\n    ", flush=True)
    # A signal that comes before Python heeds it ends the process, as it does any.
    right = right or (DOCUMENTED if start.launched else {0, -signal.SIGUSR1})
    wrong = {
        f"its code is {code}, not of {right}": code not in right,
        "there is a traceback": "Traceback" in without_spawning(output, code),
        "there is a warning": "leaked" in output and code > 0,
        "it does not say what to do": code == 75
        and "run the same command" not in output,
        "there is not one error": code in (2, 71)
        and output.count("error: ") != 1
        and not start.launched,  # each process has its own
    }
    found += [f"after {kind}, {what}:\n{output}" for what in wrong if wrong[what]]
    return code


def without_spawning(output: str, code: int) -> str:
    """Without what Python says in a worker whose parent was killed while it began."""
    if code != -signal.SIGKILL:
        return output
    its = (
        r"Traceback \(most recent call last\):\n(?:  .*\n)+.*pickle data was truncated"
    )
    return re.sub(its, "", output)


def campaign(
    cards: list[str], disk: Disk, steps: int, *args: str, launched: bool = False
) -> None:
    """Deals out all cards, over as many runs as it takes, and compares each run."""
    before = {path.name for path in SHARED.iterdir()}
    start = functools.partial(Start, [*ARGS, *args], steps, launched)
    whole = start(disk.root / "whole")
    disk.spoilt.callback(whole.kill)
    code, output = whole.end()
    assert code == 0, output
    assert whole.lines() == steps
    draw, runs, found = random.Random(SEED), 0, list[str]()
    while cards:
        workdir, code = disk.root / str(runs), None
        while code != 0:
            begun = start(workdir)
            disk.spoilt.callback(begun.kill)
            code = disturb(begun, cards, disk, draw, found)
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
    campaign(SLICE[::-1], disk, 40, "--config.data.num_workers=1")


@pytest.mark.campaign
@pytest.mark.timeout(7200)
def test_a_campaign_against_one_process(disk: Disk) -> None:
    campaign(deck(OF_ONE), disk, 60, "--config.data.num_workers=2")


@pytest.mark.campaign
@pytest.mark.timeout(7200)
def test_a_campaign_against_two_processes(disk: Disk) -> None:
    args = "--config.data.num_workers=1", *TWO
    campaign(deck(OF_TWO), disk, 40, *args, launched=True)
