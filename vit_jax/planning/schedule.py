"""The compiler's final schedule: instruction bundles of each operation.

A TPU core issues one bundle a cycle. The compiler dumps the bundles of each operation
that it generates code for (`*-NAME-*-final_bundles.txt`), and those of the program that
calls them ("TLP"), which also holds small operations, transfers and loops over layers.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from vit_jax.planning import hlo

DUMP = "*final_bundles.txt"
_FILE = re.compile(r"\d+-(.+)-\d+-final_bundles\.txt")
# Address, what begins here (LB: the body of a loop), and a > for each loop around it.
_BUNDLE = re.compile(r"\s*(?:0x)?[0-9a-f]+\s+(LB|[A-Z]{2})?\s*:\s*((?:> ?)*)\{")
_EXIT = re.compile(r"(%s\d+\w*), (\d+) /\* loop exit test \*/")
_STEP = re.compile(r"(%s\d+\w*) = sadd\.s32 (\d+), ")
_CALL = re.compile(r"inlined_call [^/]*/\* %([\w.\-]+) = ")


@dataclasses.dataclass
class Loop:
    """A loop of a schedule; the outermost "loop" is the whole, and runs once."""

    bundles: int = 0
    trips: int | None = None
    calls: list[str] = dataclasses.field(default_factory=list)
    inner: list["Loop"] = dataclasses.field(default_factory=list)
    steps: dict[str, int] = dataclasses.field(default_factory=dict)  # of counters

    def cycles(self, trips_of: Callable[["Loop"], int]) -> int:
        """Bundles times iterations; `trips_of` says those of a loop without a count."""
        once = self.bundles + sum(loop.cycles(trips_of) for loop in self.inner)
        return once * (trips_of(self) if self.trips is None else self.trips)

    def all_calls(self) -> Iterator[str]:
        yield from self.calls
        for loop in self.inner:
            yield from loop.all_calls()


def parse(lines: Iterable[str]) -> Loop:
    """Reads one dump.

    >>> loop = parse(["   0   :  { %a }", " 0x1 LB: > { %s3_s1 = sadd.s32 2, %s4_s1 }",
    ...     " 0x2   : > { %p = scmp.ge %s3_s1, 9 /* loop exit test */ }"])
    >>> loop.cycles(lambda loop: 1)  # 0, 2, 4, 6, 8
    11
    """
    stack = [Loop(trips=1)]
    for line in lines:
        match = _BUNDLE.match(line)
        if match is None:
            continue
        if line.rstrip().endswith("{}") or ":  {} /*" in line:
            stack[-1].bundles += 1  # empty ones are written without their depth
            continue
        depth = match[2].count(">")
        del stack[depth + 1 :]
        if match[1] == "LB" and depth:
            del stack[depth:]  # a loop beside the one before
        while len(stack) <= depth:
            stack[-1].inner.append(Loop())
            stack.append(stack[-1].inner[-1])
        stack[-1].bundles += 1
        if depth and "sadd" in line:
            found = ((name, int(by)) for name, by in _STEP.findall(line))
            stack[-1].steps |= {name: by for name, by in found if by < 1 << 31}
        if "loop exit test" in line and (end := _EXIT.search(line)):
            # Counters start at 0; most, but not all, count by ones.
            steps = stack[-1].steps
            by = steps[end[1]] if end[1] in steps else 1
            stack[-1].trips = -(-int(end[2]) // by)
        if "inlined_call" in line and (call := _CALL.search(line)):
            stack[-1].calls.append(call[1])
    return stack[0]


def read(directory: Path) -> dict[str, Loop]:
    """The schedules of a dump by the operation's name; "TLP" is the program itself.

    An operation that was compiled several times counts as the last time.
    """
    schedules = {}
    for path in sorted(directory.glob(DUMP)):
        if match := _FILE.fullmatch(path.name):
            with path.open() as lines:
                schedules[match[1]] = parse(lines)
    return schedules


class Cycles:
    """Cycles of the operations of a program."""

    def __init__(self, module: hlo.Module, schedules: Mapping[str, Loop]) -> None:
        self._times = module.times()
        self._module, self._schedules = module, schedules
        self._home = {
            name: computation
            for computation in self._times
            for name in module.computations[computation]
        }
        self._by_signature = {
            self._signature(name): loop
            for name, loop in schedules.items()
            if name in self._home
        }

    def _signature(self, name: str) -> str:
        instruction = self._module.computations[self._home[name]][name]
        return hlo.signature(self._module, instruction)

    def of(self, name: str) -> int | None:
        """Cycles of one execution, None where the program has no code of its own.

        Code is generated once for all operations that are equal.
        """
        loop = self._schedules.get(name)
        if loop is None:
            loop = self._by_signature.get(self._signature(name))
        return None if loop is None else loop.cycles(lambda _: 1)

    def of_program(self) -> int:
        """Cycles of the program around its operations.

        A loop without a count there is one over layers or micro-batches, and runs as
        often as what it calls; else it waits for something and is counted once.
        """

        def times(loop: Loop) -> int:
            return max(
                (
                    self._times[self._home[n]]
                    for n in loop.all_calls()
                    if n in self._home
                ),
                default=1,
            )

        return self._schedules["TLP"].cycles(times)
