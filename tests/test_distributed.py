"""Where process 0 listens, and what one does that it refuses."""

import socket

import pytest

from vit_jax import distributed
from vit_jax.cluster import Place
from vit_jax.errors import UserError

IPV4 = socket.AF_INET


def bound(given: str, address: str) -> str:
    """The address that a socket for others has, at a free port."""
    with distributed._listen(given, IPV4, (address, 0)) as server:
        return server.getsockname()[0]


@pytest.mark.parametrize(
    "given, address, expected",
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("localhost", "127.0.0.1", "127.0.0.1"),
        # As /etc/hosts of Debian has it: the others know the name by its true address.
        ("node-0", "127.0.1.1", "0.0.0.0"),
        # None of this machine's, as behind a NAT (RFC 5737: nobody has it).
        ("192.0.2.1", "192.0.2.1", "0.0.0.0"),
        ("node-0", "192.0.2.1", "0.0.0.0"),
    ],
)
def test_process_0_listens_where_the_others_look(
    given: str, address: str, expected: str
) -> None:
    assert bound(given, address) == expected


@pytest.mark.parametrize("address", ["127.0.0.1", "192.0.2.1"])
def test_a_port_that_is_taken(address: str) -> None:
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        message = rf"listen at port {port} \(Address already in use\): give another"
        with pytest.raises(UserError, match=message):
            distributed._listen(address, IPV4, (address, port))


def test_one_that_is_refused_says_so_once_and_ends_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, told, ends = [100.0], [], []
    monkeypatch.setattr(distributed.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(distributed.preemption, "tell", told.append)
    monkeypatch.setattr(distributed, "_end", ends.append)
    refused = distributed._Refused(Place("node-0:8476", 4, 2), patience=10)
    for second in range(10):  # tried again and again, as the relay does
        now[0] = 100.0 + second
        refused("taken")
    (text,) = told
    assert "the run at node-0:8476 has a process 2 already" in text
    assert "waiting up to 10 s" in text
    now[0] = 110.5
    refused("stranger")  # another run has begun there: patience begins anew
    assert len(told) == 2 and "is VIT_JAX_RUN_KEY in the environment" in told[1]
    assert ends == []
    now[0] = 121.0
    refused("stranger")
    (why,) = ends
    assert "node-0:8476 does not take this process for one of its run" in why
    assert len(told) == 2
