"""Attention by cuDNN's flash kernels on NVIDIA GPUs, through `jax.nn`.

Scores never reach memory. The kernels multiply in bfloat16 or float16 and sum in
float32. With a gradient JAX takes even numbers of tokens only, and ViTs have odd ones:
`padding` says how many to add, and `tokens` which keys are real.

Axes: b batch, n tokens, h heads, k head dim.
"""

import functools
import re
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from vit_jax.errors import UserError

AMPERE, HOPPER = (8, 0), (9, 0)  # compute capabilities
# With fewer tokens XLA's is faster: on an H100, with 512 images and 6 heads of 32, in
# 0.20 against 0.59 ms at 17 tokens, but 0.36 against 0.31 at 50 (256, 12 heads of 64).
FEWEST_TOKENS = 48


def runs_on(capability: str | None) -> bool:
    """Whether a device has the kernels, by its compute capability.

    AMD's GPUs give the name of an architecture, other devices nothing.

    >>> [runs_on(capability) for capability in ("9.0", "7.5", "gfx942", None)]
    [True, False, False, False]
    """
    return _version(capability) >= AMPERE


def unsupported(width: int, dtype: Any, capability: str | None) -> str | None:
    """Why the kernels cannot take heads of this width and dtype; None if they can.

    >>> unsupported(80, jnp.bfloat16, "9.0"), unsupported(64, jnp.float32, "9.0")
    (None, 'model.dtype is float32, not bfloat16')
    """
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return f"model.dtype is {jnp.dtype(dtype)}, not bfloat16"
    widest = 256 if _version(capability) >= HOPPER else 128
    if width % 8 or width > widest:
        return f"heads have a width of {width}; it takes multiples of 8 up to {widest}"
    return None


def padding(tokens: int) -> int:
    """How many tokens to add, after which there is an even number.

    >>> padding(197), padding(196)
    (1, 0)
    """
    return tokens % 2


def cudnn_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    tokens: int | None = None,
    capability: str | None = "8.0",
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """`softmax(q k^T / sqrt(k)) v` for each head: equations (6) and (7) of the paper.

    Agrees with `attention.dot_product_attention` without dropout; cuDNN's own dropout
    draws the same mask in every step. For the backward pass it keeps its arguments,
    its result and the logarithm of the softmax's denominator. The last two are named
    "attn_o" for remat policies.

    Args:
      query: [b, n, h, k], n even.
      key: [b, n, h, k].
      value: [b, n, h, k], all of one dtype.
      tokens: how many keys, from the first, are real; None means all. What is behind
        them is neither seen by a query nor gets a gradient.
      capability: the compute capability of the device, such as "9.0".
      implementation: "xla" computes the same on any device, for tests.

    Returns:
      [b, n, h, k] in the dtype of the arguments.

    Raises:
      UserError: for arguments that the kernels cannot take; see `unsupported`.

    >>> query, key = jnp.ones((1, 4, 1, 8), jnp.bfloat16), jnp.zeros((1, 4, 1, 8))
    >>> value = jnp.arange(4.0).reshape(1, 4, 1, 1) + key
    >>> key, value = key.astype(query.dtype), value.astype(query.dtype)
    >>> cudnn_attention(query, key, value, tokens=3, implementation="xla")[0, 0, 0, 0]
    Array(1, dtype=bfloat16)
    """
    reason = unsupported(query.shape[-1], query.dtype, capability)
    if reason is not None:
        raise UserError(
            f'model.attention="cudnn" cannot be used: {reason}; use "auto" or "plain"'
        )
    real = tokens if tokens != query.shape[1] else None
    return _attention(implementation, real, query, key, value)


def _version(capability: str | None) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)\.(\d+)", capability or "")
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _kernel(
    implementation: Literal["cudnn", "xla"],
    tokens: int | None,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
) -> jax.Array:
    lengths = None
    if tokens is not None:
        lengths = jnp.full(len(query), tokens, jnp.int32)
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        key_value_seq_lengths=lengths,
        implementation=implementation,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(
    implementation: Literal["cudnn", "xla"],
    tokens: int | None,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
) -> jax.Array:
    return _kernel(implementation, tokens, query, key, value)


def _attention_fwd(
    implementation: Literal["cudnn", "xla"],
    tokens: int | None,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
) -> tuple[jax.Array, Any]:
    kernel = functools.partial(_kernel, implementation, tokens)
    out, pullback = jax.vjp(kernel, query, key, value)
    inputs = (query, key, value)

    # Or a remat policy that keeps "attn_o" would run the forward kernel again for it.
    def name(x: jax.Array) -> jax.Array:
        if x.ndim < 3 or any(x is y for y in inputs):
            return x
        return checkpoint_name(x, "attn_o")

    return out, jax.tree.map(name, pullback)


def _attention_bwd(
    implementation: Literal["cudnn", "xla"],
    tokens: int | None,
    pullback: Any,
    gradient: jax.Array,
) -> tuple[jax.Array, ...]:
    del implementation, tokens  # the pullback has them
    return pullback(gradient)


_attention.defvjp(_attention_fwd, _attention_bwd)
