"""The way to JAX's coordination service: a gate in process 0, a relay in the others.

JAX's processes each hold a connection to that service. It trusts whoever connects: a
second process with the same number ends all of them, and so does a stranger. So it
listens to its own machine alone, and process 0 lets connections through to it once they
have shown that they are of this run, each number once.

The C++ side of the others aborts a process the moment its connection is closed, without
a word to Python. So they connect to a relay in their own process instead. When process
0 is gone the relay keeps its end open and silent, and `vit_jax.heartbeats` says who is
missing.
"""

import contextlib
import os
import secrets
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

from vit_jax.authentication import NONCE_BYTES, TAG_BYTES, same, tag

Answer = Literal["welcome", "taken", "stranger"]

_RETRY_SECONDS = 0.2
_HELLO_SECONDS = 10.0  # that a stranger may take to say who it is
_MOST_STRANGERS = 64  # that may be asked at the same time
_MOST_CONNECTIONS = 16  # of one process
# One message each way, all of fixed length: the gate's nonce; magic bytes, number,
# nonces of the process and of the connection, and a tag; the answer, and a tag.
_MAGIC = b"vit_jax join 1\n\0"
_JOIN = struct.Struct(f">16sI{NONCE_BYTES}s{NONCE_BYTES}s{TAG_BYTES}s")
_ANSWERS: dict[bytes, Answer] = {b"W": "welcome", b"T": "taken", b"S": "stranger"}
_instance = secrets.token_bytes(NONCE_BYTES)  # tells this process from any other
_held: list[socket.socket] = []  # never closed, not even by the garbage collector


class Gate:
    """Takes the connections of a run's processes, and passes them to JAX's service."""

    def __init__(
        self, server: socket.socket, service: int, num_processes: int, key: bytes
    ) -> None:
        """Prepares; `start` begins, and it serves until the process ends.

        Args:
          server: that listens where the others look for process 0.
          service: port of this machine that JAX's service listens at, soon.
          num_processes: of the run; process 0 itself does not come this way.
          key: what the launcher gave to all processes, b"" if it gave nothing.
        """
        self._server, self._service = server, service
        self._count, self._key = num_processes, key
        self._lock = threading.Lock()
        self._asked = threading.BoundedSemaphore(_MOST_STRANGERS)
        self._members: dict[int, tuple[bytes, int]] = {}  # instance and connections
        self.interfaces: set[str] = set()  # own addresses that they have come to

    def start(self) -> None:
        _thread(self._serve)

    def _serve(self) -> None:
        while True:
            try:
                far, _ = self._server.accept()
            except OSError:  # no file descriptor is left, or it has gone already
                time.sleep(_RETRY_SECONDS)
                continue
            if self._asked.acquire(blocking=False):
                _thread(self._take, far)
            else:
                far.close()

    def _take(self, far: socket.socket) -> None:
        """Asks who it is, and connects it or closes it."""
        try:
            answer = self._ask(far)
        except OSError:
            answer = None
        finally:
            self._asked.release()
        if answer != "welcome":
            far.close()
            return
        far.settimeout(None)
        _join_ends(far, "127.0.0.1", self._service)

    def _ask(self, far: socket.socket) -> Answer | None:
        """The answer that was given; None if it did not speak this language."""
        far.settimeout(_HELLO_SECONDS)
        nonce = secrets.token_bytes(NONCE_BYTES)
        far.sendall(nonce)
        if (said := _read(far, _JOIN.size)) is None:
            return None
        magic, number, instance, their_nonce, given = _JOIN.unpack(said)
        if magic != _MAGIC:
            return None
        expected = tag(self._key, nonce, said[:-TAG_BYTES])
        known = same(given, expected) and 0 < number < self._count
        answer: Answer = self._admit(number, instance) if known else "stranger"
        letter = next(byte for byte, word in _ANSWERS.items() if word == answer)
        if answer == "welcome":
            self.interfaces.add(far.getsockname()[0])
        far.sendall(letter + tag(self._key, their_nonce, letter))
        return answer

    def _admit(self, number: int, instance: bytes) -> Answer:
        with self._lock:
            first, count = self._members.get(number, (instance, 0))
            if first != instance or count == _MOST_CONNECTIONS:
                return "taken"
            self._members[number] = instance, count + 1
        return "welcome"


