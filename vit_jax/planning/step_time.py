"""The time of a step from its schedule and its HBM traffic, by part of the model.

For each operation the longer of two: its bundles at the clock of a core, and its bytes
at the bandwidth of HBM. This leaves out waiting for the links and takes prefetching as
perfect, so it is a lower bound that ranks arrangements; see docs/planning.md.
"""

import dataclasses
import re
from pathlib import Path

from vit_jax.planning import schedule, traffic
from vit_jax.planning.collectives import KINDS
from vit_jax.planning.hlo import Instruction, Module
from vit_jax.planning.topologies import Chip

# (part, pattern of the name in the traced program); the first that matches counts.
_PARTS = (
    ("optimizer", r"/optimizer/"),
    ("head and loss", r"/head/|/pre_logits/|/MAPHead_0/|/loss|log_softmax"),
    ("attention", r"/MultiHeadDotProductAttention_\d+"),
    ("MLP", r"/MlpBlock_\d+"),
    ("norms", r"/LayerNorm_\d+|/encoder_norm"),
    ("embedding", r"/embedding|_embed|/posembed_input"),
    ("residual and dropout", r"/encoderblock|/Dropout_0|/Transformer\._scan"),
)
PARTS = (*(part for part, _ in _PARTS), "other", "program")


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Milliseconds of one step on one device.

    Attributes:
      parts: of each part of the model, forward and backward. "program" is what runs
        between operations: starting transfers, counting iterations.
      bundles_ms: what the bundles alone take, and `traffic_ms` what the bytes that
        operations read and write take.
      prefetch_ms: transfers between HBM and the chip beside other work, which are
        taken as hidden behind it.
      unscheduled: matrix products whose schedule was not found: above 0, the time is
        too short.
      slowest: (ms, times it runs, name in the traced program, result), for each of the
        operations that take longest.
    """

    parts: dict[str, float]
    bundles_ms: float
    traffic_ms: float
    prefetch_ms: float
    unscheduled: int
    slowest: list[tuple[float, int, str, str]]

    @property
    def total_ms(self) -> float:
        return sum(self.parts.values())


def estimate(module: Module, dump: Path, chip: Chip, most: int = 12) -> StepTime:
    """Reads the schedules under `dump` and adds them up."""
    cycles = schedule.Cycles(module, schedule.read(dump))
    parts = dict.fromkeys(PARTS, 0.0)
    parts["program"] = 1e3 * cycles.of_program() / chip.clock
    bundles = prefetch = moved = 0.0
    unscheduled = 0
    operations = []
    for computation, instruction, times in module.executed():
        if instruction.opcode in ("copy-start", "slice-start"):
            prefetch += times * transferred(instruction)
        if not is_work(module, instruction):
            continue
        count = cycles.of(instruction.name)
        if count is None:  # it is within the program's own code
            unscheduled += times * multiplies(module, instruction)
            count = 0
        size = traffic.hbm_bytes(module, computation, instruction)
        ms = 1e3 * max(count / chip.clock, size / chip.device_hbm_bandwidth)
        parts[part_of(instruction.op_name)] += times * ms
        bundles += times * count
        moved += times * size
        shown = str(instruction.arrays[0]) if instruction.arrays else ""
        operations.append((times * ms, times, instruction.op_name, shown))
    operations.sort(reverse=True)
    return StepTime(
        parts=parts,
        bundles_ms=1e3 * bundles / chip.clock + parts["program"],
        traffic_ms=1e3 * moved / chip.device_hbm_bandwidth,
        prefetch_ms=1e3 * prefetch / chip.device_hbm_bandwidth,
        unscheduled=unscheduled,
        slowest=operations[:most],
    )


def is_work(module: Module, instruction: Instruction) -> bool:
    """Whether an instruction computes or copies, and is not just a collective."""
    opcode = instruction.opcode
    if opcode in traffic.FREE or opcode.removesuffix("-start") in KINDS:
        return False
    if "calls" in instruction.called:
        inner = instruction.called["calls"]
        opcodes = {x.opcode for x in module.computations[inner].values()}
        # Such as the start of an asynchronous one. What cuts an all-reduce to a
        # reduce-scatter is in a computation of this name.
        if opcodes & set(KINDS) and (
            "all-reduce-scatter" in inner or opcodes <= {*KINDS, *traffic.FREE}
        ):
            return False
    if opcode in ("send", "recv"):
        return False
    return not opcode.endswith(("-start", "-done", "-update"))


def multiplies(module: Module, instruction: Instruction) -> bool:
    """Whether an instruction, or what it calls, is a matrix product."""
    return instruction.opcode in ("convolution", "dot") or any(
        multiplies(module, inner)
        for name in instruction.called.values()
        for inner in module.computations[name].values()
    )


def transferred(instruction: Instruction) -> int:
    """Bytes of a transfer that runs beside other work."""
    return min(array.padded_bytes for array in instruction.arrays[:2])


def part_of(op_name: str) -> str:
    """Which of `PARTS` an operation belongs to.

    A fusion has the name of one of the operations in it, mostly of a matrix product.

    >>> part_of("jit(train_step)/jvp(VisionTransformer)/Transformer/encoderblock_3/"
    ...         "MlpBlock_0/Dense_0/dot_general")
    'MLP'
    """
    return next(
        (part for part, pattern in _PARTS if re.search(pattern, op_name)), "other"
    )
