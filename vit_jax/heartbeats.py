"""Whether the other processes of a run live, and what they say of themselves.

Each process sends a datagram a second to each other one, from a thread, and judges by
itself whom it has not heard: no process and no service has to live for that. A beat
says where the loop is, so that one who is alive and never moves is found too, and the
last beats of a process say that, and why, it leaves. What is not signed by a process of
this run is dropped unread (`vit_jax.authentication`).
"""

import contextlib
import dataclasses
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vit_jax import processes
from vit_jax.authentication import MAX_DATAGRAM, Datagrams
from vit_jax.errors import NonFiniteLossError, PeerLost, Preempted

Address = tuple[str, int]

# Exit codes with which all processes end alike, by agreement.
ORDERLY = (0, NonFiniteLossError.exit_code, Preempted.exit_code)

_LAST_BEATS, _LAST_BEATS_APART = 3, 0.02  # datagrams may be lost
# Characters of a reason, of which one may take twelve bytes as JSON: the most that fit.
_MOST_REASON = (2000, 600, 200)
# A process says goodbye before it ends; its last beats may still be under way.
_GOODBYE_SECONDS = 3.0


@dataclasses.dataclass
class Beat:
    """What a process says of itself.

    Attributes:
      process: its number.
      step: the newest step that its loop has begun.
      ticks: grows with each step, each batch of an evaluation and each meeting.
      signalled: whether a signal asked it to stop.
      left: the exit code with which it leaves, or None.
      reason: why it leaves.
      shared: whether all processes come to the same end, and none is missing.
    """

    process: int
    step: int = 0
    ticks: int = 0
    signalled: bool = False
    left: int | None = None
    reason: str = ""
    shared: bool = False

    @property
    def orderly(self) -> bool:
        """Whether it leaves as all others do, sooner or later."""
        return self.left is not None and (self.shared or self.left in ORDERLY)


@dataclasses.dataclass
class Peer:
    """Another process, as this one knows it.

    Attributes:
      host: its name.
      addresses: where it may be reached.
      beat: its newest.
      heard: when that came, by this process's monotonic clock in seconds.
      moved: when its ticks last grew.
      known: whether any beat has come.
      identity: of the process, for the operating system; None if it is not known.
    """

    host: str
    addresses: list[Address]
    beat: Beat
    heard: float
    moved: float
    known: bool = False
    identity: processes.Identity | None = None

    @property
    def name(self) -> str:
        return f"process {self.beat.process} ({self.host})"

    def state(self) -> processes.State:
        """What the operating system says; "unknown" of a process of another machine."""
        return "unknown" if self.identity is None else processes.state(self.identity)

    def update(self, beat: Beat, now: float) -> None:
        """Takes a beat; older ones than the newest may still arrive."""
        if self.beat.left is not None or beat.ticks < self.beat.ticks:
            return
        if beat.ticks > self.beat.ticks:
            self.moved = now
        self.beat, self.heard, self.known = beat, now, True


def verdict(
    me: Beat, peers: Iterable[Peer], now: float, *, silent: float, stalled: float
) -> str | None:
    """Who is missing, and since when; None while all is well.

    Args:
      me: this process.
      peers: the others.
      now: see `Peer`.
      silent: seconds without a beat after which a process is lost; but not one that
        runs on this machine, which is only short of processor time, and sooner one that
        has ended on this machine.
      stalled: seconds without progress after which one that others wait for is lost.
    """
    peers = list(peers)
    watched = [peer for peer in peers if peer.beat.left is None]
    for peer in peers:
        if peer.beat.left == PeerLost.exit_code:
            return peer.beat.reason  # it was the first to know
        if peer.beat.left is not None and not peer.beat.orderly:
            return (
                f"{peer.name} left with exit code {peer.beat.left} "
                f"{after(peer.beat.step)}: {peer.beat.reason}"
            )
    for peer in watched:
        if now - peer.heard > min(silent, _GOODBYE_SECONDS) and peer.state() == "ended":
            return (
                f"{peer.name} has ended without a word {after(peer.beat.step)}: it was "
                "killed, or crashed"
            )
    # What cuts off one may cut off more: name those about to be missed as well.
    quiet = [peer for peer in watched if now - peer.heard > 0.8 * silent]
    lost = [peer for peer in quiet if peer.state() != "runs"]
    if any(now - peer.heard > silent for peer in lost):
        names = " and ".join(f"{p.name} {after(p.beat.step)}" for p in lost)
        hint = "; do UDP datagrams pass between the hosts?"
        never = "" if any(peer.known for peer in lost) else hint
        return f"no sign of life for {silent:g} s from {names}{never}"
    for peer in peers:
        if me.ticks > peer.beat.ticks and now - peer.moved > stalled:
            return (
                f"{peer.name} made no progress for {stalled:g} s "
                f"{after(peer.beat.step)}, and this process waits for it"
            )
    return None


