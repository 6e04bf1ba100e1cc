"""Which record is seen when, and every random number of the input pipeline.

Nothing is stored and nothing is drawn in sequence: all of it is a function of
(seed, global example number n), where n = step * batch_size + row. Example n is in
epoch n // N and is record permutation(seed, epoch)[n % N] of the N records, unless
records are repeated (see `record_numbers`).

These functions are an interface for as long as a run lives: the tests hold golden
values, and a change here changes every run that is resumed.
"""

import enum
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

UInt64 = np.ndarray  # dtype uint64

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = 16
_REPEATED_AFTER = 8
_FIXED_ORDER = np.uint64(0x0AC827CE4A2F1F64)  # of `fixed_order`; any number would do


class Stream(enum.IntEnum):
    """One independent stream of randomness for each purpose."""

    ORDER = 0
    CROP = 1
    FLIP = 2
    AUGMENT = 3
    JITTER = 4
    ERASING = 5
    NOISE = 6
    VERTICAL_FLIP = 7
    ROTATE90 = 8
    # The numbers between are left for augmentation.
    MIXTURE = 32
    PART_ORDER = 33


def random_bits(key: npt.ArrayLike, counter: npt.ArrayLike) -> UInt64:
    """64 random bits: output number `counter` of SplitMix64 seeded with `key`.

    Steele, Lea, Flood: "Fast splittable pseudorandom number generators" (2014), with
    the finalizer of java.util.SplittableRandom. Arguments are broadcast. Since the
    outputs are themselves good keys, `random_bits(random_bits(seed, a), b)` is how a
    key for (seed, a, b) is made.

    >>> [int(x) for x in random_bits(np.array([1234567]), np.arange(2))]
    [6457827717110365317, 3203168211198807973]
    """
    key = np.asarray(key).astype(np.uint64)
    counter = np.asarray(counter).astype(np.uint64)
    with np.errstate(over="ignore"):  # wrapping around is the point
        z = key + (counter + np.uint64(1)) * _GOLDEN_GAMMA
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def stream_key(seed: int, stream: Stream) -> UInt64:
    """The key, uint64 [], of one purpose's random numbers in the run of `seed`."""
    return random_bits(np.uint64(seed % 2**64), int(stream))


def example_keys(seed: int, stream: Stream, numbers: np.ndarray) -> UInt64:
    """A key, uint64 [b], for one purpose of each example number, int64 [b]."""
    return random_bits(stream_key(seed, stream), numbers)


def uniforms(seed: int, stream: Stream, numbers: np.ndarray, count: int) -> np.ndarray:
    """`count` uniform numbers in [0, 1) for each example number.

    Args:
        seed: the run's seed, any integer.
        stream: the purpose.
        numbers: global example numbers, int64 [b].
        count: how many for each example.

    Returns:
        float64 [b, count], multiples of 2**-53. Row i depends on numbers[i] alone.
    """
    keys = example_keys(seed, stream, numbers)  # [b]
    bits = random_bits(keys[:, None], np.arange(count))  # [b, count]
    return (bits >> np.uint64(11)) * 2.0**-53


