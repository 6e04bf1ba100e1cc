"""Damages bytes and texts, the same for the same seed, and sees what becomes of them.

A test takes a fixed number of inputs. `make fuzz` takes others, for as long as it is
told to: VIT_JAX_FUZZ_SECONDS for each test, VIT_JAX_FUZZ_SEED chooses the first.
"""

import collections
import contextlib
import copy
import itertools
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.errors import UserError

# What formats take for a length, a sign or the end of something.
_NUMBERS = (b"\0" * 8, b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\x80" + b"\0" * 7)

SECONDS = float(os.environ.get("VIT_JAX_FUZZ_SECONDS", "0"))
FIRST = int(os.environ.get("VIT_JAX_FUZZ_SEED", "0")) * 10**9
# No input may take longer, or more memory beyond what the process has.
HANG_SECONDS, MEMORY = 60, 600 * 2**20
COUNTS: collections.Counter[str] = collections.Counter()  # of the test that runs


def rounds(count: int) -> Iterator[int]:
    """The numbers of the inputs: so many, or until SECONDS are over."""
    if not SECONDS:
        yield from range(count)
        return
    end = time.monotonic() + SECONDS
    for i in itertools.count(FIRST):
        if time.monotonic() > end:
            return
        yield i


def mutations(seeds: Sequence[bytes], count: int) -> Iterator[bytes]:
    """So many damaged forms of some files, by turns; number i depends on i alone."""
    for i in rounds(count):
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
    for i in rounds(count):
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


class Hang(AssertionError):
    """An input took longer than HANG_SECONDS."""


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """One input, which may neither hang nor take more memory than MEMORY.

    Raises:
        AssertionError: if it does.
    """

    def late(*_: object) -> None:
        raise Hang(f"it took more than {HANG_SECONDS} s")

    handler = signal.signal(signal.SIGALRM, late)
    signal.alarm(HANG_SECONDS)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
    before = _peak()
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
    taken = _peak() - before
    assert taken <= MEMORY, f"it took {taken:,} bytes of memory"


def _peak() -> int:
    """The most memory that this process has had, in bytes."""
    status = Path("/proc/self/status").read_text()
    (line,) = (x for x in status.splitlines() if x.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def check(
    use: Callable[[bytes], None], inputs: Iterator[bytes], keep: Path
) -> tuple[int, int]:
    """Each input is used or refused with a UserError; how many of each there were.

    The one that ends in anything else is written to a file for whoever looks into it.

    Raises:
        AssertionError: from what `use` raised.
    """
    before = COUNTS.copy()
    for i, data in enumerate(inputs):
        COUNTS["inputs"] += 1
        try:
            with guarded():
                use(data)
            COUNTS["used"] += 1
        except UserError as error:
            message = str(error)
            assert message and len(message) < 2000, (i, message)
        except Exception as error:
            keep.write_bytes(data)
            raise AssertionError(
                f"input {i}, written to {keep}, ended in {error!r}"
            ) from error
    used = COUNTS["used"] - before["used"]
    return used, COUNTS["inputs"] - before["inputs"] - used
