"""Datagrams that are signed: against the standard library's HMAC, and changed ones."""

import hashlib
import hmac
import random
import struct

import pytest

from vit_jax.authentication import MAX_DATAGRAM, Datagrams, run_key, same, tag
from vit_jax.errors import UserError


def test_a_tag_is_hmac_sha256_of_parts_and_lengths() -> None:
    text = struct.pack(">I", 2) + b"ab" + struct.pack(">I", 0) + b""
    expected = hmac.digest(b"key", text, "sha256")
    assert tag(b"key", b"ab", b"") == expected
    assert len(expected) == hashlib.sha256().digest_size
    assert same(expected, tag(b"key", b"ab", b""))
    assert not same(expected, tag(b"key", b"a", b"b"))


def test_each_is_opened_once_by_its_receiver_alone() -> None:
    first, second = Datagrams(b"key", 1), Datagrams(b"key", 2)
    one = first.seal(b"one", receiver=2, number=first.next())
    two = first.seal(b"two", receiver=2, number=first.next())
    third = Datagrams(b"key", 3)
    assert third.open(two) is None
    assert Datagrams(b"other", 2).open(two) is None
    assert second.open(two) == (1, b"two")
    assert second.open(two) is None  # again
    assert second.open(one) is None  # older
    assert second.open(third.seal(b"", receiver=2, number=1)) == (3, b"")


def test_none_that_was_changed_is_opened() -> None:
    random_ = random.Random(0)
    good = Datagrams(b"key", 1).seal(b"content", receiver=0, number=1)
    mine = Datagrams(b"key", 0)
    for place in range(len(good)):
        for bit in range(8):
            changed = bytearray(good)
            changed[place] ^= 1 << bit
            assert mine.open(bytes(changed)) is None
    for length in range(len(good)):
        assert mine.open(good[:length]) is None
        assert mine.open(random_.randbytes(length)) is None
    assert mine.open(bytes(MAX_DATAGRAM + 1)) is None
    assert mine.open(good) == (1, b"content")


def test_a_key_is_none_or_long() -> None:
    assert run_key({}) == run_key({"VIT_JAX_RUN_KEY": ""}) == b""
    assert run_key({"VIT_JAX_RUN_KEY": "a" * 32}) == b"a" * 32
    with pytest.raises(UserError, match=r"RUN_KEY has 3 characters: .*openssl"):
        run_key({"VIT_JAX_RUN_KEY": "abc"})
