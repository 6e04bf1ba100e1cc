"""The compiler's optimised HLO as text: instructions, shapes, and how often each runs.

Read from a dump, because that is there before code generation has even begun.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

_BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(
    r"(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a shape.

    Attributes:
      dtype: such as "bf16".
      dims: as written, without padding.
      padded_bytes: that it takes in memory, where TPUs pad the two minor dimensions to
        tiles.
      space: of memory; 0 is HBM, others are on the chip or on the host.
    """

    dtype: str
    dims: tuple[int, ...]
    padded_bytes: int
    space: int

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Without padding."""
        return self.size * bits(self.dtype) // 8

    @property
    def hbm_bytes(self) -> int:
        return 0 if self.space else self.padded_bytes

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool
    argument: str  # what stands in the parentheses, for constants and parameters

    @property
    def arrays(self) -> tuple[Array, ...]:
        """Those of the result, a tuple's elements in their order."""
        return arrays(self.shape)

    @property
    def hbm_bytes(self) -> int:
        return sum(array.hbm_bytes for array in self.arrays)

    @property
    def op_name(self) -> str:
        """Where in the traced program it comes from; "" if the compiler made it."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else ""

    @property
    def called(self) -> dict[str, str]:
        """Computations by their role, such as "body" or "calls"."""
        found = dict(_CALLED.findall(self.attributes))
        if match := _BRANCHES.search(self.attributes):
            for i, name in enumerate(match[1].split(",")):
                found[f"branch {i}"] = name.strip().lstrip("%")
        return found


class Module:
    """The computations of a program.

    Attributes:
      computations: instructions by name, in order, by the computation's name.
      entry: the computation that is run.
    """

    def __init__(self, text: str) -> None:
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            if line.startswith("  "):
                if (instruction := parse_instruction(line)) is not None:
                    current[instruction.name] = instruction
            elif match := _HEAD.match(line):
                current = self.computations[match[2]] = {}
                self.entry = match[2] if match[1] else self.entry

    def root(self, computation: str) -> Instruction:
        return next(x for x in self.computations[computation].values() if x.is_root)

    def executed(self) -> Iterator[tuple[str, Instruction, int]]:
        """(computation, instruction, times) of all that runs, loops unrolled.

        What is inside a fusion is not listed: the fusion runs as one.
        """
        for computation, times in self.times().items():
            for instruction in self.computations[computation].values():
                yield computation, instruction, times

    def times(self) -> dict[str, int]:
        """How often each computation runs in one call of the program."""
        total: dict[str, int] = {}

        def visit(computation: str, times: int) -> None:
            total[computation] = total.get(computation, 0) + times
            for instruction in self.computations[computation].values():
                match instruction.opcode:
                    case "while":
                        trips = self.trips(instruction) or 1  # see uncounted_loops
                        visit(instruction.called["body"], times * trips)
                    case "call" | "conditional":  # of a conditional the sum: too much
                        for name in instruction.called.values():
                            visit(name, times)

        visit(self.entry, 1)
        return total

    def uncounted_loops(self) -> list[str]:
        """Where loops come from whose iterations depend on values, as in sampling."""
        return [
            instruction.op_name
            for _, instruction, _ in self.executed()
            if instruction.opcode == "while" and self.trips(instruction) is None
        ]

    def trips(self, loop: Instruction) -> int | None:
        """Iterations of a `while` that counts from 0 up to a constant, else None."""
        condition = self.computations[loop.called["condition"]]
        test = self.root(loop.called["condition"])
        if test.opcode == "compare" and "direction=LT" in test.attributes:
            for name in test.operands:
                if condition[name].opcode == "constant":
                    return int(condition[name].argument)
        return None


def parse_instruction(line: str) -> Instruction | None:
    """One line such as `  ROOT %add.1 = f32[8]{0} add(%a, %b), metadata={...}`.

    >>> parse_instruction("  ROOT %x.1 = (f32[8]{0}, s32[]) tuple(%a, %b), k=1").opcode
    'tuple'
    """
    name, equals, rest = line.strip().partition(" = ")
    if not equals:
        return None
    is_root = name.startswith("ROOT ")
    if rest.startswith("("):
        end = _closing(rest, 0) + 1
    else:
        end = rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    argument = rest[opening + 1 : closing]
    operands = tuple(re.findall(r"%([\w.\-]+)", argument))
    return Instruction(
        name=name.removeprefix("ROOT ").lstrip("%"),
        shape=shape,
        opcode=rest[:opening],
        operands=operands,
        attributes=rest[closing + 1 :],
        is_root=is_root,
        argument=argument,
    )


def _closing(text: str, opening: int) -> int:
    """Where the parenthesis that opens at `opening` is closed."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"unbalanced: {text[:200]}")


