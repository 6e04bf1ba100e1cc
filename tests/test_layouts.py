"""Layouts of devices: what works, what is refused, and where devices end up."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from vit_jax import layouts
from vit_jax.errors import UserError
from vit_jax.layouts import Layout, Needs

TI = Needs(  # Ti/16 on a v5e:4x2
    devices=8,
    slices=1,
    batch_size=64,
    accumulation_steps=2,
    model={"num_heads": 3, "mlp_dim": 768},
)


def works(data: int, fsdp: int, tensor: int) -> bool:
    """The rules of TI, by hand."""
    return data * fsdp * tensor == 8 and 32 % (data * fsdp) == 0 and tensor == 1


@pytest.mark.parametrize("shape", list(itertools.product((1, 2, 4, 8), repeat=3)))
def test_works_or_says_why_and_what_would(shape: tuple[int, int, int]) -> None:
    layout = Layout(data=shape[0], fsdp=shape[1], tensor=shape[2])
    if works(*shape):
        assert layouts.resolve(layout, TI) == layout
        return
    with pytest.raises(UserError) as caught:
        layouts.resolve(layout, TI)
    message = str(caught.value)
    assert str(layout) in message
    if math.prod(shape) != 8:
        assert f"that is {math.prod(shape)} devices, but there are 8" in message
    else:
        assert f"tensor {shape[2]} does not divide model.num_heads 3" in message
    proposed = message.partition("that work: ")[2].split("; ")
    assert len(proposed) == 3
    for text in proposed:
        assert works(*(int(word) for word in text.split() if word.isdigit()))


def test_minus_one_takes_what_is_left() -> None:
    assert layouts.resolve(Layout(fsdp=4), TI).shape == (2, 4, 1)
    assert layouts.resolve(Layout(data=2, fsdp=-1), TI).shape == (2, 4, 1)
    with pytest.raises(UserError, match="that is 6 devices"):
        layouts.resolve(Layout(fsdp=3), TI)


def test_nothing_works() -> None:
    needs = Needs(
        devices=8,
        slices=1,
        batch_size=9,
        accumulation_steps=1,
        model={"num_heads": 3, "mlp_dim": 768},
    )
    with pytest.raises(UserError, match="No layout of 8 devices works"):
        layouts.resolve(Layout(), needs)


@dataclasses.dataclass(frozen=True)
class FakeTpu:
    """What mesh_utils reads of a TPU."""

    slice_index: int
    coords: tuple[int, int, int]
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"

    @property
    def id(self) -> int:
        x, y, _ = self.coords
        return 1000 * self.slice_index + 10 * y + x

    @property
    def process_index(self) -> int:
        return self.slice_index


def fake_tpus(slices: int, rows: int, columns: int) -> list[FakeTpu]:
    """Devices in no helpful order."""
    grid = itertools.product(range(slices), range(rows), range(columns))
    devices = [FakeTpu(s, (x, y, 0)) for s, y, x in grid]
    order = np.random.default_rng(0).permutation(len(devices))
    return [devices[i] for i in order]


@pytest.mark.parametrize(
    "layout, crossing",
    [
        (Layout(data=4, fsdp=4, tensor=2), "data"),
        (Layout(data=2, fsdp=16, tensor=1), "data"),
        (Layout(data=1, fsdp=32, tensor=1), "fsdp"),
    ],
)
def test_only_the_outermost_axis_crosses_slices(layout: Layout, crossing: str) -> None:
    mesh = layouts.make_mesh(layout, fake_tpus(2, 4, 4))
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    for axis, name in enumerate(mesh.axis_names):
        changes = np.diff(slices, axis=axis)
        assert changes.any() == (name == crossing)
        if name == crossing:  # once: the first half is one slice, the second the other
            assert np.abs(changes).sum() == changes.size / changes.shape[axis]


def test_slices_that_cannot_be_told_apart_by_tensor() -> None:
    needs = Needs(
        devices=8,
        slices=2,
        batch_size=64,
        accumulation_steps=1,
        model={"num_heads": 8, "mlp_dim": 64},
    )
    with pytest.raises(UserError, match="2 slices do not divide data x fsdp 1"):
        layouts.resolve(Layout(data=1, tensor=8), needs)
    assert layouts.resolve(Layout(data=2, tensor=4), needs).tensor == 4
