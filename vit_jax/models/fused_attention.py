"""Attention for short sequences as one TPU kernel forward and one backward (Pallas).

XLA writes the scores of every head to memory and reads them back five times. Here they
live and die in the vector memory of a core. What is read and written is [b, n, h k],
the heads side by side, as the projections have it: a head of 64 then fills its half of
128 lanes, where [b, h, n, k] would be padded to twice its size, and nothing is
transposed in memory.

Axes: b batch, n tokens (as queries and as keys), h heads, k head dim. Inside the
kernels scores are [keys, queries]: sums over keys run across registers instead of
within them, and are rows, which broadcast for nothing.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from vit_jax.errors import UserError

LANES = 128  # of a vector register, and of a tile of memory
# Vector memory of a core, bytes. TPUs after v4 have at least 64 MiB.
VMEM_V4 = 16 * 2**20
VMEM_V5 = 64 * 2**20
LOG2_E = math.log2(math.e)


def fused_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    interpret: bool = False,
    vmem: int = VMEM_V4,
) -> jax.Array:
    """`softmax(q k^T / sqrt(k)) v` for each head: equations (6) and (7) of the paper.

    Agrees with `attention.dot_product_attention` without dropout. Scores, softmax and
    sums are in float32. For the backward pass it keeps its arguments and the logarithm
    of the softmax's denominator, which is named "attn_o" for remat policies.

    Args:
      query: [b, n, h, k].
      key: [b, n, h, k].
      value: [b, n, h, k], all of one dtype.
      interpret: computes the kernels without a TPU, slowly.
      vmem: bytes of vector memory that a core has.

    Returns:
      [b, n, h, k] in the dtype of the arguments.

    Raises:
      UserError: for arguments that the kernels cannot take; see `unsupported`.

    >>> query, key = jnp.ones((1, 16, 1, 8)), jnp.zeros((1, 16, 1, 8))
    >>> out = fused_attention(query, key, key + 1, interpret=True)
    >>> out.shape, bool((abs(out - 1) < 1e-6).all())
    ((1, 16, 1, 8), True)
    """
    reason = unsupported(query, key, vmem=vmem)
    if reason is not None:
        raise UserError(f'model.attention="fused" cannot be used: {reason}')
    b, n, h, _ = query.shape
    q, k, v = (x.reshape(b, n, -1) for x in (query, key, value))
    out: Any = _attention(h, interpret, vmem, q, k, v)
    return out.reshape(query.shape)


def unsupported(query: jax.Array, key: jax.Array, *, vmem: int = VMEM_V4) -> str | None:
    """Why the kernels cannot take these queries and keys; None if they can.

    >>> unsupported(jnp.zeros((2, 1, 12, 64)), jnp.zeros((2, 197, 12, 64)))
    'there are 1 queries for 197 keys'
    """
    _, n, h, k = query.shape
    if key.shape[1] != n:
        return f"there are {n} queries for {key.shape[1]} keys"
    if query.dtype not in (jnp.float32, jnp.bfloat16):
        return f"the dtype is {query.dtype}, not float32 or bfloat16"
    if k % 8 or n < 16:
        return f"{n} tokens, heads of {k}: it takes 16 or more, and multiples of 8"
    if choose_tiles(n, h, k, query.dtype.itemsize, vmem) is None:
        return f"{n} tokens in {h} heads of {k} do not fit into vector memory"
    return None


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How much of the work is done at once.

    Attributes:
      step: heads that a grid step reads and writes; all, or a multiple of 128 lanes.
      unit: heads of it that are computed together: the compiler interleaves them, so
        that matrix products of one run beside exponentials of another.
      queries: that are computed together; all, if their scores fit.
      buffers: of each block; with 2, memory is read ahead while a step computes.
    """

    step: int
    unit: int
    queries: int
    buffers: int

    def bytes(self, n: int, k: int, itemsize: int) -> int:
        """About what the backward kernel, which needs most, has in vector memory."""
        rows = _round_up(n, 16)
        blocks = 7 * rows * _round_up(self.step * k, LANES) * itemsize
        scores = self.unit * rows * _round_up(self.queries, LANES)
        sums = rows * _round_up(self.unit * k, LANES)
        return self.buffers * blocks + scores * (3 * 4 + 2 * itemsize) + sums * 16


