"""Damages bytes and texts, the same for the same seed."""

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.errors import UserError

# What formats take for a length, a sign or the end of something.
_NUMBERS = (b"\0" * 8, b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\x80" + b"\0" * 7)


def mutations(seeds: Sequence[bytes], count: int) -> Iterator[bytes]:
    """So many damaged forms of some files, by turns; number i depends on i alone."""
    for i in range(count):
        yield damage(np.random.default_rng(i), seeds[i % len(seeds)])


def damage(rng: np.random.Generator, data: bytes) -> bytes:
    """One to four damages: bits, bytes, cuts, repetitions, extreme numbers."""
    result = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        n = max(len(result), 1)
        start = int(rng.integers(n))
        # Headers are short, and most is decided there.
        start = start % 64 if rng.random() < 0.4 else start
        stop = min(n, start + int(rng.integers(1, 17)))
        match rng.integers(7):
            case 0 if result:
                result[start % len(result)] ^= 1 << int(rng.integers(8))
            case 1:
                result[start:stop] = rng.bytes(stop - start)
            case 2:
                result[start:stop] = b""
            case 3:
                del result[start:]
            case 4:
                result[start:start] = result[start:stop] * int(rng.integers(1, 4))
            case 5:
                number = _NUMBERS[rng.integers(len(_NUMBERS))]
                width = int(rng.choice([1, 2, 4, 8]))
                result[start : start + width] = number[:width]
            case 6:
                result[start:start] = rng.bytes(stop - start)
    return bytes(result)


# What somebody else's program, or somebody, may put in the place of a value.
VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1, 3, 10**12, 2**64, 1e300, 0.5, float("nan"), float("inf")),
    *("-1", "3", "9" * 30, "\0", "\ud800", "a/../b", "{", "{x}"),
    *("", "none", "gelu", "x" * 100, [], [0], [1, 2, 3, 4], [[]], {}, {"a": 1}),
    *([-1, -1], ["a"], {"height": 10**9, "width": 8}, {"shortest_edge": -1}),
)


def changed(text: str, count: int) -> Iterator[str]:
    """JSON in which a value at any depth is another, missing or added."""
    for i in range(count):
        rng = np.random.default_rng(i)
        tree = json.loads(text)
        for _ in range(rng.integers(1, 3)):
            place = tree
            while True:
                keys = list(place) if isinstance(place, dict) else range(len(place))
                if not keys:
                    break
                key = keys[rng.integers(len(keys))]
                deeper = place[key]
                if isinstance(deeper, dict | list) and deeper and rng.random() < 0.7:
                    place = deeper
                    continue
                if rng.random() < 0.25:
                    del place[key]
                else:
                    place[key] = copy.deepcopy(VALUES[rng.integers(len(VALUES))])
                break
        yield json.dumps(tree)


def check(use: Callable[[bytes], None], inputs: Iterator[bytes], keep: Path) -> int:
    """Each input is used or refused with a UserError; how many were used.

    The one that ends in anything else is written to a file for whoever looks into it.

    Raises:
        AssertionError: from what `use` raised.
    """
    used = 0
    for i, data in enumerate(inputs):
        try:
            use(data)
            used += 1
        except UserError as error:
            message = str(error)
            assert message and len(message) < 2000, (i, message)
        except Exception as error:
            keep.write_bytes(data)
            raise AssertionError(
                f"input {i}, written to {keep}, ended in {error!r}"
            ) from error
    return used
