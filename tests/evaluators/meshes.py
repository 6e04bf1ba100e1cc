"""Meshes of the devices that the tests have."""

import jax
from jax.sharding import AxisType, Mesh

SHAPES = [(1, 1, 1), (8, 1, 1), (2, 2, 2)]


def of(shape: tuple[int, int, int]) -> Mesh:
    axes, types = ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3
    count = shape[0] * shape[1] * shape[2]
    devices = jax.devices()[:count]
    return jax.make_mesh(shape, axes, axis_types=types, devices=devices)