def after(step: int) -> str:
    """Where a loop stands, in words.

    >>> after(17), after(0)
    ('since step 17', 'before its first step')
    """
    return f"since step {step}" if step else "before its first step"


class Heartbeats:
    """Sends this process's beats and listens to those of the others, in a thread."""

    def __init__(
        self,
        me: Beat,
        peers: Mapping[int, Peer],
        sock: socket.socket,
        *,
        datagrams: Datagrams,
        silent: float,
        stalled: float,
        signalled: Callable[[], bool],
        on_loss: Callable[[str], Any],
    ) -> None:
        """Prepares; `start` begins.

        Args:
          me: of this process; the loop writes its step and ticks.
          peers: by number; nobody counts as silent before `silent` has passed.
          sock: a UDP socket that the others know the address of.
          datagrams: signs what is sent, and tells what is of this run.
          silent: see `verdict`.
          stalled: see `verdict`.
          signalled: asked before each beat.
          on_loss: called with a verdict, once, in the thread.
        """
        self.me, self.peers = me, peers
        self._sock, self._datagrams = sock, datagrams
        self._silent, self._stalled = silent, stalled
        self._signalled, self._on_loss = signalled, on_loss
        self._interval = min(1.0, silent / 10)

    def start(self) -> None:
        threading.Thread(target=self._loop, daemon=True, name="heartbeats").start()

    def said(self, what: Callable[[Beat], bool]) -> bool:
        """Whether this is true of the newest beat of any other process."""
        return any(what(peer.beat) for peer in self.peers.values())

    def say_goodbye(self, code: int, reason: str, *, shared: bool = False) -> None:
        """Tells the others that this process leaves, and why; `shared`: see `Beat`."""
        self.me.reason, self.me.shared = reason, shared
        self.me.left = code
        for _ in range(_LAST_BEATS):
            self._send()
            time.sleep(_LAST_BEATS_APART)

    def outlast(self) -> None:
        """Waits until all others have left, or have been silent for too long."""
        while any(
            peer.beat.left is None and time.monotonic() - peer.heard < self._silent
            for peer in self.peers.values()
        ):
            time.sleep(0.02)

    def _loop(self) -> None:
        beaten = time.monotonic()
        while self.me.left is None or self.me.orderly:
            self._send()
            self._receive(self._interval)
            now = time.monotonic()
            paused = now - beaten - self._interval
            if paused > self._interval:
                # This process was stopped itself, so it could not hear the others.
                for peer in self.peers.values():
                    peer.heard, peer.moved = peer.heard + paused, peer.moved + paused
            beaten = now
            if self.me.left is not None:
                continue
            lost = verdict(
                self.me,
                self.peers.values(),
                now,
                silent=self._silent,
                stalled=self._stalled,
            )
            if lost is not None:
                self._on_loss(lost)
                return

    def _send(self) -> None:
        self.me.signalled = self.me.signalled or self._signalled()
        content, number = (
            encode(self.me, self._datagrams.room()),
            self._datagrams.next(),
        )
        for process, peer in self.peers.items():
            if peer.beat.left is not None:
                continue
            data = self._datagrams.seal(content, receiver=process, number=number)
            for address in peer.addresses:
                with contextlib.suppress(OSError):  # no route now: silence will tell
                    self._sock.sendto(data, address)

    def _receive(self, seconds: float) -> None:
        """Takes the beats that come within so many seconds."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                self._sock.settimeout(left)
                data, address = self._sock.recvfrom(MAX_DATAGRAM + 1)
            except TimeoutError:
                return
            except OSError:  # the system passes on what became of one that was sent
                time.sleep(min(left, _LAST_BEATS_APART))
                continue
            if (opened := self._datagrams.open(data)) is None:
                continue
            sender, content = opened
            beat = decode(content)
            if beat is None or beat.process != sender or sender not in self.peers:
                continue
            # It can be reached where its beats come from, whatever it said itself.
            peer = self.peers[sender]
            peer.addresses = [address[:2]]
            peer.update(beat, time.monotonic())


def encode(beat: Beat, room: int) -> bytes:
    """A beat as bytes, its reason cut so that they are at most `room`."""
    for most in _MOST_REASON:
        short = dataclasses.replace(beat, reason=beat.reason[:most])
        data = json.dumps(dataclasses.asdict(short)).encode()
        if len(data) <= room:
            return data
    raise AssertionError("a beat is longer than a datagram")


def decode(data: bytes) -> Beat | None:
    """The beat that `encode` has written; None if it is of another version."""
    try:
        fields = json.loads(data)
        beat = Beat(**fields)
    except (ValueError, TypeError, RecursionError):
        return None
    whole = all(type(n) is int for n in (beat.process, beat.step, beat.ticks))
    whole = whole and (beat.left is None or type(beat.left) is int)
    whole = whole and type(beat.signalled) is type(beat.shared) is bool
    return beat if whole and type(beat.reason) is str else None
