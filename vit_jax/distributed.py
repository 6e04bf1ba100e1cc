"""Several processes as one run: how they join, meet, and leave.

With one process nothing here does anything.
"""

import contextlib
import dataclasses
import errno
import ipaddress
import json
import os
import secrets
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax
from jax._src.distributed import global_state  # no public name; Orbax uses it too

from vit_jax import authentication, preemption, processes, relay
from vit_jax.cluster import Place
from vit_jax.errors import PeerLost, Preempted, Stop, UserError
from vit_jax.heartbeats import Address, Beat, Heartbeats, Peer

JOIN_SECONDS = 300
# JAX's own limits end a process with no word to Python: they are never to be reached.
_NEVER_SECONDS = 7 * 24 * 3600

_heartbeats: Heartbeats | None = None
_place: Place | None = None
_meetings = 0


@contextlib.contextmanager
def joined(
    place: Place | None, *, peer_timeout: float, stall_timeout: float
) -> Iterator[None]:
    """A run of one or more processes, as a context.

    With more, its end is the end of this process: whatever ends it is told to the
    others, and by one of them if all end alike.

    Args:
      place: of this process; None is a run of one.
      peer_timeout: see `vit_jax.run.Run`.
      stall_timeout: see there.

    Raises:
      UserError: if the port of process 0 is taken, or a host name is not known.
      Preempted: if a signal arrives while the others are waited for.
    """
    for name, value in (("peer", peer_timeout), ("stall", stall_timeout)):
        if value < 1:
            raise UserError(
                f"config.{name}_timeout is {value}: it should be at least 1 (seconds)"
            )
    if place is None:
        yield
        return
    preemption.wait(_join, place, peer_timeout, stall_timeout)
    try:
        yield
    except Stop as stop:
        if is_first() or not stop.shared:
            preemption.tell(f"{stop.label}: {stop}\n")
        _leave(stop.exit_code, str(stop), shared=stop.shared)
    except BaseException as error:  # the others must hear of it, whatever it is
        _explain(error, peer_timeout)
    _leave(0, "")


def _explain(error: BaseException, peer_timeout: float) -> None:
    """Ends this process after an error, which a lost process may be the cause of.

    A collective fails at once when a process dies, and the error says little; the
    heartbeats know who it is, a little later, and end this process with their message.
    """
    told = f"{type(error).__name__}: {str(error)[:200]}".splitlines()[0]
    wait = f"waiting up to {peer_timeout:g} s to know whether a process is missing"
    preemption.tell(f"{told}\n{wait}\n")
    time.sleep(peer_timeout + 3)
    traceback.print_exception(error)
    _leave(1, told)


def _join(place: Place, peer_timeout: float, stall_timeout: float) -> None:
    global _heartbeats, _place
    key = authentication.run_key()
    late = threading.Timer(JOIN_SECONDS, _too_late, [place])
    late.daemon = True
    late.start()
    host, _, port = place.coordinator.rpartition(":")
    family, address = _resolve(host.strip("[]"), int(port))
    gate = None
    if place.process_id == 0:
        gate, coordinator = _open_gate(place, family, address, key)
    else:
        refused = _Refused(place, peer_timeout)
        coordinator = relay.start(*address, place.process_id, key, refused)
    # It would take SIGTERM over.
    jax.config.update("jax_enable_preemption_service", False)
    ids = place.local_device_ids
    jax.distributed.initialize(
        coordinator,
        place.num_processes,
        place.process_id,
        local_device_ids=None if ids is None else list(ids),
        cluster_detection_method="deactivate",  # `cluster.find` has done it
        coordinator_bind_address=coordinator,
        initialization_timeout=_NEVER_SECONDS,
        heartbeat_timeout_seconds=_NEVER_SECONDS,
    )
    _place = place
    identity = processes.own()
    machines = set(_exchange(identity.machine))  # from here on all have joined
    used = {_route(family, address)} if gate is None else gate.interfaces
    sock = _socket(family, used, one_machine=len(machines) == 1 and machines != {""})
    me = {
        "host": socket.gethostname(),
        "address": _route(family, address),
        "port": sock.getsockname()[1],
        "secret": secrets.token_hex(32),
        "identity": dataclasses.asdict(identity),
    }
    all_of_them = [json.loads(text) for text in _exchange(json.dumps(me))]
    peers = {
        i: _peer(i, told, address[0])
        for i, told in enumerate(all_of_them)
        if i != place.process_id
    }
    beat_key = authentication.tag(key, all_of_them[0]["secret"].encode())
    heartbeats = Heartbeats(
        Beat(place.process_id),
        peers,
        sock,
        datagrams=authentication.Datagrams(beat_key, place.process_id),
        silent=peer_timeout,
        stalled=stall_timeout,
        signalled=preemption.requested,
        on_loss=_lost,
    )
    preemption.also_stop_when(lambda: heartbeats.said(lambda beat: beat.signalled))
    heartbeats.start()
    _heartbeats = heartbeats
    late.cancel()


