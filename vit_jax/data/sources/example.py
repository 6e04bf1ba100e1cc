"""Reads and writes a serialized tf.train.Example without TensorFlow.

The layout is fixed by tensorflow/core/example/{example,feature}.proto: an Example has
field 1 Features, which has field 1, a map from name (field 1) to Feature (field 2);
a Feature holds one list, BytesList, FloatList or Int64List (fields 1, 2, 3), each with
its values in field 1, numbers packed or not.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MOST_DIGITS = 10
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3

Feature = list[memoryview] | np.ndarray


def parse_example(data: bytes, keys: Collection[str]) -> dict[str, Feature]:
    """The features of an Example named in `keys`.

    Returns:
        {name: values}: a list of bytes, a float32 [n] or an int64 [n]. A name that the
        Example has not, or has with no list, is left out.

    Raises:
        ValueError: not a serialized Example.

    >>> parse_example(bytes.fromhex("0a0a0a080a016112031a010a"), ["a"])
    Traceback (most recent call last):
      ...
    ValueError: cut short
    >>> parse_example(bytes.fromhex("0a0c0a0a0a01611205 1a030a0107"), ["a"])
    {'a': array([7])}
    """
    wanted = {key.encode(): key for key in keys}
    found: dict[str, Feature] = {}
    for features in _submessages(memoryview(data), 1):
        for entry in _submessages(features, 1):
            name = b"".join(_submessages(entry, 1))
            if name in wanted:
                for feature in _submessages(entry, 2):
                    for kind, body in _fields(feature):
                        found[wanted[name]] = _values(kind, body)
    return found


def serialize_example(features: Mapping[str, Sequence[bytes] | Sequence[int]]) -> bytes:
    """An Example of lists of bytes and of integers; equal ones give equal bytes.

    >>> data = serialize_example({"label": [7], "image": [b"abc"]})
    >>> parse_example(data, ["label"])
    {'label': array([7])}
    """
    entries = []
    for name in sorted(features):
        values = features[name]
        if any(isinstance(value, bytes) for value in values):
            kind = _BYTES_LIST
            body = b"".join(_field(1, v) for v in values if isinstance(v, bytes))
        else:
            kind = _INT64_LIST
            body = _field(1, b"".join(_digits(v) for v in values if isinstance(v, int)))
        feature = _field(kind, body)
        entries.append(_field(1, _field(1, name.encode()) + _field(2, feature)))
    return _field(1, b"".join(entries))


def _field(number: int, body: bytes) -> bytes:
    return bytes([number << 3 | _BYTES]) + _digits(len(body)) + body


def _digits(value: int) -> bytes:
    """A number in base 128, lowest digit first; negative ones as 2**64 + value."""
    value %= 2**64
    digits = bytearray()
    while value >= 0x80:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])


def _submessages(message: memoryview, number: int) -> Iterator[memoryview]:
    return (body for field, body in _fields(message) if field == number)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(field number, body) of each field of a message; numbers as their bytes."""
    position, end = 0, len(message)
    while position < end:
        tag, position = _varint(message, position)
        wire = tag & 7
        if wire == _BYTES:
            length, position = _varint(message, position)
        elif wire == _VARINT:
            length = _varint(message, position)[1] - position
        elif wire == _FIXED32:
            length = 4
        elif wire == _FIXED64:
            length = 8
        else:
            raise ValueError(f"wire type {wire}")
        if position + length > end:
            raise ValueError("cut short")
        yield tag >> 3, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """A base-128 number, lowest digit first, and the position after it.

    It has 64 bits, so at most ten digits: without that limit a message of nothing but
    first digits would take hours.
    """
    value = 0
    for i, byte in enumerate(message[position : position + _MOST_DIGITS]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value % 2**64, position + i + 1
    if position + _MOST_DIGITS <= len(message):
        raise ValueError("a number of more than 64 bits")
    raise ValueError("cut short")


def _values(kind: int, message: memoryview) -> Feature:
    bodies = list(_submessages(message, 1))
    if kind == _BYTES_LIST:
        return bodies
    joined = b"".join(bodies)  # packed: one body; not packed: one for each number
    if kind == _FLOAT_LIST:
        return np.frombuffer(joined, "<f4")
    if kind == _INT64_LIST:
        numbers, position, view = [], 0, memoryview(joined)
        while position < len(view):
            number, position = _varint(view, position)
            numbers.append(number - 2**64 if number >= 2**63 else number)
        return np.array(numbers, np.int64)
    raise ValueError(f"feature of kind {kind}")
