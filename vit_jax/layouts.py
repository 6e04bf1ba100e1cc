"""How many devices each axis of the mesh takes, and why a layout cannot work.

Axes of the mesh: `data` (the batch alone), `fsdp` (the batch, and every large array of
the state), `tensor` (attention heads and the MLP's hidden dimension).
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from vit_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The keys of `config.mesh`.

    Attributes:
      data: devices over which the batch alone is divided; -1 takes what is left.
      fsdp: devices over which the batch and the state are divided.
      tensor: devices over which heads, MLP and classes are divided.
      zero1: `fsdp` divides only the optimiser's state; each device holds all
        parameters (ZeRO stage 1, arXiv:1910.02054). Less to send, more to hold.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    zero1: bool = False

    def __str__(self) -> str:
        return " x ".join(f"{axis} {getattr(self, axis)}" for axis in AXES)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.data, self.fsdp, self.tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needs:
    """What a layout has to go together with.

    Attributes:
      devices: how many there are.
      slices: of TPUs, joined by the data-centre network.
      batch_size: global.
      accumulation_steps: micro-batches that the batch is cut into.
      model: the sizes of the model that `tensor` must divide, by key.
    """

    devices: int
    slices: int
    batch_size: int
    accumulation_steps: int
    model: Mapping[str, int]


def resolve(layout: Layout, needs: Needs) -> Layout:
    """The layout with a number in the place of -1.

    Raises:
      UserError: if it cannot work: why, and the nearest layouts that do.

    >>> needs = Needs(devices=8, slices=1, batch_size=32, accumulation_steps=1,
    ...               model={"num_heads": 3, "mlp_dim": 768})
    >>> str(resolve(Layout(fsdp=2), needs))
    'data 4 x fsdp 2 x tensor 1'
    """
    free = [axis for axis in AXES if getattr(layout, axis) == -1]
    if len(free) > 1 or any(size < 1 and size != -1 for size in layout.shape):
        raise UserError(
            f"config.mesh is {layout}: sizes are at least 1, and one may be -1"
        )
    if free:
        rest = needs.devices // -math.prod(layout.shape)
        layout = dataclasses.replace(layout, **{free[0]: max(rest, 1)})
    if reasons := list(objections(layout, needs)):
        raise UserError(
            f"config.mesh is {layout}: {'; '.join(reasons)}. {hint(layout, needs)}"
        )
    return layout


def objections(layout: Layout, needs: Needs) -> Iterator[str]:
    """What speaks against a layout without -1, in words; nothing if it works."""
    devices = math.prod(layout.shape)
    if devices != needs.devices:
        yield (
            f"that is {devices} devices, but there are {needs.devices} (the sizes must "
            f"multiply to {needs.devices})"
        )
        return  # what else does not fit follows from that
    unit = layout.data * layout.fsdp * needs.accumulation_steps
    if needs.batch_size % unit:
        parts = needs.accumulation_steps
        micro = f" x {parts} accumulation steps" if parts > 1 else ""
        yield (
            f"config.batch_size {needs.batch_size} is not divisible by {unit} (data "
            f"{layout.data} x fsdp {layout.fsdp}{micro}; nearest that are: "
            f"{nearest_multiples(needs.batch_size, unit)})"
        )
    for key, size in needs.model.items():
        if size % layout.tensor:
            yield f"tensor {layout.tensor} does not divide model.{key} {size}"
    if layout.data * layout.fsdp % needs.slices:
        yield (
            f"{needs.slices} slices do not divide data x fsdp "
            f"{layout.data * layout.fsdp}, and tensor cannot reach from one to another"
        )


def hint(layout: Layout, needs: Needs, *, most: int = 3) -> str:
    """The layouts nearest to one that does not work, as a sentence."""

    def distance(other: Layout) -> tuple[float, ...]:
        pairs = zip(layout.shape, other.shape, strict=True)
        steps = [abs(math.log2(a / b)) for a, b in pairs]
        return sum(steps), other.tensor, other.fsdp

    sizes = [n for n in range(1, needs.devices + 1) if needs.devices % n == 0]
    works = [
        candidate
        for fsdp, tensor in itertools.product(sizes, sizes)
        if needs.devices % (fsdp * tensor) == 0
        for data in [needs.devices // (fsdp * tensor)]
        for candidate in [Layout(data=data, fsdp=fsdp, tensor=tensor)]
        if not any(objections(candidate, needs))
    ]
    if not works:
        return f"No layout of {needs.devices} devices works with these numbers"
    nearest = "; ".join(str(x) for x in sorted(works, key=distance)[:most])
    return f"Nearest layouts of {needs.devices} devices that work: {nearest}"


def nearest_multiples(value: int, unit: int) -> str:
    """The multiples of `unit` on both sides of a value that is none.

    >>> nearest_multiples(20, 16), nearest_multiples(3, 16)
    ('16 or 32', '16')
    """
    below = value // unit * unit
    return f"{below} or {below + unit}" if below else f"{unit}"


def count_slices(devices: Sequence[Any]) -> int:
    """TPU slices among the devices; 1 for all other kinds."""
    if devices[0].platform != "tpu":
        return 1
    # The devices of a topology of one slice, which are only compiled for, lack it.
    return len({getattr(device, "slice_index", 0) for device in devices})


def make_mesh(layout: Layout, devices: Sequence[Any]) -> Mesh:
    """The devices in the order in which neighbours on an axis can talk fast.

    Between slices only the data-centre network lies: the outermost part of `data`
    crosses it, and of `fsdp` what `data` is too small for.
    """
    slices = count_slices(devices)
    if slices > 1:
        outer = math.gcd(layout.data, slices)
        between = (outer, slices // outer, 1)
        within = [n // m for n, m in zip(layout.shape, between, strict=True)]
        grid = mesh_utils.create_hybrid_device_mesh(
            within, between, devices, allow_split_physical_axes=True
        )
    else:
        grid = mesh_utils.create_device_mesh(
            layout.shape, devices, allow_split_physical_axes=True
        )
    return Mesh(np.asarray(grid), AXES, axis_types=(AxisType.Auto,) * len(AXES))
