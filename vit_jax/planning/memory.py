"""Memory per device: what the compiler assigned, and what is alive at its peak.

Sizes are bytes. The figures come from the dump of the buffer assignment, which is there
before code generation has begun; they agree with `compiled.memory_analysis()`.
"""

import dataclasses
import importlib.metadata
import re
from collections.abc import Iterable, Mapping

from vit_jax.errors import UserError
from vit_jax.planning.hlo import Instruction, Module, arrays

_ALLOCATION = re.compile(
    r"allocation \d+: size (\d+),(?: color (\d+),)? page \d+, (.*):"
)
_VALUE = re.compile(
    r" value: <\d+ ([^ {>]+)(\{[\d,]*\})?[^>]*@(\d+)> \(size=(\d+),offset=(\d+)\): (.*)"
)
# The names that the arguments of a step have in the compiled program.
ARGUMENTS = {
    "parameters": "state.params",
    "optimizer": "state.opt_state",
    "average of parameters": "state.ema_params",
    "batch": "batch[",
}
_LIVE = re.compile(r"    ([^ {]+)(\{[\d,]*\}):(\d+)-(\d+)")


@dataclasses.dataclass(frozen=True)
class Buffer:
    """A temporary that is alive at the peak.

    Attributes:
      size: bytes, with padding.
      shape: such as "bf16[64,197,3072]".
      op_name: where in the traced program it comes from.
    """

    size: int
    shape: str
    op_name: str


@dataclasses.dataclass(frozen=True)
class Memory:
    """HBM per device, bytes.

    Attributes:
      arguments: state and batch.
      temporaries: the one block that the compiler lays all others out in.
      outputs: results that do not take the place of an argument, which the state's do.
      constants: and what else the program holds.
      peak: the largest temporaries that are alive together when they are most.
      free_at_peak: bytes of the block that no temporary takes then.
    """

    arguments: int
    temporaries: int
    outputs: int
    constants: int
    peak: tuple[Buffer, ...]
    free_at_peak: int

    @property
    def total(self) -> int:
        return self.arguments + self.temporaries + self.outputs + self.constants


def read(assignment: str, live_ranges: str, module: Module) -> Memory:
    """Reads the dumps of the buffer assignment and of the live ranges.

    Raises:
      UserError: no arguments are found, which a program always has: the compiler is of
        a version whose dumps have another form.
    """
    sizes = {"arguments": 0, "temporaries": 0, "outputs": 0, "constants": 0}
    values: list[tuple[str, int, int, str]] = []
    kind = ""
    for line in assignment.splitlines():
        if line.startswith("allocation"):
            kind = ""
            match = _ALLOCATION.match(line)
            if match and not int(match[2] or 0) and (kind := _kind(match[3])):
                sizes[kind] += int(match[1])
        elif line.startswith("Total bytes used"):
            break
        elif kind == "temporaries" and (match := _VALUE.match(line)):
            name = match[1] + (match[2] or "{}")
            values.append((name, int(match[4]), int(match[5]), match[6]))
    if not sizes["arguments"]:
        raise UserError(
            f"libtpu {importlib.metadata.version('libtpu')} tells of memory in a form "
            "that is not known here: install the version of "
            "requirements/lock-py311.txt, or another from 0.0.51 on"
        )
    ranges = {
        match[1] + match[2]: (int(match[3]), int(match[4]))
        for match in map(_LIVE.match, live_ranges.splitlines())
        if match
    }
    instructions = {
        name: instruction
        for computation in module.computations.values()
        for name, instruction in computation.items()
    }
    places = _places(values, ranges)
    alive = _alive_at_peak(places)
    peak = tuple(
        Buffer(size, *_origin(places[offset, size].values, instructions))
        for offset, size in alive
    )
    free = sizes["temporaries"] - sum(buffer.size for buffer in peak)
    return Memory(**sizes, peak=peak, free_at_peak=free)


def split_arguments(module: Module) -> dict[str, int]:
    """Bytes of a device's arguments by what they are; they add up to `arguments`."""
    parts = dict.fromkeys((*ARGUMENTS, "other state"), 0)
    for instruction in module.computations[module.entry].values():
        if instruction.opcode == "parameter":
            name = next(
                (k for k, v in ARGUMENTS.items() if instruction.op_name.startswith(v)),
                "other state",
            )
            parts[name] += instruction.hbm_bytes
    return parts


def _kind(description: str) -> str:
    """Which part of `Memory` an allocation belongs to; "" if it takes no HBM."""
    if description.startswith("parameter"):
        return "arguments"
    if "preallocated-temp" in description:
        return "temporaries"
    if "maybe-live-out" in description:
        return "outputs"
    return "constants" if description.startswith("constant") else ""


@dataclasses.dataclass
class _Place:
    """A part of the block of temporaries, and what lies there at one time or another.

    Values that overlap in time are the same value under several names, such as a
    loop's result and what its body returns.
    """

    values: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    ranges: list[tuple[int, int]] = dataclasses.field(default_factory=list)


def _places(
    values: Iterable[tuple[str, int, int, str]],
    ranges: Mapping[str, tuple[int, int]],
) -> dict[tuple[int, int], _Place]:
    """Places by (offset, size), with their values as (name, shape)."""
    places: dict[tuple[int, int], _Place] = {}
    for name, size, offset, shape in values:
        if name in ranges:
            place = places.setdefault((offset, size), _Place())
            place.values.append((name, shape))
            place.ranges.append(ranges[name])
    return places


def _alive_at_peak(places: Mapping[tuple[int, int], _Place]) -> list[tuple[int, int]]:
    """The places that are in use when most bytes are, the largest first."""
    changes: dict[int, int] = {}
    for (_, size), place in places.items():
        for start, end in _union(place.ranges):
            changes[start] = changes.get(start, 0) + size
            changes[end + 1] = changes.get(end + 1, 0) - size
    used, most, peak = 0, 0, 0
    for time in sorted(changes):
        used += changes[time]
        if used > most:
            most, peak = used, time
    alive = [
        key
        for key, place in places.items()
        if any(start <= peak <= end for start, end in place.ranges)
    ]
    return sorted(alive, key=lambda key: -key[1])


def _union(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Overlapping ranges joined.

    >>> _union([(5, 9), (1, 3), (2, 6), (11, 12)])
    [(1, 9), (11, 12)]
    """
    joined: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _origin(
    values: Iterable[tuple[str, str]], instructions: Mapping[str, Instruction]
) -> tuple[str, str]:
    """(shape, op_name) of the value that says most of where its buffer comes from."""

    def telling(value: tuple[str, str]) -> tuple[bool, int]:
        instruction = instructions.get(value[0].partition("{")[0])
        if instruction is None or instruction.opcode in ("while", "parameter"):
            return False, 0
        return True, len(instruction.op_name)

    name, shape = max(values, key=telling)
    instruction = instructions.get(name.partition("{")[0])
    array = arrays(shape)
    return (
        str(array[0]) if len(array) == 1 else f"{len(array)} arrays",
        instruction.op_name if instruction else "",
    )
