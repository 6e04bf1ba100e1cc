"""PyTorch's pickles, of which only dicts, lists, numbers, texts and tensors are made.

A pickle is a program: it may name any function and have it called. Here the program is
interpreted without Python's `pickle`: what it names is kept as its name, so that
nothing is imported, looked up or called but the functions that the caller hands over.
Training scripts keep all sorts of objects beside the weights; each is a `Named`.
"""

import dataclasses
import pickle
import struct
from collections.abc import Callable, Mapping
from typing import IO, Any

from vit_jax import limits

# A training checkpoint of 5,000 tensors with Adam's state takes some 500,000.
MAX_STEPS = 2_000_000
_MAX_NAME = 1000
# What reading raises if the pickle is damaged: its program makes no sense.
GARBLED = (
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    TypeError,
    ValueError,
    struct.error,
)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Named:
    """A class, a function, or what one of them would have made: its name alone.

    Attributes:
      name: with its module, such as "argparse.Namespace".
    """

    name: str


def load(
    file: IO[bytes],
    *,
    functions: Mapping[str, Callable[..., Any]],
    persistent: Callable[[Any], Any],
) -> Any:
    """Reads one pickle, up to its end and no further.

    Args:
      file: at the pickle's beginning.
      functions: by name, that may be called: with what the pickle says, so that they
        must bear any arguments.
      persistent: makes what is kept outside of the pickle, of what names it.

    Returns:
      The object. Of dicts the items whose keys are texts; sets and objects are `Named`.

    Raises:
      GARBLED: any of these if it is damaged, or larger than any checkpoint's.
    """
    reader = _Reader(file, functions, persistent)
    for _ in range(MAX_STEPS):
        opcode = reader.read(1)
        if opcode == pickle.STOP:
            return reader.stack.pop()
        if opcode not in _STEPS:
            raise ValueError(f"its pickle has a step {opcode!r}")
        _STEPS[opcode](reader)
    raise ValueError(f"its pickle has more than {MAX_STEPS:,} steps")


class _Reader:
    """The state of the pickle's machine: a stack, the marks in it, and a memo."""

    def __init__(
        self,
        file: IO[bytes],
        functions: Mapping[str, Callable[..., Any]],
        persistent: Callable[[Any], Any],
    ) -> None:
        self.file, self.functions, self.persistent = file, functions, persistent
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        # A dict: an index of 2^31 takes no more room than one of 3.
        self.memo: dict[int, Any] = {}
        self.left = limits.HEADER_BYTES

    def read(self, size: int) -> bytes:
        """So many bytes, none of which is taken on trust."""
        self.left -= size
        if size < 0 or self.left < 0:
            most = limits.HEADER_BYTES
            raise ValueError(f"its pickle has more than {most:,} bytes")
        data = self.file.read(size)
        if len(data) != size:
            raise EOFError("its pickle ends too early")
        return data

    def number(self, format_: str) -> Any:
        """A number of `struct`'s format."""
        return struct.unpack(format_, self.read(struct.calcsize(format_)))[0]

    def text(self, length: str) -> str:
        """A text behind its length."""
        return self.read(self.number(length)).decode("utf-8", "surrogatepass")

    def line(self) -> str:
        """A name up to the end of its line."""
        data = self.file.readline(_MAX_NAME)
        self.left -= len(data)
        if not data.endswith(b"\n"):
            raise ValueError("its pickle has a name that cannot be")
        return data[:-1].decode()

    def marked(self) -> list[Any]:
        """What was pushed since the last mark."""
        items = self.stack
        self.stack = self.outer.pop()
        return items

    def pop(self, count: int) -> list[Any]:
        """The last few of the stack."""
        if len(self.stack) < count:
            raise IndexError("its pickle takes more than it has put there")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def make(self, function: Any, arguments: Any) -> Any:
        """What a function makes: of those that are known, its result; else its name."""
        if not isinstance(function, Named) or not isinstance(arguments, tuple):
            raise TypeError("its pickle calls what is no function")
        if function.name in self.functions:
            return self.functions[function.name](*arguments)
        return Named(function.name)


def _extend(reader: _Reader, items: list[Any]) -> None:
    if isinstance(target := reader.stack[-1], list):
        target.extend(items)


def _update(reader: _Reader, items: list[Any]) -> None:
    """Keys that are no texts are left out: no state dict has any."""
    if isinstance(target := reader.stack[-1], dict):
        pairs = zip(items[::2], items[1::2], strict=True)
        target.update((k, v) for k, v in pairs if type(k) is str)


def _call(reader: _Reader) -> Any:
    return reader.make(*reader.pop(2))


def _call_with_keywords(reader: _Reader) -> Any:
    class_, arguments, _ = reader.pop(3)
    return reader.make(class_, arguments)


def _marked_call(reader: _Reader) -> Any:
    class_, *arguments = reader.marked()
    return reader.make(class_, tuple(arguments))


def _global(reader: _Reader) -> Named:
    return _named(reader.line(), reader.line())


def _stack_global(reader: _Reader) -> Named:
    return _named(*reader.pop(2))


def _named(module: Any, name: Any) -> Named:
    for part in (module, name):
        if not isinstance(part, str) or not part.isprintable() or len(part) > _MAX_NAME:
            raise ValueError("its pickle has a name that cannot be")
    return Named(f"{module}.{name}")