@functools.cache
def choose_tiles(n: int, h: int, k: int, itemsize: int, vmem: int) -> Tiles | None:
    """The tiles that keep the core busiest; None if none fits into vector memory."""
    smallest = next(s for s in _divisors(h) if s * k % LANES == 0 or s == h)
    fitting = [
        tiles
        for step in _divisors(h)
        for unit in _divisors(step)
        for queries in (n, *range(LANES, n, LANES))
        for buffers in (1, 2)
        if step % smallest == 0
        and (step == smallest or step * k <= 3 * LANES)  # more only compiles longer
        and (n % queries == 0 or n % queries >= 16)
        and (tiles := Tiles(step, unit, queries, buffers)).bytes(n, k, itemsize)
        <= vmem * 3 // 4  # the compiler was seen to take up to a sixth more
    ]
    # Past about 1,024 columns of scores interleaving gains nothing.
    return max(
        fitting,
        key=lambda t: (t.buffers, min(t.unit * t.queries, 1024), t.step, t.queries),
        default=None,
    )


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _round_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attention(
    heads: int,
    interpret: bool,
    vmem: int,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
) -> jax.Array:
    """q, k, v [b, n, h k] to [b, n, h k]."""
    return _attention_fwd(heads, interpret, vmem, q, k, v)[0]


