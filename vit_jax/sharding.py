"""The mesh, and which axis of it each array of the state is laid out over.

Axes of the mesh: `data` (the batch alone), `fsdp` (the batch, and every large array of
the state), `tensor` (attention heads and the MLP's hidden dimension).
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vit_jax.errors import UserError

BATCH_AXES = ("data", "fsdp")

# Arrays with fewer elements than this are replicated: gathering them would cost more
# in latency than holding them costs in memory.
MIN_SHARDED_SIZE = 2**12

# (pattern of the end of a path, preferred mesh axis of each trailing dimension). The
# first match wins and a path without a match raises, so that a new kind of parameter
# is thought about once. A leading layer axis, as in scanned layers, takes no axis.
# Optimiser moments end in the path of their parameter and so follow it.
_NONE = (None,)
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(query|key|value)/kernel", (None, "tensor", None)),  # [d, h, k]
    (r"(query|key|value)/bias", ("tensor", None)),  # [h, k]
    (r"MultiHeadDotProductAttention_\d+/out/kernel", ("tensor", None, None)),  # [h,k,d]
    (r"MlpBlock_\d+/Dense_0/kernel", (None, "tensor")),  # [d, m]
    (r"MlpBlock_\d+/Dense_0/bias", ("tensor",)),  # [m]
    (r"MlpBlock_\d+/Dense_1/kernel", ("tensor", None)),  # [m, d]
    (r"(kernel|bias|scale|cls|pos_embedding|probe)", _NONE),
    (r"(step|count|bad_examples|notfinite_count)", _NONE),
)


def make_mesh(
    devices: Sequence[Any] | None = None,
    *,
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
) -> Mesh:
    """A mesh with the axes `data`, `fsdp` and `tensor`; -1 means "what is left".

    Raises:
      UserError: if the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = {"data": data, "fsdp": fsdp, "tensor": tensor}
    free = [axis for axis, size in shape.items() if size == -1]
    fixed = math.prod(size for size in shape.values() if size != -1)
    given = " x ".join(f"{axis} {size}" for axis, size in shape.items())
    if len(free) > 1 or any(size < 1 and size != -1 for size in shape.values()):
        raise UserError(
            f"config.mesh is {given}: sizes are at least 1, and one may be -1"
        )
    if free and len(devices) % fixed == 0:
        shape[free[0]] = len(devices) // fixed
    if math.prod(shape.values()) != len(devices):
        raise UserError(
            f"config.mesh is {given}, but there are {len(devices)} devices: the sizes "
            f"must multiply to {len(devices)}; --config.mesh.data=-1 takes what is left"
        )
    return jax.make_mesh(
        tuple(shape.values()),
        tuple(shape),
        axis_types=(AxisType.Auto,) * len(shape),
        devices=devices,
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first dimension over `data` and `fsdp`, the others whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch_size(mesh: Mesh, batch_size: int, *, parts: int = 1, key: str) -> None:
    """Refuses a batch that the devices (times `parts` micro-batches) do not divide."""
    devices = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    unit = devices * parts
    if batch_size % unit or batch_size < unit:
        below, above = batch_size // unit * unit, -(-batch_size // unit) * unit
        micro = f" and {parts} accumulation steps" if parts > 1 else ""
        nearest = f"{below} or {above}" if below else f"{above}"
        raise UserError(
            f"config.{key} is {batch_size}, which {devices} devices (mesh data "
            f"{mesh.shape['data']} x fsdp {mesh.shape['fsdp']}){micro} do not divide; "
            f"nearest that work: {nearest}"
        )


def check_tensor(mesh: Mesh, **sizes: int) -> None:
    """Refuses a model whose heads or MLP the `tensor` axis does not divide."""
    tensor = mesh.shape["tensor"]
    for name, size in sizes.items():
        if size % tensor:
            divisors = [d for d in range(1, size + 1) if size % d == 0]
            raise UserError(
                f"config.mesh.tensor is {tensor}, which does not divide model.{name} "
                f"{size}; sizes of tensor that do: {', '.join(map(str, divisors))}"
            )


def residual_constraint(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """Pins the residual stream [b, n, d] to the batch axes.

    Left to itself the TPU compiler may replicate the batch and shard the width, which
    made an FSDP step of ViT-H/14 several times slower.
    """
    sharding = batch_sharding(mesh)
    return lambda x: jax.lax.with_sharding_constraint(x, sharding)


def path_name(path: tuple[Any, ...]) -> str:
    """A key path of `jax.tree_util` as "params/Transformer/.../kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def spec(path: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> PartitionSpec:
    """Which mesh axis each dimension of one array is laid out over.

    Args:
      path: such as "params/Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel".
      shape: of the array.
      sizes: of the mesh's axes.

    Raises:
      LookupError: if no rule names the path.

    >>> sizes = {"data": 1, "fsdp": 2, "tensor": 2}
    >>> spec("MlpBlock_0/Dense_0/kernel", (64, 256), sizes)
    P('fsdp', 'tensor')
    """
    preferred = next(
        (axes for end, axes in RULES if re.search(f"(^|/){end}$", path)), None
    )
    if preferred is None and re.search(r"(^|/)(v_row|v_col|v)(/|$)", path):
        preferred = _NONE  # Adafactor's factored moments: vectors, not worth a rule
    if preferred is None:
        raise LookupError(f"no sharding rule matches {path}: add one to RULES")
    axes: list[str | None] = [None] * len(shape)
    if math.prod(shape) < MIN_SHARDED_SIZE and "tensor" not in preferred:
        return PartitionSpec()
    if len(preferred) <= len(shape):
        offset = len(shape) - len(preferred)  # of a leading layer axis
        for i, axis in enumerate(preferred):
            if axis and sizes[axis] > 1 and shape[offset + i] % sizes[axis] == 0:
                axes[offset + i] = axis
    free = [
        i
        for i, n in enumerate(shape)
        if axes[i] is None
        and n % sizes["fsdp"] == 0
        and math.prod(shape) >= MIN_SHARDED_SIZE
    ]
    if sizes["fsdp"] > 1 and free:
        axes[max(free, key=lambda i: shape[i])] = "fsdp"
    return PartitionSpec(*axes)


def state_shardings(mesh: Mesh, abstract_state: Any) -> Any:
    """A NamedSharding for every leaf of an abstract train state."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(
            mesh, spec(path_name(path), leaf.shape, mesh.shape)
        ),
        abstract_state,
    )


def process_rows(sharding: NamedSharding, batch_size: int) -> np.ndarray:
    """The rows of the global batch that this process's devices hold, sorted, int64.

    On pods they are often not contiguous, and processes that differ only along
    `tensor` hold the same rows.
    """
    held = np.zeros(batch_size, bool)
    for index in sharding.addressable_devices_indices_map((batch_size,)).values():
        held[index] = True
    return np.flatnonzero(held)


def put_batch(
    batch: Mapping[str, np.ndarray], sharding: NamedSharding
) -> dict[str, jax.Array]:
    """A global batch on the devices; returns before it has arrived."""
    return {name: jax.device_put(rows, sharding) for name, rows in batch.items()}