def _frozenset(reader: _Reader) -> Named:
    reader.marked()
    return Named("builtins.frozenset")


def _mark(reader: _Reader) -> None:
    reader.outer.append(reader.stack)
    reader.stack = []


def _pop_one(reader: _Reader) -> None:
    # A mark that nothing was pushed upon is what is popped then.
    if reader.stack:
        reader.stack.pop()
    else:
        reader.marked()


def _forget(reader: _Reader) -> None:
    """An object's attributes: OrderedDict's `_metadata`, arguments of a script."""
    reader.pop(1)


def _skip(reader: _Reader, size: int) -> None:
    reader.read(size)


def _keep(index: Callable[[_Reader], int]) -> Callable[[_Reader], None]:
    def keep(reader: _Reader) -> None:
        reader.memo[index(reader)] = reader.stack[-1]

    return keep


def _push(make: Callable[[_Reader], Any]) -> Callable[[_Reader], None]:
    def push(reader: _Reader) -> None:
        # Made first: making takes from the stack, and may put another in its place.
        made = make(reader)
        reader.stack.append(made)

    return push


def _of(value: Any) -> Callable[[_Reader], None]:
    return _push(lambda _: value)


def _integer(format_: str) -> Callable[[_Reader], None]:
    return _push(
        lambda r: int.from_bytes(r.read(r.number(format_)), "little", signed=True)
    )


def _data(format_: str) -> Callable[[_Reader], None]:
    return _push(lambda r: r.read(r.number(format_)))


def _text(format_: str) -> Callable[[_Reader], None]:
    return _push(lambda r: r.text(format_))


def _number(format_: str) -> Callable[[_Reader], None]:
    return _push(lambda r: r.number(format_))


def _tuple(count: int) -> Callable[[_Reader], None]:
    return _push(lambda r: tuple(r.pop(count)))


_STEPS: dict[bytes, Callable[[_Reader], None]] = {
    pickle.PROTO: lambda r: _skip(r, 1),
    pickle.FRAME: lambda r: _skip(r, 8),
    pickle.MARK: _mark,
    pickle.POP: _pop_one,
    pickle.POP_MARK: lambda r: r.marked().clear(),
    pickle.DUP: _push(lambda r: r.stack[-1]),
    # Values.
    pickle.NONE: _of(None),
    pickle.NEWTRUE: _of(True),
    pickle.NEWFALSE: _of(False),
    pickle.BININT: _number("<i"),
    pickle.BININT1: _number("<B"),
    pickle.BININT2: _number("<H"),
    pickle.LONG1: _integer("<B"),
    pickle.LONG4: _integer("<I"),
    pickle.BINFLOAT: _number(">d"),
    pickle.SHORT_BINUNICODE: _text("<B"),
    pickle.BINUNICODE: _text("<I"),
    pickle.BINUNICODE8: _text("<Q"),
    pickle.SHORT_BINSTRING: _text("<B"),  # as Python 2 wrote names
    pickle.BINSTRING: _text("<I"),
    pickle.SHORT_BINBYTES: _data("<B"),
    pickle.BINBYTES: _data("<I"),
    pickle.BINBYTES8: _data("<Q"),
    pickle.BYTEARRAY8: _data("<Q"),
    # Containers.
    pickle.EMPTY_TUPLE: _of(()),
    pickle.TUPLE1: _tuple(1),
    pickle.TUPLE2: _tuple(2),
    pickle.TUPLE3: _tuple(3),
    pickle.TUPLE: _push(lambda r: tuple(r.marked())),
    pickle.EMPTY_LIST: _push(lambda _: []),
    pickle.LIST: _push(lambda r: list(r.marked())),
    pickle.APPEND: lambda r: _extend(r, r.pop(1)),
    pickle.APPENDS: lambda r: _extend(r, r.marked()),
    pickle.EMPTY_DICT: _push(lambda _: {}),
    pickle.SETITEM: lambda r: _update(r, r.pop(2)),
    pickle.SETITEMS: lambda r: _update(r, r.marked()),
    pickle.EMPTY_SET: _of(Named("builtins.set")),
    pickle.ADDITEMS: lambda r: r.marked().clear(),
    pickle.FROZENSET: _push(_frozenset),
    # Objects.
    pickle.GLOBAL: _push(_global),
    pickle.STACK_GLOBAL: _push(_stack_global),
    pickle.REDUCE: _push(_call),
    pickle.NEWOBJ: _push(_call),
    pickle.NEWOBJ_EX: _push(_call_with_keywords),
    pickle.OBJ: _push(_marked_call),
    pickle.BUILD: _forget,
    pickle.BINPERSID: _push(lambda r: r.persistent(r.stack.pop())),
    # The memo.
    pickle.BINPUT: _keep(lambda r: r.number("<B")),
    pickle.LONG_BINPUT: _keep(lambda r: r.number("<I")),
    pickle.MEMOIZE: _keep(lambda r: len(r.memo)),
    pickle.BINGET: _push(lambda r: r.memo[r.number("<B")]),
    pickle.LONG_BINGET: _push(lambda r: r.memo[r.number("<I")]),
}