def start(
    host: str,
    port: int,
    process_id: int,
    key: bytes,
    on_refusal: Callable[[Answer], Any] = lambda answer: None,
) -> str:
    """Relays connections of this process to HOST:PORT, where a `Gate` is.

    A connection that cannot be made yet, or is refused, is tried again until it can.

    Args:
      host: of process 0.
      port: of its gate.
      process_id: number of this process.
      key: see `Gate`.
      on_refusal: called each time with the answer, in a thread: "taken" if another
        process has this number, "stranger" if the keys differ.

    Returns:
      The address, HOST:PORT, that JAX may connect to. It serves until the process ends.
    """
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                near, _ = server.accept()
            except OSError:
                time.sleep(_RETRY_SECONDS)
                continue
            if len(_held) < 2 * _MOST_CONNECTIONS and _is_own(near):
                _held.append(near)
                _thread(_connect, near, (host, port), process_id, key, on_refusal)
            else:
                near.close()

    _thread(serve)
    return f"127.0.0.1:{server.getsockname()[1]}"


def _connect(
    near: socket.socket,
    address: tuple[str, int],
    process_id: int,
    key: bytes,
    on_refusal: Callable[[Answer], Any],
) -> None:
    while True:
        with contextlib.suppress(OSError):  # process 0 may not have started yet
            far = socket.create_connection(address, timeout=_HELLO_SECONDS)
            answer = None
            try:
                answer = _introduce(far, process_id, key)
            finally:
                if answer != "welcome":
                    far.close()
            if answer == "welcome":
                break
            if answer is not None:
                on_refusal(answer)
        time.sleep(_RETRY_SECONDS)
    far.settimeout(None)
    _pump_both(near, far)


def _introduce(far: socket.socket, process_id: int, key: bytes) -> Answer | None:
    """Says to a gate who this is; its answer, None if it is no gate of ours."""
    if (theirs := _read(far, NONCE_BYTES)) is None:
        return None
    own = secrets.token_bytes(NONCE_BYTES)
    said = _JOIN.pack(_MAGIC, process_id, _instance, own, bytes(TAG_BYTES))
    said = said[:-TAG_BYTES]
    far.sendall(said + tag(key, theirs, said))
    answered = _read(far, 1 + TAG_BYTES)
    if answered is None or answered[:1] not in _ANSWERS:
        return None
    whole = same(answered[1:], tag(key, own, answered[:1]))
    return _ANSWERS[answered[:1]] if whole else "stranger"


def _read(sock: socket.socket, size: int) -> bytes | None:
    """So many bytes, within `_HELLO_SECONDS` in all; None if there are not as many."""
    data, end = b"", time.monotonic() + _HELLO_SECONDS
    while len(data) < size:
        if (left := end - time.monotonic()) <= 0:
            return None
        sock.settimeout(left)
        if not (block := sock.recv(size - len(data))):
            return None
        data += block
    sock.settimeout(_HELLO_SECONDS)
    return data


def _is_own(near: socket.socket) -> bool:
    """Whether a connection over the loopback comes from this very process.

    The kernel knows the socket at its other end; without /proc it is believed.
    """
    if sys.platform != "linux":
        return True
    there, here = (_in_proc(name) for name in (near.getpeername(), near.getsockname()))
    inodes = set()
    for table in ("tcp", "tcp6"):  # a socket of IPv6 reaches ::ffff:127.0.0.1 as well
        with contextlib.suppress(OSError), open(f"/proc/self/net/{table}") as file:
            rows = [line.split() for line in file]
            inodes |= {
                row[9]
                for row in rows
                if row[1].endswith(there) and row[2].endswith(here)
            }
    links = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that lists them is closed by now
            links.append(os.readlink(f"/proc/self/fd/{name}"))
    return any(f"socket:[{inode}]" in links for inode in inodes)


def _in_proc(name: tuple[str, int]) -> str:
    """An IPv4 address as /proc/net/tcp has it: a number in the machine's byte order."""
    number = int.from_bytes(socket.inet_aton(name[0]), sys.byteorder)
    return f"{number:08X}:{name[1]:04X}"


def _join_ends(source: socket.socket, host: str, port: int) -> None:
    """Connects what has come to a service that may not have started yet."""
    while True:
        with contextlib.suppress(OSError):
            sink = socket.create_connection((host, port), timeout=_HELLO_SECONDS)
            break
        time.sleep(_RETRY_SECONDS)
    sink.settimeout(None)
    _held.append(source)
    _pump_both(source, sink)


def _pump_both(near: socket.socket, far: socket.socket) -> None:
    _held.append(far)
    for sock in (near, far):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _thread(_pump, near, far)
    _pump(far, near)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Copies until either end breaks, and then closes neither: see above."""
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)


def _thread(function: Callable[..., None], *args: Any) -> None:
    threading.Thread(target=function, args=args, daemon=True, name="relay").start()