def _attention_fwd(
    heads: int,
    interpret: bool,
    vmem: int,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    out, lse = _call(_forward, heads, interpret, vmem, [q, k, v], products=2)
    # Or a remat policy that keeps "attn_o" would run the whole kernel again for it.
    return out, (q, k, v, checkpoint_name(lse, "attn_o"))


def _attention_bwd(
    heads: int,
    interpret: bool,
    vmem: int,
    residuals: tuple[jax.Array, ...],
    do: jax.Array,
) -> tuple[jax.Array, ...]:
    q, k, v, lse = residuals
    tokens = [q, k, v, do]
    return tuple(_call(_backward, heads, interpret, vmem, tokens, lse, products=5))


_attention.defvjp(_attention_fwd, _attention_bwd)


def _call(
    kernel: Callable[..., None],
    heads: int,
    interpret: bool,
    vmem: int,
    tokens: Sequence[jax.Array],
    lse: jax.Array | None = None,
    *,
    products: int,
) -> list[jax.Array]:
    """Runs a kernel over images and groups of heads.

    Args:
      kernel: a function of references: the tokens, the outputs, and `lse`.
      heads: h.
      interpret: and `vmem`, see `fused_attention`.
      tokens: inputs [b, n, h k].
      lse: an input [b, groups, heads of a group, n], float32; None makes it an output.
      products: matrix products of scores that the kernel computes.

    Returns:
      The outputs: one of tokens and `lse`; with `lse` given, three of tokens.
    """
    b, n, lanes = tokens[0].shape
    dtype = tokens[0].dtype
    tiles = choose_tiles(n, heads, lanes // heads, dtype.itemsize, vmem)
    assert tiles is not None, "fused_attention has checked it"
    groups = heads // tiles.step
    mode = pl.Buffered(tiles.buffers)
    of_tokens = pl.BlockSpec(
        (1, n, lanes // groups), lambda i, g: (i, 0, g), pipeline_mode=mode
    )
    of_lse = pl.BlockSpec((1, 1, tiles.step, n), lambda i, g: (i, g, 0, 0))
    like_tokens = jax.ShapeDtypeStruct(tokens[0].shape, dtype)
    like_lse = jax.ShapeDtypeStruct((b, groups, tiles.step, n), jnp.float32)
    backward = lse is not None
    return pl.pallas_call(
        functools.partial(kernel, tiles=tiles),
        grid=(b, groups),
        in_specs=[of_tokens] * len(tokens) + [of_lse] * backward,
        out_specs=[of_tokens] * 3 if backward else [of_tokens, of_lse],
        out_shape=[like_tokens] * 3 if backward else [like_tokens, like_lse],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"),
            vmem_limit_bytes=vmem * 7 // 8,
        ),
        cost_estimate=pl.CostEstimate(
            flops=products * 2 * b * n * n * lanes,
            transcendentals=b * n * n * heads,
            bytes_accessed=(7 if backward else 4) * b * n * lanes * dtype.itemsize,
        ),
        interpret=interpret,
        name=f"fused_attention{kernel.__name__}",
    )(*tokens, *([lse] if backward else []))


def _forward(
    q_ref: Any, k_ref: Any, v_ref: Any, out_ref: Any, lse_ref: Any, *, tiles: Tiles
) -> None:
    """out = softmax(q k^T / sqrt(k)) v; lse = log2 sum_s 2^scores[s]."""
    width = q_ref.shape[-1] // tiles.step
    # Stage by stage for all heads of a unit, for the compiler keeps to this order.
    for heads, lanes in _units(tiles, width):
        keys = _heads(k_ref[0, :, lanes], width)  # [n, k] each
        values = v_ref[0, :, lanes].T  # [unit k, n]
        values = [values[i : i + width] for i in range(0, len(values), width)]
        for some in _queries(q_ref, tiles):
            queries = _heads(q_ref[0, some, lanes], width)
            scores = [_scores(k, q) for k, q in zip(keys, queries, strict=True)]
            highest = [jnp.max(s, axis=0, keepdims=True) for s in scores]  # [1, n]
            weights = [jnp.exp2(s - m) for s, m in zip(scores, highest, strict=True)]
            total = [jnp.sum(p, axis=0, keepdims=True) for p in weights]
            out = [
                _dot(v, p.astype(v.dtype)) * (1.0 / t)
                for v, p, t in zip(values, weights, total, strict=True)
            ]  # [k, n] each
            out_ref[0, some, lanes] = jnp.concatenate(out).T.astype(out_ref.dtype)
            lse = [m + jnp.log2(t) for m, t in zip(highest, total, strict=True)]
            lse_ref[0, 0, heads, some] = jnp.concatenate(lse)


def _backward(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    do_ref: Any,
    lse_ref: Any,
    dq_ref: Any,
    dk_ref: Any,
    dv_ref: Any,
    *,
    tiles: Tiles,
) -> None:
    """dv = P^T do; dS = P (do v^T - sum(P do v^T)); dq = dS k; dk = dS^T q."""
    width = q_ref.shape[-1] // tiles.step
    dtype = q_ref.dtype
    for heads, lanes in _units(tiles, width):
        k_t = k_ref[0, :, lanes].T  # [unit k, n]
        k_t = [k_t[i : i + width] for i in range(0, len(k_t), width)]
        k = _heads(k_ref[0, :, lanes], width)  # [n, k] each
        v = _heads(v_ref[0, :, lanes], width)
        dk: list[Any] = [0.0] * tiles.unit
        dv: list[Any] = [0.0] * tiles.unit
        for some in _queries(q_ref, tiles):
            q = _heads(q_ref[0, some, lanes], width)
            do = _heads(do_ref[0, some, lanes], width)
            lse = lse_ref[0, 0, heads, some]
            units = range(tiles.unit)
            s = [_scores(k[i], q[i]) for i in units]
            dp = [_dot(v[i], do[i], contract=1) for i in units]
            p = [jnp.exp2(s[i] - lse[i : i + 1]) for i in units]
            ds = [
                p[i] * (dp[i] - jnp.sum(p[i] * dp[i], axis=0, keepdims=True))
                for i in units
            ]
            ds = [x.astype(dtype) for x in ds]
            dv = [dv[i] + _dot(p[i].astype(dtype), do[i]) for i in units]
            dk = [dk[i] + _dot(ds[i], q[i]) for i in units]
            dq = jnp.concatenate([_dot(k_t[i], ds[i]) for i in units]).T
            dq_ref[0, some, lanes] = (dq * width**-0.5).astype(dtype)
        dk_ref[0, :, lanes] = (jnp.concatenate(dk, 1) * width**-0.5).astype(dtype)
        dv_ref[0, :, lanes] = jnp.concatenate(dv, 1).astype(dtype)


def _units(tiles: Tiles, width: int) -> list[tuple[slice, slice]]:
    """Which heads, and which lanes, each unit of a grid step has."""
    firsts = range(0, tiles.step, tiles.unit)
    heads = [slice(first, first + tiles.unit) for first in firsts]
    return [(x, slice(x.start * width, x.stop * width)) for x in heads]


def _queries(q_ref: Any, tiles: Tiles) -> list[slice]:
    n, size = q_ref.shape[1], tiles.queries
    return [slice(first, min(first + size, n)) for first in range(0, n, size)]


def _heads(x: jax.Array, width: int) -> list[jax.Array]:
    """[n, unit k] as a head's [n, k] each."""
    return [x[:, i : i + width] for i in range(0, x.shape[1], width)]


def _scores(k: jax.Array, q: jax.Array) -> jax.Array:
    """k q^T / sqrt(k) [keys, queries], in units of log 2: the core's exp is 2^x."""
    return _dot(k, q, contract=1) * (LOG2_E * k.shape[1] ** -0.5)


def _dot(a: jax.Array, b: jax.Array, *, contract: int = 0) -> jax.Array:
    """a b in float32; with `contract` 1, a b^T."""
    # Mosaic has two precisions: one pass in bfloat16, as elsewhere by default, or all.
    by_default = jax.config.values["jax_default_matmul_precision"] in (
        None,
        "default",
        "bfloat16",
    )
    precise = a.dtype == jnp.float32 and not by_default
    return jax.lax.dot_general(
        a,
        b,
        (((1,), (contract,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if precise else jax.lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )
