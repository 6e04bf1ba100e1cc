"""A connection to process 0 that does not break when process 0 does.

JAX's processes each hold a connection to the coordination service in process 0, and
the C++ side aborts a process the moment that connection is closed, without a word to
Python. So they connect to a relay in their own process instead. When process 0 is gone
the relay keeps its end open and silent, and `vit_jax.heartbeats` says who is missing.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

_RETRY_SECONDS = 0.2
_held: list[socket.socket] = []  # never closed, not even by the garbage collector


def start(host: str, port: int) -> str:
    """Relays connections from an address of this machine alone to HOST:PORT.

    A connection that cannot be made yet is tried again until it can.

    Returns:
      The address, HOST:PORT. It serves until the process ends.
    """
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            near, _ = server.accept()
            _thread(_connect, near, host, port)

    _thread(serve)
    return f"127.0.0.1:{server.getsockname()[1]}"


def _connect(near: socket.socket, host: str, port: int) -> None:
    while True:
        try:
            far = socket.create_connection((host, port), timeout=10)
            break
        except OSError:  # process 0 may not have started yet
            time.sleep(_RETRY_SECONDS)
    far.settimeout(None)
    _held.extend((near, far))
    _thread(_pump, near, far)
    _pump(far, near)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Copies until either end breaks, and then closes neither: see above."""
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)


def _thread(function: Callable[..., None], *args: Any) -> None:
    threading.Thread(target=function, args=args, daemon=True, name="relay").start()
