"""Which axis of the mesh each array is laid out over; `layouts` says what they are."""

import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_jax.errors import UserError
from vit_jax.layouts import nearest_multiples

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
    (r"(MlpBlock_\d+|channel_mixing)/Dense_0/kernel", (None, "tensor")),  # [d, m]
    (r"(MlpBlock_\d+|channel_mixing)/Dense_0/bias", ("tensor",)),  # [m]
    (r"(MlpBlock_\d+|channel_mixing)/Dense_1/kernel", ("tensor", None)),  # [m, d]
    (r"head(_dist)?/kernel", (None, "tensor")),  # [d, classes]
    (r"head(_dist)?/bias", ("tensor",)),  # [classes]
    (r"(kernel|bias|scale|cls|dist|registers|pos_embedding|probe)", _NONE),
    (r"(step|count|bad_examples|notfinite_count)", _NONE),
)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first dimension over `data` and `fsdp`, the others whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch_size(mesh: Mesh, batch_size: int, *, key: str) -> None:
    """Refuses a batch that the devices do not divide."""
    unit = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if batch_size % unit:
        raise UserError(
            f"config.{key} is {batch_size}, which {unit} (mesh data "
            f"{mesh.shape['data']} x fsdp {mesh.shape['fsdp']}) does not divide; "
            "nearest that work: " + nearest_multiples(batch_size, unit)
        )


def residual_constraint(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """Pins the residual stream [b, n, d] to the batch axes.

    Left to itself the TPU compiler may replicate the batch and shard the width, which
    made an FSDP step of ViT-H/14 several times slower.
    """
    sharding = batch_sharding(mesh)
    return lambda x: jax.lax.with_sharding_constraint(x, sharding)


def shared_classifier(
    mesh: Mesh,
) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    """The head's product x [..., d] @ kernel [d, k] + bias, shared out over `tensor`.

    The devices of `tensor` need equal parts of the classes: k is padded where it must
    be. The parameters keep their shape, so that a checkpoint suits any mesh.
    """

    def classify(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        classes = kernel.shape[1]
        padding = -classes % mesh.shape["tensor"]
        kernel = jnp.pad(kernel, ((0, 0), (0, padding)))
        logits = x @ kernel + jnp.pad(bias, (0, padding))
        parts = PartitionSpec(BATCH_AXES, *[None] * (x.ndim - 2), "tensor")
        sharding = NamedSharding(mesh, parts)
        return jax.lax.with_sharding_constraint(logits, sharding)[..., :classes]

    return classify


def over_heads(
    mesh: Mesh, attend: Callable[..., jax.Array]
) -> Callable[..., jax.Array]:
    """`attend` on arrays [b, n, h, k], each device on its own images and heads.

    For kernels, which the compiler cannot divide by itself. Keywords are handed on.
    """
    parts = PartitionSpec(BATCH_AXES, None, "tensor")

    def run(*arrays: jax.Array, **options: Any) -> jax.Array:
        return jax.shard_map(
            functools.partial(attend, **options),
            mesh=mesh,
            in_specs=(parts,) * len(arrays),
            out_specs=parts,
            check_vma=False,  # a kernel does not say over which axes its result varies
        )(*arrays)

    return run


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
    if preferred is None and path.startswith("objective/"):
        preferred = _NONE  # of an objective, what is no copy of parameters
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


def state_shardings(mesh: Mesh, abstract_state: Any, *, zero1: bool = False) -> Any:
    """A NamedSharding for every leaf of an abstract train state.

    With `zero1` each device holds whole parameters and averages, so that `fsdp` divides
    the optimiser's state alone.
    """

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name, sizes = path_name(path), dict(mesh.shape)
        if zero1 and name.startswith(("params/", "ema_params/", "objective/")):
            sizes["fsdp"] = 1
        return NamedSharding(mesh, spec(name, leaf.shape, sizes))

    return jax.tree_util.tree_map_with_path(sharding, abstract_state)


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
    batch: Mapping[str, np.ndarray], sharding: NamedSharding, batch_size: int
) -> dict[str, jax.Array]:
    """A global batch on the devices; returns before it has arrived.

    Args:
      batch: the rows that `process_rows` says, in their order.
      sharding: from `batch_sharding`.
      batch_size: global.
    """
    if jax.process_count() == 1:
        return {name: jax.device_put(rows, sharding) for name, rows in batch.items()}
    held = process_rows(sharding, batch_size)
    parts = {
        device: index[0].indices(batch_size)[:2]
        for device, index in sharding.addressable_devices_indices_map(
            (batch_size,)
        ).items()
        if index is not None
    }

    def put(rows: np.ndarray) -> jax.Array:
        of_devices = []
        for first, last in parts.values():
            start = int(np.searchsorted(held, first))  # without a gap from here
            of_devices.append(rows[start : start + last - first])
        return jax.make_array_from_single_device_arrays(
            (batch_size, *rows.shape[1:]),
            sharding,
            jax.device_put(of_devices, list(parts)),
        )

    return {name: put(rows) for name, rows in batch.items()}


def abstract_everywhere(mesh: Mesh, arrays: Any) -> Any:
    """Shapes, types and shardings of a tree of which every device has all."""
    everywhere = replicated(mesh)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), arrays
    )


def put_everywhere(mesh: Mesh, arrays: Any) -> Any:
    """A tree of arrays on the host, put whole on every device."""
    everywhere = replicated(mesh)

    def put(x: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(x.shape, everywhere, x.__getitem__)

    return jax.tree.map(put, arrays)
