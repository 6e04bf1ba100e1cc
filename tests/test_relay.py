"""Who gets through to JAX's service; a service that echoes stands for it."""

import contextlib
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from tests import cli
from vit_jax import relay

KEY = b"a key of some length"


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a service that says everything twice."""

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(1 << 16):
                connection.sendall(data * 2)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                threading.Thread(target=serve, args=[connection], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def opened(
    service: int, processes: int = 3, key: bytes = KEY
) -> tuple[relay.Gate, int]:
    server = socket.create_server(("127.0.0.1", 0))
    gate = relay.Gate(server, service, processes, key)
    gate.start()
    return gate, server.getsockname()[1]


def connect(address: str) -> socket.socket:
    host, port = address.split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def said(connection: socket.socket) -> bytes:
    connection.sendall(b"hello")
    answer = b""
    while len(answer) < 10:
        answer += connection.recv(100)
    return answer


# Another process, which prints what it is answered, or what it has heard.
OTHER = """
import socket, sys
from vit_jax import relay
port, number, key = sys.argv[1:]
def refused(answer):
    print(answer, flush=True)
    import os; os._exit(0)
address = relay.start("127.0.0.1", int(port), int(number), key.encode(), refused)
with socket.create_connection(("127.0.0.1", int(address.split(":")[1]))) as connection:
    connection.sendall(b"hello")
    print(connection.recv(100).decode())
"""


def other(port: int, number: int, key: bytes = KEY) -> str:
    command = [sys.executable, "-c", OTHER, str(port), str(number), key.decode()]
    done = subprocess.run(
        command, cwd=cli.ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


def test_a_process_of_the_run_gets_through(echo: int) -> None:
    gate, port = opened(echo)
    with connect(relay.start("127.0.0.1", port, 1, KEY)) as connection:
        assert said(connection) == b"hello" * 2
        assert gate.interfaces == {"127.0.0.1"}
        # A second one with its number does not, and the first is not disturbed.
        assert other(port, 1) == "taken"
        assert said(connection) == b"hello" * 2
    assert other(port, 2) == "hello" * 2


@pytest.mark.parametrize(
    "number, key", [(1, b"another key"), (1, b""), (3, KEY), (0, KEY)]
)
def test_a_stranger_does_not(echo: int, number: int, key: bytes) -> None:
    answers: list[str] = []
    _, port = opened(echo)
    with connect(relay.start("127.0.0.1", port, number, key, answers.append)) as near:
        near.settimeout(0.5)
        near.sendall(b"hello")
        with pytest.raises(TimeoutError):
            near.recv(100)
    assert set(answers) == {"stranger"}


def test_it_waits_for_process_0_and_never_closes(echo: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with connect(relay.start("127.0.0.1", port, 1, KEY)) as connection:
        connection.sendall(b"hello")
        server = socket.create_server(("127.0.0.1", port))
        # Someone else listens there at first, who closes at once.
        server.accept()[0].close()
        relay.Gate(server, echo, 2, KEY).start()
        assert len(connection.recv(10, socket.MSG_WAITALL)) == 10
        for sock in relay._held:  # the service is gone
            if sock.fileno() >= 0 and sock.getpeername()[1] == echo:
                sock.shutdown(socket.SHUT_RDWR)
        connection.settimeout(0.5)
        with pytest.raises(TimeoutError):
            connection.recv(100)


def test_whatever_comes_the_gate_stays_open(echo: int) -> None:
    """Noise, halves of messages, and more connections than it asks at a time."""
    _, port = opened(echo)
    random_ = random.Random(0)
    with contextlib.ExitStack() as stack:
        for i in range(300):
            stranger = stack.enter_context(connect(f"127.0.0.1:{port}"))
            if i % 3:
                with contextlib.suppress(OSError):
                    stranger.sendall(random_.randbytes(random_.randrange(1, 500)))
    with connect(relay.start("127.0.0.1", port, 1, KEY)) as connection:
        assert said(connection) == b"hello" * 2


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_relay_is_for_its_own_process_alone(echo: int) -> None:
    _, port = opened(echo)
    address = relay.start("127.0.0.1", port, 1, KEY)
    script = (
        "import socket, sys; s = socket.create_connection((sys.argv[1], "
        "int(sys.argv[2])), 10); s.sendall(b'hello'); print(s.recv(100))"
    )
    command = [sys.executable, "-c", script, *address.split(":")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "b''\n" or "ConnectionResetError" in done.stderr
    with connect(address) as connection:
        assert said(connection) == b"hello" * 2
    if socket.has_dualstack_ipv6():  # so does gRPC connect
        mapped = "::ffff:127.0.0.1", int(address.split(":")[1])
        with socket.create_connection(mapped, timeout=10) as connection:
            assert said(connection) == b"hello" * 2