def noise(key: UInt64, count: int) -> np.ndarray:
    """Random bytes, uint8 [count], from the key of one example.

    >>> noise(np.uint64(1234567), 3).tolist()
    [133, 252, 8]
    """
    bits = random_bits(key, np.arange(-(-count // 8)))
    return bits.astype("<u8").view(np.uint8)[:count]


def permute(index: np.ndarray, size: int, *, key: npt.ArrayLike) -> np.ndarray:
    """A pseudorandom permutation of range(size), evaluated at `index` only.

    A Feistel network over pairs (left, right) in [0, a) x [0, b), a*b >= size, with
    additions modulo a and b in place of XOR; results past the end are permuted again
    until they fall inside ("cycle walking"; Black and Rogaway, "Ciphers with arbitrary
    finite domains", 2002). a*b exceeds size by about sqrt(size) at most: this is rare.
    No table is made: memory and time depend on len(index), not on size.

    Args:
        index: int64 [b] in [0, size).
        size: number of elements, up to 2**62.
        key: uint64 [] or [b]; each element may be of another permutation.

    Returns:
        int64 [b].

    >>> order = permute(np.arange(10), 10, key=np.uint64(0))
    >>> sorted(order.tolist()) == list(range(10))
    True
    """
    index = np.asarray(index, np.int64)
    if size == 1:
        return np.zeros_like(index)
    result = index.astype(np.uint64)
    key = np.broadcast_to(np.asarray(key, np.uint64), result.shape)
    a = math.isqrt(size - 1) + 1  # ceil(sqrt(size))
    a += a % 2  # were a and b odd, only even permutations would come out
    b = -(-size // a)
    todo = np.arange(len(result))
    while len(todo):
        result[todo] = _feistel(result[todo], np.uint64(a), np.uint64(b), key[todo])
        todo = todo[result[todo] >= np.uint64(size)]
    return result.astype(np.int64)


def fixed_order(names: np.ndarray) -> np.ndarray:
    """An order of records that depends on their names alone, so that slices are fair.

    Sorted by name, then shuffled by a permutation that never changes and is no run's.

    Args:
        names: bytes [n], of the records.

    Returns:
        int64 [n]: which record is the first, the second, ...
    """
    n = len(names)
    by_name = np.argsort(names, kind="stable")
    return by_name[permute(np.arange(n), n, key=_FIXED_ORDER)]


def _feistel(x: UInt64, a: np.uint64, b: np.uint64, key: UInt64) -> UInt64:
    left, right = x // b, x % b
    for i in range(_ROUNDS):
        # Each (round, half) has its own counter, hence its own random number.
        if i % 2 == 0:
            left = _add_modulo(left, _below(a, key, right, i), a)
        else:
            right = _add_modulo(right, _below(b, key, left, i), b)
    return left * b + right


def _below(bound: np.uint64, key: UInt64, half: UInt64, round_: int) -> UInt64:
    """A random number in [0, bound), bound < 2**32, by multiplication and shift."""
    bits = random_bits(key, half * np.uint64(_ROUNDS) + np.uint64(round_))
    return ((bits >> np.uint64(32)) * bound) >> np.uint64(32)


def _add_modulo(x: UInt64, y: UInt64, modulus: np.uint64) -> UInt64:
    total = x + y
    return np.where(total >= modulus, total - modulus, total)


def record_numbers(
    numbers: np.ndarray, num_records: int, *, seed: int, repeats: int = 1
) -> np.ndarray:
    """The record that each global example number shows.

    Every epoch (repeats * num_records consecutive numbers) shows each record exactly
    `repeats` times, in an order of its own. Repetitions are close together, mostly
    within one batch, but 8 apart: the neighbour that mixup takes is another record.

    Args:
        numbers: global example numbers, int64 [b].
        num_records: N.
        seed: the run's seed, any integer.
        repeats: of each record.

    Returns:
        int64 [b] in [0, N).

    >>> sorted(record_numbers(np.arange(6, 9), 3, seed=0).tolist())
    [0, 1, 2]
    """
    numbers = _unrepeated(np.asarray(numbers, np.int64), repeats, num_records)
    epoch, offset = np.divmod(numbers, num_records)
    key = random_bits(stream_key(seed, Stream.ORDER), epoch)
    return permute(offset, num_records, key=key)


def _unrepeated(numbers: np.ndarray, repeats: int, num_records: int) -> np.ndarray:
    """The numbers of the same examples in a run without repeats, each `repeats` times.

    Epochs are cut into groups of 8 numbers, the last one smaller, each gone through
    `repeats` times.
    """
    if repeats == 1:
        return numbers
    epoch, offset = np.divmod(numbers, repeats * num_records)
    group, place = np.divmod(offset, repeats * _REPEATED_AFTER)
    first = group * _REPEATED_AFTER
    size = np.minimum(_REPEATED_AFTER, num_records - first)
    return epoch * num_records + first + place % size


def mixture_parts(
    numbers: np.ndarray, shares: Sequence[Fraction], *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which part of a mixture each example comes from, and its number in that part.

    The example numbers are cut into cells of 1 / share numbers on average, and each
    cell gives one example, at a random place, to the first part. What is left over is
    numbered anew and given to the others in the same way. So of the first n examples
    each of k parts has its share of n to within k - 1 examples, for every n; of n
    examples anywhere, to within 2 (k - 1). In the long run shares are exact.

    Args:
        numbers: global example numbers, int64 [b].
        shares: of each part, 1e-6 or more; their sum is 1.
        seed: the run's seed, any integer.

    Returns:
        The part, int64 [b] in [0, len(shares)), and the example's number among those
        of its part, int64 [b]: 0, 1, 2, ... in the order of `numbers`.

    >>> part, number = mixture_parts(np.arange(6), [Fraction(1, 3), Fraction(2, 3)],
    ...                              seed=0)
    >>> [number[part == p].tolist() for p in (0, 1)]
    [[0, 1], [0, 1, 2, 3]]
    """
    key = stream_key(seed, Stream.MIXTURE)
    number = np.array(numbers, np.int64)
    part = np.full(number.shape, len(shares) - 1, np.int64)
    rest, left = np.arange(len(number)), Fraction(1)
    for i, share in enumerate(shares[:-1]):
        # So that products stay below 2**63; an error of 1e-18 at most.
        ratio = (share / left).limit_denominator(2**30)
        mine, count = _thin(number[rest], ratio, random_bits(key, i))
        part[rest[mine]] = i
        number[rest] = np.where(mine, count, number[rest] - count)
        rest, left = rest[~mine], left - share
    return part, number


def _thin(
    numbers: np.ndarray, share: Fraction, key: UInt64
) -> tuple[np.ndarray, np.ndarray]:
    """Which numbers are chosen, one in each cell, and how many are chosen before each.

    With share = p / q, cell c is the numbers n with floor(n p / q) = c.
    """
    p, q = share.numerator, share.denominator
    cell = numbers // q * p + numbers % q * p // q  # floor(n p / q)
    first, after = (c // p * q - (-(c % p) * q // p) for c in (cell, cell + 1))
    bits = (random_bits(key, cell) >> np.uint64(32)).astype(np.int64)
    chosen = first + ((bits * (after - first)) >> 32)
    return numbers == chosen, cell + (chosen < numbers)


def mixture_record_numbers(
    numbers: np.ndarray,
    sizes: Sequence[int],
    shares: Sequence[Fraction],
    *,
    seed: int,
    repeats: int = 1,
) -> np.ndarray:
    """The record that each global example number of a mixture shows.

    Within a part, its examples go through epochs of their own: every sizes[i] of them
    show each of its records exactly once.

    Args:
        numbers: global example numbers, int64 [b].
        sizes: number of records of each part.
        shares: see `mixture_parts`.
        seed: the run's seed, any integer.
        repeats: how often each example is shown, see `record_numbers`; a part's epoch
            has repeats * sizes[i] of its examples.

    Returns:
        int64 [b] in [0, sum(sizes)): the parts' records one after the other.
    """
    numbers = _unrepeated(np.asarray(numbers, np.int64), repeats, 2**40)  # no end
    part, number = mixture_parts(numbers, shares, seed=seed)
    records = np.empty_like(number)
    key, offset = stream_key(seed, Stream.PART_ORDER), 0
    for i, size in enumerate(sizes):
        epoch, place = np.divmod(number[part == i], size)
        order = random_bits(random_bits(key, i), epoch)
        records[part == i] = offset + permute(place, size, key=order)
        offset += size
    return records
