"""Who is missing: the rule with a clock of our own, and over real datagrams."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vit_jax import processes
from vit_jax.heartbeats import Beat, Heartbeats, Peer, verdict


def peer(process: int, *, heard: float = 0, moved: float = 0, **beat: Any) -> Peer:
    return Peer(
        f"host{process}",
        [],
        Beat(process, **beat),
        heard=heard,
        moved=moved,
        known=True,
    )


def judge(*peers: Peer, now: float, ticks: int = 5) -> str | None:
    me = Beat(0, step=ticks, ticks=ticks)
    return verdict(me, peers, now, silent=10, stalled=100)


def test_a_silent_process_is_lost() -> None:
    peers = peer(1, heard=95, ticks=5), peer(2, heard=89, ticks=5, step=4)
    assert judge(*peers, now=99) is None
    message = judge(*peers, now=99.5)
    assert message == "no sign of life for 10 s from process 2 (host2) since step 4"


def test_all_behind_a_cut_link_are_named() -> None:
    message = judge(peer(1, heard=1, ticks=5), peer(2, heard=0, ticks=5), now=10.5)
    assert message is not None
    assert "process 1 (host1)" in message
    assert "process 2 (host2)" in message


def test_one_never_heard_hints_at_the_network() -> None:
    unheard = Peer("host1", [], Beat(1), heard=0, moved=0)
    assert "UDP" in str(judge(unheard, now=11))


def test_one_that_lives_but_never_moves_is_lost() -> None:
    slow = peer(1, heard=149, moved=50, ticks=4, step=4)
    assert judge(slow, now=149) is None  # slow, not lost
    assert "made no progress for 100 s since step 4" in str(judge(slow, now=151))
    # Nobody waits for one that is as far: all may be compiling, or saving.
    assert judge(peer(1, heard=149, moved=0, ticks=5), now=151) is None
    assert judge(peer(1, heard=149, moved=0, ticks=6), now=151) is None


@pytest.mark.parametrize("code, ends", [(0, False), (75, False), (2, True), (1, True)])
def test_one_that_leaves_is_lost_unless_all_do(code: int, ends: bool) -> None:
    gone = peer(1, ticks=5, left=code, reason="the disk is full")
    message = judge(gone, now=50)
    assert (message is not None) == ends
    if ends:
        assert f"left with exit code {code}" in str(message)
        assert "the disk is full" in str(message)


def wait_for_state(number: int, letter: str) -> None:
    """Until the kernel says so of a process."""
    for _ in range(6000):
        if f"\nState:\t{letter} " in Path(f"/proc/{number}/status").read_text():
            return
        time.sleep(0.01)
    raise AssertionError(f"process {number} never was in state {letter!r}")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_operating_system_tells_starved_from_dead() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1) as process:
        started = Path(f"/proc/{process.pid}/stat").read_text().split()[21]
        identity = processes.Identity(processes.own().machine, process.pid, started)
        silent = peer(1, heard=0, ticks=5, step=4)
        silent.identity = identity
        # However long it is silent: that it hangs is another rule's matter.
        assert judge(silent, now=50) is None
        assert "made no progress" in str(judge(silent, now=101, ticks=6))

        process.send_signal(signal.SIGSTOP)
        wait_for_state(process.pid, "T")
        assert "no sign of life" in str(judge(silent, now=11))
        process.send_signal(signal.SIGCONT)
        wait_for_state(process.pid, "S")
        assert judge(silent, now=11) is None

        process.kill()
        wait_for_state(process.pid, "Z")
        assert judge(silent, now=2) is None  # its last beats may be under way
        message = judge(silent, now=4)
        assert message is not None and "ended without a word since step 4" in message
    assert judge(silent, now=4) == message  # not even a zombie is left


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_numbers_of_other_machines_and_of_earlier_processes_say_nothing() -> None:
    me = processes.own()
    assert processes.state(me) == "runs"
    for changed in ("machine", "started"):
        other = dataclasses.replace(me, **{changed: "another"})
        assert processes.state(other) == {"machine": "unknown"}.get(changed, "ended")
    assert me.pid == os.getpid()
    silent = peer(1, heard=0, ticks=5)
    silent.identity = dataclasses.replace(me, machine="another")
    assert "no sign of life" in str(judge(silent, now=11))


@pytest.fixture
def sockets() -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(3):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind(("127.0.0.1", 0))
            found.append(stack.enter_context(sock))
        yield found


def test_over_datagrams(sockets: list[socket.socket]) -> None:
    """The other process is played by the test: it beats, moves off, and ends."""
    mine, other, elsewhere = sockets
    now = time.monotonic()
    there = Peer("there", [other.getsockname()], Beat(1), heard=now, moved=now)
    lost: list[str] = []
    done = threading.Event()
    beats = Heartbeats(
        Beat(0, step=3),
        {1: there},
        mine,
        run="this run",
        silent=1.0,
        stalled=60.0,
        signalled=lambda: False,
        on_loss=lambda verdict: (lost.append(verdict), done.set()),
    )
    beats.start()
    other.settimeout(5)
    told = json.loads(other.recv(4096))
    assert (told["process"], told["step"], told["run"]) == (0, 3, "this run")
    # Noise, and another run, say nothing of this one.
    other.sendto(b"\xff", mine.getsockname())
    for fields in ({"run": "another"}, {"run": "this run", "process": 7}, {}):
        beat = {"process": 1, "signalled": True} | fields
        other.sendto(json.dumps(beat).encode(), mine.getsockname())
    # A beat from another address: it is answered there.
    beat = {"process": 1, "step": 2, "ticks": 2, "run": "this run"}
    elsewhere.sendto(json.dumps(beat).encode(), mine.getsockname())
    elsewhere.settimeout(5)
    assert json.loads(elsewhere.recv(4096))["process"] == 0
    assert not beats.said(lambda beat: beat.signalled)
    assert done.wait(10)
    assert lost == ["no sign of life for 1 s from process 1 (there) since step 2"]


def test_the_first_to_know_is_believed() -> None:
    gone = peer(1, ticks=5, left=76, reason="no sign of life from process 2")
    assert judge(gone, now=1) == "no sign of life from process 2"
