"""Bytes of HBM that an instruction reads and writes, with the padding of tiles."""

from vit_jax.planning.collectives import KINDS
from vit_jax.planning.hlo import Instruction, Module

# They name, group or reserve arrays and touch none of their bytes.
FREE = frozenset(
    (
        "after-all",
        "bitcast",
        "call",
        "conditional",
        "constant",
        "get-tuple-element",
        "opt-barrier",
        "parameter",
        "partition-id",
        "replica-id",
        "tuple",
        "while",
    )
)
# Reads of a part: only that part is touched.
_SLICES = ("dynamic-slice", "slice", "gather")


def hbm_bytes(module: Module, computation: str, instruction: Instruction) -> int:
    """Bytes read and written by one execution; operands on the chip cost nothing.

    A slice of an operand counts as the slice, an update in place as the update: a
    scanned layer reads its own weights, not those of all layers.
    """
    if instruction.opcode in FREE or "AllocateBuffer" in instruction.attributes:
        return 0
    names = module.computations[computation]
    if "calls" in instruction.called:
        inner = instruction.called["calls"]
        reads = sum(
            read_bytes(module, inner, i, names[operand])
            for i, operand in enumerate(instruction.operands)
        )
        return reads + written_bytes(module, inner, instruction)
    if instruction.opcode == "dynamic-update-slice":
        target, update = (names[name] for name in instruction.operands[:2])
        written = sum(array.padded_bytes for array in update.arrays)
        return update.hbm_bytes + (written if _in_hbm(target) else 0)
    if instruction.opcode in _SLICES:
        source = names[instruction.operands[0]]
        read = sum(a.padded_bytes for a in instruction.arrays) if _in_hbm(source) else 0
        return read + instruction.hbm_bytes
    return instruction.hbm_bytes + sum(
        names[name].hbm_bytes for name in instruction.operands
    )


def _in_hbm(instruction: Instruction) -> bool:
    return any(array.space == 0 for array in instruction.arrays)


def read_bytes(module: Module, fusion: str, index: int, operand: Instruction) -> int:
    """What a fused computation reads of its parameter number `index`."""
    if not _in_hbm(operand):
        return 0
    names = module.computations[fusion]
    parameter = next(
        x
        for x in names.values()
        if x.opcode == "parameter" and x.argument == str(index)
    )
    parts = _parts_read(module, fusion, parameter.name)
    return operand.hbm_bytes if parts is None else min(parts, operand.hbm_bytes)


def _parts_read(module: Module, fusion: str, name: str) -> int | None:
    """Bytes of the slices that are read of a value; None if it is read as a whole."""
    total = 0
    for user in module.computations[fusion].values():
        if name not in user.operands:
            continue
        if user.opcode in _SLICES and user.operands[0] == name:
            total += sum(array.padded_bytes for array in user.arrays)
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
            continue  # what is not updated stays where it is
        elif user.opcode in KINDS or (user.is_root and user.opcode == "tuple"):
            continue  # sent on or handed on: see `collectives`
        elif user.opcode == "bitcast" and not user.is_root:
            parts = _parts_read(module, fusion, user.name)
            if parts is None:
                return None
            total += parts
        elif user.opcode == "fusion":
            inner = user.called["calls"]
            for i, operand in enumerate(user.operands):
                if operand == name:
                    parameter = next(
                        x
                        for x in module.computations[inner].values()
                        if x.opcode == "parameter" and x.argument == str(i)
                    )
                    parts = _parts_read(module, inner, parameter.name)
                    if parts is None:
                        return None
                    total += parts
        else:
            return None
    return total


def written_bytes(module: Module, fusion: str, instruction: Instruction) -> int:
    """What a fusion writes: of an update in place only the update."""
    root = module.root(fusion)
    names = module.computations[fusion]
    results = (
        [names[name] for name in root.operands] if root.opcode == "tuple" else [root]
    )
    if len(results) != len(instruction.arrays):  # tuples within tuples
        return instruction.hbm_bytes
    total = 0
    for array, result in zip(instruction.arrays, results, strict=True):
        if array.space == 0 and result.opcode not in (*KINDS, "parameter"):
            update = _update_bytes(module, fusion, result)
            total += array.padded_bytes if update is None else update
    return total


def _update_bytes(module: Module, fusion: str, result: Instruction) -> int | None:
    """Bytes of the update, if a result is an array that was updated in place."""
    names = module.computations[fusion]
    while result.opcode == "bitcast":
        result = names[result.operands[0]]
    if result.opcode == "dynamic-update-slice":
        return sum(array.padded_bytes for array in names[result.operands[1]].arrays)
    if result.opcode == "fusion":
        inner = result.called["calls"]
        return _update_bytes(module, inner, module.root(inner))
    return None