def _open_gate(
    place: Place, family: socket.AddressFamily, address: Address, key: bytes
) -> tuple[relay.Gate, str]:
    """Listens for the others; also where JAX's service is to listen, HOST:PORT."""
    given = place.coordinator.rpartition(":")[0].strip("[]")
    server = _listen(given, family, address)
    with socket.create_server(("127.0.0.1", 0)) as free:
        service = free.getsockname()[1]
    gate = relay.Gate(server, service, place.num_processes, key)
    gate.start()
    return gate, f"127.0.0.1:{service}"


def _listen(
    given: str, family: socket.AddressFamily, address: Address
) -> socket.socket:
    """A socket at the address of process 0; at all of this machine's if it must be.

    It must if the address is none of this machine's own (others may reach it by one
    that is translated), or if a name is of the loopback here, and elsewhere not.
    """
    host, port = address
    if given != "localhost" and given != host and _is_loopback(host):
        host = ""
    for bound in (host, ""):
        try:
            return socket.create_server((bound, port), family=family, backlog=1024)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL and bound:
                continue
            raise UserError(
                f"process 0 cannot listen at port {port} "
                f"({os.strerror(error.errno or 0)}): give another "
                "--coordinator_address, to all processes"
            ) from error
    raise AssertionError(host)


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


class _Refused:
    """What is done when process 0 refuses this one: told once, and later the end."""

    def __init__(self, place: Place, patience: float) -> None:
        self._place, self._patience = place, patience
        self._since = time.monotonic()
        self._told = ""

    def __call__(self, answer: relay.Answer) -> None:
        place = self._place
        why = (
            f"the run at {place.coordinator} has a process {place.process_id} already: "
            "this one was started twice, or replaces one that the run still waits for"
            if answer == "taken"
            else f"{place.coordinator} does not take this process for one of its run: "
            f"is {authentication.RUN_KEY} in the environment of all processes the same?"
        )
        if answer != self._told:
            preemption.tell(
                f"{why}\nwaiting up to {self._patience:g} s for a run that has room\n"
            )
            self._told, self._since = answer, time.monotonic()
        if time.monotonic() - self._since > self._patience:
            _end(why)


def _socket(
    family: socket.AddressFamily, used: set[str], *, one_machine: bool
) -> socket.socket:
    """A UDP socket at the one interface over which the others are reached.

    At all of them where that is not one, or where it is the loopback and there are
    other machines.
    """
    only = next(iter(used)) if len(used) == 1 else ""
    if only and _is_loopback(only) and not one_machine:
        only = ""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind((only, 0))
    return sock


def _peer(process: int, told: dict[str, Any], coordinator: str) -> Peer:
    """A process as it described itself, and where it may be reached."""
    addresses = [(told["address"], told["port"])]
    if process == 0 and told["address"] != coordinator:
        # Its own name may be an address of the loopback to itself.
        addresses.append((coordinator, told["port"]))
    now = time.monotonic()
    return Peer(
        told["host"],
        addresses,
        Beat(process),
        heard=now,
        moved=now,
        identity=processes.Identity(**told["identity"]),
    )


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, Address]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except OSError as error:
        raise UserError(
            f"the host of the coordinator address {host}:{port} is not known here "
            f"({error.strerror or error})"
        ) from error
    family, *_, address = min(found, key=lambda f: f[0] != socket.AF_INET)
    return family, (str(address[0]), port)


def _route(family: socket.AddressFamily, address: Address) -> str:
    """The address of this machine that faces another; nothing is sent."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(address)
        return probe.getsockname()[0]


def _too_late(place: Place) -> None:
    _end(
        f"process {place.process_id}: not all {place.num_processes} processes met at "
        f"{place.coordinator} within {JOIN_SECONDS} s. Is each started, with the same "
        "address, and does the network let them through?"
    )


def _lost(verdict: str) -> None:
    assert _place is not None and _heartbeats is not None
    message = (
        f"process {_place.process_id} of {_place.num_processes} "
        f"({socket.gethostname()}), at step {_heartbeats.me.step}: {verdict}"
    )
    _heartbeats.say_goodbye(PeerLost.exit_code, verdict)
    _end(f"{message}.\nCheckpoints are whole: start all processes again to go on.")


def _end(message: str) -> None:
    """Ends the process from whatever thread, whatever the others are waiting for."""
    preemption.tell(f"{PeerLost.label}: {message}\n")
    preemption.leave(PeerLost.exit_code)


def alone() -> bool:
    """Whether the run is of one process."""
    return _place is None


def is_first() -> bool:
    """Whether this is the process that prints and writes logs."""
    return alone() or jax.process_index() == 0


def part() -> tuple[int, int]:
    """Which of how many parts of a common work is that of this process."""
    return (0, 1) if alone() else (jax.process_index(), jax.process_count())


def progress(step: int | None = None) -> None:
    """Notes that the loop goes on, so that the others can tell who does not."""
    if _heartbeats is not None:
        _heartbeats.me.ticks += 1
        _heartbeats.me.step = _heartbeats.me.step if step is None else step


def gather(text: str, *, heed_signals: bool = True) -> list[str]:
    """A text of every process, by process number; all have to call it.

    For what happens now and then: it takes milliseconds and a thread.

    Args:
      text: of this process.
      heed_signals: False where every process comes here even after a signal.

    Raises:
      Preempted: if a signal reaches any process before it has come here.
    """
    if alone():
        return [text]
    if heed_signals:
        preemption.check()
    texts = preemption.call(_exchange, text, check=_check_nobody_left)
    progress()
    return texts


def check_same(text: str, what: str) -> None:
    """Every process has the same text: a directory may look different from each.

    Args:
      text: of this process.
      what: all of them should have, for the message.

    Raises:
      UserError: on all of them, with what each has.
    """
    texts = gather(text)
    if len(set(texts)) > 1:
        each = "".join(f"\n  process {i}: {text}" for i, text in enumerate(texts))
        raise UserError.on_all(
            f"the processes do not see the same {what}; is the directory the same on "
            f"every host, and has its copy come to an end?{each}"
        )


def _check_nobody_left() -> None:
    """One who has come to a meeting stays, unless the meeting cannot take place."""
    assert _heartbeats is not None
    if _heartbeats.said(lambda beat: beat.left == Preempted.exit_code):
        raise Preempted


def _exchange(text: str) -> list[str]:
    global _meetings
    _meetings += 1
    name, jaxs = f"vit_jax/{_meetings}", global_state
    assert jaxs.client is not None
    jaxs.client.key_value_set(f"{name}/{jaxs.process_id}", text)
    jaxs.client.wait_at_barrier(name, _NEVER_SECONDS * 1000)
    pairs = jaxs.client.key_value_dir_get(f"{name}/")
    numbered = {int(key.rpartition("/")[2]): value for key, value in pairs}
    return [numbered[i] for i in range(jaxs.num_processes)]


@contextlib.contextmanager
def agreed() -> Iterator[None]:
    """Bad input that one process meets ends all of them, with one message.

    What is inside may not wait for other processes.
    """
    if alone():
        yield
        return
    mistake = ""
    try:
        yield
    except UserError as error:
        mistake = str(error)
    mistakes = gather(mistake)
    if any(mistakes):
        number, message = next((i, m) for i, m in enumerate(mistakes) if m)
        who = "" if len(set(mistakes)) == 1 else f"process {number}: "
        raise UserError.on_all(who + message)


def _leave(code: int, reason: str, *, shared: bool = False) -> None:
    """Ends this process; the others hear of it and need not wait.

    Process 0 leaves last if all end alike, since the others meet in it.
    """
    assert _heartbeats is not None and _place is not None
    _heartbeats.say_goodbye(code, reason, shared=shared)
    if _place.process_id == 0 and _heartbeats.me.orderly:
        _heartbeats.outlast()
    preemption.leave(code)
