"""That a message comes from a process of this run, known before any of it is read.

Everything that a process takes from the network begins with an HMAC-SHA-256 of fixed
length. Its key is made of two secrets: `RUN_KEY`, an environment variable that a
launcher gives to all processes (never a flag, which others of the machine could read),
and for heartbeats a number that process 0 draws and tells through JAX's coordinator.
"""

import hashlib
import hmac
import os
import secrets
import struct
from collections.abc import Mapping

from vit_jax.errors import UserError

RUN_KEY = "VIT_JAX_RUN_KEY"
TAG_BYTES = hashlib.sha256().digest_size
NONCE_BYTES = 16
MAX_DATAGRAM = 4096  # bytes

_SHORTEST_KEY = 16  # characters
_HEAD = struct.Struct(">IIQ")  # sender, receiver, number of the message


def new_key() -> str:
    """A secret for `RUN_KEY`, drawn anew with each call."""
    return secrets.token_hex(32)


def run_key(environment: Mapping[str, str] = os.environ) -> bytes:
    """The secret that the launcher gave to all processes; b"" if it gave none.

    Raises:
      UserError: for one that is short enough to be guessed.
    """
    text = environment.get(RUN_KEY, "")
    if 0 < len(text) < _SHORTEST_KEY:
        raise UserError(
            f"the environment variable {RUN_KEY} has {len(text)} characters: give all "
            f"processes the same {_SHORTEST_KEY} or more that nobody can guess, such "
            "as those of `openssl rand -hex 32`, or none"
        )
    return os.fsencode(text)


def tag(key: bytes, *parts: bytes) -> bytes:
    """The HMAC of some parts; each counts with its length, so none can be moved.

    Returns:
      `TAG_BYTES` bytes.
    """
    digest = hmac.new(key, digestmod=hashlib.sha256)
    for part in parts:
        digest.update(struct.pack(">I", len(part)) + part)
    return digest.digest()


def same(one: bytes, other: bytes) -> bool:
    """Whether two tags are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(one, other)


class Datagrams:
    """Signs the datagrams of one process, and opens those of the others.

    A datagram is a tag, the numbers of its sender and of its receiver, a number that
    grows with each, and the content. One that was changed, is for another process, has
    come before, or is older than one that has come is not opened.
    """

    def __init__(self, key: bytes, process: int) -> None:
        """`process` is the number of this one; `key` is of all of one run."""
        self._key, self._process = key, process
        self._sent = 0
        self._newest: dict[int, int] = {}  # number of the last message, by sender

    @staticmethod
    def room() -> int:
        """How many bytes a content may have."""
        return MAX_DATAGRAM - TAG_BYTES - _HEAD.size

    def next(self) -> int:
        """A number for a message; the copies of one, to several addresses, share it."""
        self._sent += 1
        return self._sent

    def seal(self, content: bytes, *, receiver: int, number: int) -> bytes:
        """The datagram that brings a content to one process."""
        assert len(content) <= self.room()
        body = _HEAD.pack(self._process, receiver, number) + content
        return tag(self._key, body) + body

    def open(self, datagram: bytes) -> tuple[int, bytes] | None:
        """The sender and the content of a datagram; None for any that is refused."""
        if not TAG_BYTES + _HEAD.size <= len(datagram) <= MAX_DATAGRAM:
            return None
        given, body = datagram[:TAG_BYTES], datagram[TAG_BYTES:]
        if not same(given, tag(self._key, body)):
            return None
        sender, receiver, number = _HEAD.unpack_from(body)
        if receiver != self._process or number <= self._newest.get(sender, 0):
            return None
        self._newest[sender] = number
        return sender, body[_HEAD.size :]
