"""Who is missing: the rule with a clock of our own, and over real datagrams."""

import contextlib
import dataclasses
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vit_jax import processes
from vit_jax.authentication import Datagrams
from vit_jax.heartbeats import Beat, Heartbeats, Peer, decode, encode, verdict


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


def test_one_that_comes_to_a_common_end_first_is_not_missed() -> None:
    """The others, slower, end with the same message and exit code."""
    alone, shared = (peer(1, left=2, reason="why", shared=s) for s in (False, True))
    assert "left with exit code 2" in str(judge(alone, now=1))
    assert judge(shared, now=1000, ticks=0) is None
    assert decode(encode(shared.beat, 1000)) == shared.beat


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


KEY = b"of this run"


@dataclasses.dataclass
class Listening:
    """Process 0, which hears of process 1 what the test sends."""

    beats: Heartbeats
    there: Peer
    lost: list[str]
    done: threading.Event


def listening(mine: socket.socket, other: socket.socket, silent: float) -> Listening:
    now = time.monotonic()
    there = Peer("there", [other.getsockname()], Beat(1), heard=now, moved=now)
    lost: list[str] = []
    done = threading.Event()
    beats = Heartbeats(
        Beat(0, step=3),
        {1: there},
        mine,
        datagrams=Datagrams(KEY, 0),
        silent=silent,
        stalled=60.0,
        signalled=lambda: False,
        on_loss=lambda verdict: (lost.append(verdict), done.set()),
    )
    beats.start()
    other.settimeout(5)
    return Listening(beats, there, lost, done)


def signed(beat: Beat, number: int, key: bytes = KEY, sender: int = 1) -> bytes:
    content = encode(beat, Datagrams.room())
    return Datagrams(key, sender).seal(content, receiver=0, number=number)


def test_over_datagrams(sockets: list[socket.socket]) -> None:
    """The other process is played by the test: it beats, moves off, and ends."""
    mine, other, elsewhere = sockets
    run = listening(mine, other, silent=1.0)
    sender, content = Datagrams(KEY, 1).open(other.recv(4096)) or (None, b"")
    told = json.loads(content)
    assert (sender, told["process"], told["step"]) == (0, 0, 3)
    # Noise, another run, and a process that is not there, say nothing of this one.
    there = mine.getsockname()
    stop = Beat(1, signalled=True)
    for data in (
        b"\xff",
        signed(stop, 1, key=b"of another run"),
        signed(stop, 2, sender=7),
        Datagrams(KEY, 1).seal(b"{}", receiver=0, number=3),
        json.dumps(dataclasses.asdict(stop)).encode(),
    ):
        other.sendto(data, there)
    # A beat from another address: it is answered there.
    elsewhere.sendto(signed(Beat(1, step=2, ticks=2), 4), there)
    elsewhere.settimeout(5)
    assert Datagrams(KEY, 1).open(elsewhere.recv(4096)) is not None
    assert not run.beats.said(lambda beat: beat.signalled)
    assert run.done.wait(10)
    assert run.lost == ["no sign of life for 1 s from process 1 (there) since step 2"]


def test_what_came_before_does_nothing(sockets: list[socket.socket]) -> None:
    """Sent again, from wherever, it neither keeps a process alive nor is answered."""
    mine, other, elsewhere = sockets
    run = listening(mine, other, silent=1.0)
    beat = signed(Beat(1, step=2, ticks=2), 5)
    other.sendto(beat, mine.getsockname())
    wait_until(lambda: run.there.known)
    heard, began = run.there.heard, time.monotonic()
    while not run.done.wait(0.05):
        elsewhere.sendto(beat, mine.getsockname())
        elsewhere.sendto(signed(Beat(1, step=1, ticks=2), 4), mine.getsockname())
        assert time.monotonic() - began < 10
    assert run.there.heard == heard
    assert run.there.addresses == [other.getsockname()]
    assert run.lost == ["no sign of life for 1 s from process 1 (there) since step 2"]


def test_nothing_from_outside_ends_it(sockets: list[socket.socket]) -> None:
    """Noise of all lengths, and good datagrams that were changed, in any mixture."""
    mine, other, elsewhere = sockets
    run = listening(mine, other, silent=30.0)
    there, random_ = mine.getsockname(), random.Random(0)
    good = signed(Beat(1, left=2, reason="no"), 1)
    hostile = [b"", b"[" * 60_000, b"9" * 5000, bytes(65_000), good[:-1], good + b" "]
    for _ in range(3000):
        changed = bytearray(good)
        changed[random_.randrange(len(good))] ^= 1 << random_.randrange(8)
        hostile += [bytes(changed), random_.randbytes(random_.randrange(300))]
    for i, data in enumerate(hostile):
        elsewhere.sendto(data, there)
        if i % 50 == 0:
            time.sleep(0.001)  # so that they are read, and not dropped by the kernel
    assert not run.there.known
    number = 1
    while not run.there.known:  # it still listens
        other.sendto(signed(Beat(1, step=9), number), there)
        number += 1
        time.sleep(0.01)
        assert number < 1000
    assert run.there.beat.step == 9
    assert run.lost == []
    run.beats.me.left = 1  # ends the thread


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_reason_of_any_length_fits_a_datagram() -> None:
    for letter in ("x", "\0", "\udcff", "\U0001f600"):
        beat = Beat(1, step=2**60, ticks=2**60, left=1, reason=letter * 5000)
        found = decode(encode(beat, Datagrams.room()))
        assert found is not None and 200 <= len(found.reason) <= 2000
        assert found == dataclasses.replace(beat, reason=found.reason)


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 4000,
        b"{}",
        b"null",
        b'{"process": "1"}',
        b'{"process": 1, "step": 1e400}',
        b'{"process": 1, "left": true}',
        b'{"process": 1, "news": 1}',
        b"\xff",
    ],
)
def test_beats_of_another_version_are_none(data: bytes) -> None:
    assert decode(data) is None


def test_the_first_to_know_is_believed() -> None:
    gone = peer(1, ticks=5, left=76, reason="no sign of life from process 2")
    assert judge(gone, now=1) == "no sign of life from process 2"