def arrays(shape: str) -> tuple[Array, ...]:
    """The arrays of a shape as HLO writes it.

    >>> [str(x) for x in arrays("(f32[8,3]{1,0:T(8,128)}, bf16[2]{0:T(256)S(1)})")]
    ['f32[8,3]', 'bf16[2]']
    >>> [x.padded_bytes for x in arrays("f32[8,3]{1,0:T(8,128)}")]
    [4096]
    """
    found = []
    for dtype, dims_text, layout in _ARRAY.findall(shape):
        dims = tuple(int(n.lstrip("<=")) for n in dims_text.split(",") if n)
        space = re.search(r"S\((\d+)\)", layout)
        found.append(
            Array(
                dtype,
                dims,
                _padded_size(dims, layout) * bits(dtype) // 8,
                int(space[1]) if space else 0,
            )
        )
    return tuple(found)


def bits(dtype: str) -> int:
    """Bits of one element.

    >>> bits("bf16"), bits("f32"), bits("s4"), bits("f8e4m3fn"), bits("pred")
    (16, 32, 4, 8, 8)
    """
    if dtype in _BITS:
        return _BITS[dtype]
    match = re.match(r"[a-z]+?(\d+)", dtype)
    assert match is not None, dtype
    return int(match[1]) * (2 if dtype.startswith("c") else 1)


def _padded_size(dims: tuple[int, ...], layout: str) -> int:
    """Elements with the padding of the first tile, `{minor, ..., major:T(8,128)}`."""
    order, _, rest = layout.partition(":")
    tile_text = re.search(r"T\(([\d,*]+)\)", rest)
    if tile_text is None:
        return math.prod(dims)
    tile = [int(n) for n in tile_text[1].split(",") if n != "*"]
    minor_first = [dims[int(i)] for i in order.split(",") if i] or [1]
    minor_first += [1] * (len(tile) - len(minor_first))
    for i, n in enumerate(reversed(tile)):
        minor_first[i] = -(-minor_first[i] // n) * n
    return math.prod(minor_first)


def signature(module: Module, instruction: Instruction) -> str:
    """What an instruction computes, without names: equal for equal work.

    The TPU compiler generates code once for all instructions that agree in it.
    """

    def describe(computation: Mapping[str, Instruction]) -> str:
        number = {name: str(i) for i, name in enumerate(computation)}
        return "\n".join(
            f"{x.shape} {x.opcode}({[number[n] for n in x.operands if n in number]})"
            f"{_plain(x.attributes)}{x.argument if x.opcode == 'constant' else ''}"
            f"{inner(x)}"
            for x in computation.values()
        )

    def inner(x: Instruction) -> str:
        called = [module.computations[name] for name in x.called.values()]
        return "".join(f" {{\n{describe(c)}\n}}" for c in called)

    return f"{instruction.shape} {instruction.opcode}{inner(instruction)}"


def _plain(attributes: str) -> str:
    """Attributes without names, sources and the compiler's notes.

    >>> _plain(", channel_id=7, dimensions={0}, to_apply=%add.3, metadata={}")
    ', dimensions={0}'
    """
    attributes = re.sub(r", (channel_id=\d+|to_apply=%[\w.-]+)", "", attributes)
    for start in ("metadata=", "backend_config=", "calls=", "frontend_attributes="):
        attributes = attributes.split(f", {start}")[0]
    return attributes
