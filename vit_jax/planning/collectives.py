"""What the devices send each other: kinds, bytes, and the time of the links.

The time of a collective is that of its bytes over the links which its groups of devices
span, as if nothing else used them and sending cost no latency. A ring of n chips sends
(n - 1) / n of an array for a gather or a reduce-scatter, twice that for an all-reduce.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Sequence

from vit_jax.planning.hlo import Instruction, Module
from vit_jax.planning.topologies import Topology

# (slice, x, y, z) of a device's chip; the devices of one chip have the same.
Place = tuple[int, ...]

KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
# Between slices a collective is a transfer to the host, which talks to other hosts.
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_LISTS = re.compile(r"(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]*\},?)*)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind, dtype and group size.

    Attributes:
      kind: one of `KINDS`.
      dtype: of what is sent.
      group: devices that take part in one.
      count: in a step, with the iterations of loops.
      bytes: in a step, of the whole arrays: gathered, reduced or exchanged.
      seconds: in a step, of the links; see above.
      crosses_slices: whether the data-centre network is between the devices.
    """

    kind: str
    dtype: str
    group: int
    count: int
    bytes: int
    seconds: float
    crosses_slices: bool


def read(
    module: Module, topology: Topology, places: Sequence[Place]
) -> list[Collective]:
    """The collectives of a step, those that take longest first.

    Args:
      module: the optimised HLO.
      topology: whose links they use.
      places: of the devices in the order of the mesh.
    """
    found: dict[tuple[str, str, int, bool], list[Collective]] = {}
    for computation, instruction, times in one_of_each(module):
        arrays = [
            array
            for name in instruction.operands
            for array in module.computations[computation][name].arrays
            if array.dtype != "token"
        ]
        kind = instruction.opcode.removesuffix("-start")
        if "all-reduce-scatter" in computation:  # a reduce-scatter is written thus
            kind = "reduce-scatter"
        if between := _BETWEEN_SLICES.search(instruction.attributes):
            kind = between[1].lower().replace("_", "-")
            group = [(number, 0, 0, 0) for number in range(topology.slices)]
        else:
            members = groups(instruction.attributes, len(places))
            group = [places[i] for i in members[0]]
        factor = len(group) if kind == "all-gather" else 1
        size = factor * sum(array.bytes for array in arrays)
        seconds = link_seconds(kind, size, group, topology)
        crosses = len({place[0] for place in group}) > 1
        dtype = "+".join(sorted({array.dtype for array in arrays}))
        one = Collective(
            kind, dtype, len(group), times, times * size, times * seconds, crosses
        )
        found.setdefault((kind, dtype, len(group), crosses), []).append(one)
    total = [
        dataclasses.replace(
            parts[0],
            count=sum(part.count for part in parts),
            bytes=sum(part.bytes for part in parts),
            seconds=sum(part.seconds for part in parts),
        )
        for parts in found.values()
    ]
    return sorted(total, key=lambda collective: -collective.seconds)


def one_of_each(module: Module) -> Iterator[tuple[str, Instruction, int]]:
    """(computation, instruction, times) of every collective, also within fusions.

    An asynchronous one is written several times over, as its start, its steps beside
    other work and its end, with one channel; it counts once.
    """
    seen: set[tuple[str, str]] = set()
    for computation, instruction, times in module.executed():
        for home, collective in _within(module, computation, instruction):
            channel = re.search(r"channel_id=(\d+)", collective.attributes)
            key = (computation, channel[1] if channel else collective.name)
            if key not in seen:
                seen.add(key)
                yield home, collective, times


def _within(
    module: Module, computation: str, instruction: Instruction
) -> Iterator[tuple[str, Instruction]]:
    """The collective that an instruction is, or those that it wraps."""
    opcode, attributes = instruction.opcode, instruction.attributes
    between_slices = opcode == "send" and _BETWEEN_SLICES.search(attributes)
    if between_slices or opcode.removesuffix("-start") in KINDS:
        yield computation, instruction
    elif opcode in ("fusion", "async-start"):
        inner = instruction.called["calls"]
        for part in module.computations[inner].values():
            yield from _within(module, inner, part)


def groups(attributes: str, num_devices: int) -> list[tuple[int, ...]]:
    """Which devices take part together, in any of the forms that HLO writes.

    >>> groups("replica_groups={{0,1},{2,3}}, x=1", 4)
    [(0, 1), (2, 3)]
    >>> groups("replica_groups=[2,2]<=[2,2]T(1,0), x=1", 4)
    [(0, 2), (1, 3)]
    >>> groups("replica_groups=mesh['a'=2,'b'=2] {'a'}", 4)
    [(0, 2), (1, 3)]
    """
    if match := _MESH.search(attributes):
        sizes = {
            name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", match[1])
        }
        chosen = re.findall(r"'(\w+)'(?!:)", match[2])
        if "device_ids" not in match[1] and ":" not in match[2]:
            return _along(list(sizes.values()), [list(sizes).index(c) for c in chosen])
    elif match := _IOTA.search(attributes):
        shape, order = _numbers(match[1]), _numbers(match[2])
        axes = _numbers(match[3]) if match[3] else list(range(len(order)))
        flat = _transposed(order, axes)
        return [tuple(flat[i : i + shape[1]]) for i in range(0, len(flat), shape[1])]
    elif match := _LISTS.search(attributes):
        listed = [tuple(_numbers(g)) for g in re.findall(r"\{([\d,]+)\}", match[1])]
        return listed or [tuple(range(num_devices))]
    raise ValueError(f"groups of devices that are written in a new way: {attributes}")


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def _along(sizes: list[int], axes: list[int]) -> list[tuple[int, ...]]:
    """Groups of the devices that differ only along some axes of a mesh."""
    others = [i for i in range(len(sizes)) if i not in axes]
    flat = _transposed(sizes, [*others, *axes])
    size = math.prod(sizes[i] for i in axes)
    return [tuple(flat[i : i + size]) for i in range(0, len(flat), size)]


def _transposed(sizes: list[int], axes: list[int]) -> list[int]:
    """The numbers 0, 1, ... in an array of these sizes, read in another order."""
    strides = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    return [
        sum(index * strides[axis] for index, axis in zip(position, axes, strict=True))
        for position in itertools.product(*(range(sizes[axis]) for axis in axes))
    ]


def link_seconds(
    kind: str, size: int, group: Sequence[Place], topology: Topology
) -> float:
    """The time that one collective of `size` bytes keeps the links of a chip busy."""
    chip = topology.chip
    chips = set(group)
    slices = len({place[0] for place in chips})
    per_slice = len(chips) // slices
    # Devices of one chip in groups of their own share its links.
    shared = chip.devices * len(chips) / len(group)
    if kind == "collective-permute":
        return (
            size * shared / (chip.dcn_bandwidth if slices > 1 else chip.link_bandwidth)
        )
    passes = 2 if kind == "all-reduce" else 1
    seconds = 0.0
    if per_slice > 1:
        spanned = [
            dimension
            for dimension in range(len(topology.shape))
            if len({place[1 + dimension] for place in chips}) > 1
        ]
        links = sum(2 if topology.wraps(dimension) else 1 for dimension in spanned)
        share = (per_slice - 1) / per_slice
        seconds += passes * size * share * shared / (links * chip.link_bandwidth)
    if slices > 1:
        share = (slices - 1) / slices
        part = size / per_slice  # each chip of a slice sends its own part on
        seconds += passes * part * share * shared / chip.dcn_bandwidth
    return seconds
