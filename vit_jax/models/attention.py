"""Multi-head attention, from a source to a target or from an input to itself.

Axes: b batch, q queries (target), s keys and values (source), n tokens, d width,
h heads, k head dim.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.ad_checkpoint import checkpoint_name

from vit_jax.errors import UserError
from vit_jax.models import cudnn_attention, fused_attention

Choice = Literal["auto", "plain", "fused", "cudnn"]


@dataclasses.dataclass(frozen=True)
class Attend:
    """What computes self-attention in place of `dot_product_attention`.

    Attributes:
      run: (query, key, value [b, n, h, k]) to what was attended to [b, n, h, k]. With
        the keyword `tokens` only so many keys, from the first, are real.
      padding: (n, k, dtype) to how many tokens `run` wants added.
    """

    run: Callable[..., jax.Array]
    padding: Callable[[int, int, Any], int] = lambda tokens, width, dtype: 0


def choose_attention(
    attention: Choice, platform: str, device_kind: str, capability: str | None = None
) -> Attend | None:
    """What computes `model.attention` on a device; None is the plain one.

    Args:
      attention: the key of the config.
      platform: of the device, such as "gpu"; `device_kind` is what JAX calls it.
      capability: the compute capability of a GPU, such as "9.0".

    Raises:
      UserError: the device does not have the kernel that is asked for.

    >>> choose_attention("auto", "gpu", "NVIDIA V100", "7.0") is None
    True
    """
    if attention == "plain":
        return None
    if attention == "cudnn" or (attention == "auto" and platform == "gpu"):
        return _by_cudnn(attention, device_kind, capability)
    if attention == "fused" or platform == "tpu":
        return _by_tpu_kernel(attention, platform, device_kind)
    return Attend(heads_first_attention) if platform == "cpu" else None


def _by_cudnn(
    attention: Choice, device_kind: str, capability: str | None
) -> Attend | None:
    if not cudnn_attention.runs_on(capability):
        if attention == "auto":
            return None
        raise UserError(
            f'model.attention="cudnn" cannot be used on {device_kind}, only on NVIDIA '
            'GPUs since Ampere (A100, L4, RTX 30 and later): use "auto" or "plain"'
        )
    run = functools.partial(cudnn_attention.cudnn_attention, capability=capability)

    def taken(tokens: int, width: int, dtype: Any) -> bool:
        if attention == "auto" and tokens < cudnn_attention.FEWEST_TOKENS:
            return False
        return cudnn_attention.unsupported(width, dtype, capability) is None

    def padding(tokens: int, width: int, dtype: Any) -> int:
        return cudnn_attention.padding(tokens) if taken(tokens, width, dtype) else 0

    def where_faster(
        query: jax.Array, key: jax.Array, value: jax.Array, *, tokens: int | None = None
    ) -> jax.Array:
        if taken(tokens or query.shape[1], query.shape[-1], query.dtype):
            return run(query, key, value, tokens=tokens)
        return dot_product_attention(query, key, value)[0]

    return Attend(where_faster if attention == "auto" else run, padding)


def _by_tpu_kernel(attention: Choice, platform: str, device_kind: str) -> Attend | None:
    # There kernels cannot multiply bfloat16 matrices: the compiler refuses them, after
    # all else has been compiled.
    if device_kind.startswith(("TPU v2", "TPU v3")):
        if attention == "auto":
            return None
        raise UserError(
            f'model.attention="fused" cannot be used on {device_kind}, only on TPU v4 '
            'and later: use "auto" or "plain"'
        )
    is_v4 = device_kind.startswith("TPU v4")
    vmem = fused_attention.VMEM_V4 if is_v4 else fused_attention.VMEM_V5
    run = functools.partial(
        fused_attention.fused_attention, interpret=platform != "tpu", vmem=vmem
    )

    def where_supported(
        query: jax.Array, key: jax.Array, value: jax.Array
    ) -> jax.Array:
        if fused_attention.unsupported(query, key, vmem=vmem) is None:
            return run(query, key, value)
        return dot_product_attention(query, key, value)[0]

    return Attend(where_supported if attention == "auto" else run)


def dot_product_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    dropout: float = 0.0,
    dropout_rng: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`softmax(q k^T / sqrt(k)) v` for each head: equations (6) and (7) of the paper.

    Scores and softmax are in float32 whatever the inputs are: bfloat16 has 8 bits of
    mantissa, so a score of 20 would be off by up to 0.06, a weight by 6%.

    Args:
      query: [b, q, h, k].
      key: [b, s, h, k].
      value: [b, s, h, k].
      dropout: the share of weights that is dropped, the others growing to make up
        for it; used only with `dropout_rng`.
      dropout_rng: a key; None means no dropout.

    Returns:
      What was attended to [b, q, h, k], in the dtype of `value`, and the weights
      before dropout [b, h, q, s], in float32.

    >>> query, key = jnp.ones((1, 1, 1, 2)), jnp.zeros((1, 4, 1, 2))
    >>> out, weights = dot_product_attention(query, key, value=key + 1)
    >>> out.tolist(), weights.tolist()
    ([[[[1.0, 1.0]]]], [[[[0.25, 0.25, 0.25, 0.25]]]])
    """
    precise = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("bqhk,bshk->bhqs", query, key, preferred_element_type=precise)
    weights = jax.nn.softmax(scores * query.shape[-1] ** -0.5, axis=-1)  # [b, h, q, s]
    kept = weights
    if dropout_rng is not None:
        keep = jax.random.bernoulli(dropout_rng, 1.0 - dropout, weights.shape)
        kept = jnp.where(keep, weights / (1.0 - dropout), 0.0)
    out = jnp.einsum("bhqs,bshk->bqhk", kept.astype(value.dtype), value)
    return out, weights


def heads_first_attention(
    query: jax.Array, key: jax.Array, value: jax.Array
) -> jax.Array:
    """`dot_product_attention` without its weights, laid out for CPUs.

    The heads go before the tokens, so that each product is of whole matrices. XLA's
    CPU compiler, left alone, multiplies with strides and takes half as long again;
    the barriers keep it from taking the transposes back into the products.

    Args:
      query: [b, q, h, k].
      key: [b, s, h, k].
      value: [b, s, h, k].

    Returns:
      [b, q, h, k] in the dtype of `value`.

    >>> query, key = jnp.ones((1, 1, 1, 2)), jnp.zeros((1, 4, 1, 2))
    >>> heads_first_attention(query, key, value=key + 1).tolist()
    [[[[1.0, 1.0]]]]
    """
    tensors = tuple(x.swapaxes(1, 2) for x in (query, key, value))
    query, key, value = jax.lax.optimization_barrier(tensors)  # [b, h, n, k]
    precise = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("bhqk,bhsk->bhqs", query, key, preferred_element_type=precise)
    weights = jax.nn.softmax(scores * query.shape[-1] ** -0.5, axis=-1)
    out = jnp.einsum("bhqs,bhsk->bhqk", weights.astype(value.dtype), value)
    return jax.lax.optimization_barrier(out).swapaxes(1, 2)


class Projection(nn.Module, kw_only=True):
    """`flax.linen.DenseGeneral` to heads or from them, with heads side by side.

    The parameters are its parameters. The product is of matrices, [..., d] by
    [d, h k], and not by [d, h, k], for which the TPU compiler lays tokens out
    innermost: attention would have to transpose all that it reads and writes.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    dtype: str
    param_dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., product of inputs] to [..., product of outputs]."""
        matrix = math.prod(self.inputs), math.prod(self.outputs)
        dtype = jnp.dtype(self.param_dtype)

        def xavier(rng: jax.Array) -> jax.Array:  # fans are of the matrix
            kernel = nn.initializers.xavier_uniform()(rng, matrix, dtype)
            return kernel.reshape(self.inputs + self.outputs)

        kernel = self.param("kernel", xavier)
        bias = self.param("bias", nn.initializers.zeros, self.outputs, dtype)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        # Without a barrier the compiler takes the reshape off the kernel in the
        # backward pass, and reshapes the tokens instead.
        kernel = jax.lax.optimization_barrier(kernel.reshape(matrix))
        return x @ kernel + bias.reshape(-1)


class MultiHeadAttention(nn.Module, kw_only=True):
    """Queries from a target attend to keys and values from a source.

    Self-attention is the case where both are the same. The parameters are those of
    `flax.linen.MultiHeadDotProductAttention`: query, key, value with kernels [d, h, k]
    and biases [h, k], out with kernel [h, k, d] and bias [d]; with `qk_norm` also
    query_ln and key_ln with scales [k] (arXiv:2302.05442).

    The projections and the result of attention carry the names "q", "k", "v" and
    "attn_o" for `jax.checkpoint_policies.save_only_these_names`.

    Attributes:
      attend: computes self-attention in place of `dot_product_attention`, where
        neither the weights are wanted nor any of them dropped.
    """

    num_heads: int
    dropout: float = 0.0
    qk_norm: bool = False
    layer_norm_epsilon: float = 1e-6
    dtype: str = "float32"
    param_dtype: str = "float32"
    attend: Attend | None = None

    @nn.compact
    def __call__(
        self,
        target: jax.Array,
        source: jax.Array,
        *,
        train: bool = False,
        with_weights: bool = True,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Returns what was attended to [b, q, d] and the weights [b, h, q, s].

        Args:
          target: [b, q, d], asks.
          source: [b, s, d], answers.
          train: drop weights; needs the "dropout" rng when `dropout` > 0.
          with_weights: False allows None in place of the weights.

        The weights are float32 and as they were before dropout.
        """
        tokens, width = target.shape[1:]
        heads = self.num_heads, width // self.num_heads
        project = functools.partial(
            Projection, dtype=self.dtype, param_dtype=self.param_dtype
        )
        to_heads = functools.partial(project, inputs=(width,), outputs=heads)
        rng = self.make_rng("dropout") if train and self.dropout else None
        attend = None if rng is not None or with_weights else self.attend
        if attend is not None and attend.padding(tokens, heads[1], self.dtype):
            # Here, because XLA fuses it with what wrote the tokens.
            added = attend.padding(tokens, heads[1], self.dtype)
            attend = dataclasses.replace(
                attend, run=functools.partial(attend.run, tokens=tokens)
            )
            target = source = jnp.pad(target, ((0, 0), (0, added), (0, 0)))
        query = checkpoint_name(to_heads(name="query")(target), "q")  # [b, q, h k]
        key = checkpoint_name(to_heads(name="key")(source), "k")  # [b, s, h k]
        value = checkpoint_name(to_heads(name="value")(source), "v")
        query, key, value = (
            x.reshape(*x.shape[:2], *heads) for x in (query, key, value)
        )
        if self.qk_norm:
            query, key = self._norm("query_ln", query), self._norm("key_ln", key)
        if attend is not None:
            out, weights = attend.run(query, key, value), None
        else:
            out, weights = dot_product_attention(
                query, key, value, dropout=self.dropout, dropout_rng=rng
            )
        out = checkpoint_name(out.reshape(target.shape), "attn_o")
        out = project(inputs=heads, outputs=(width,), name="out")(out)  # [b, q, d]
        return out[:, :tokens], weights

    def _norm(self, name: str, x: jax.Array) -> jax.Array:
        return nn.LayerNorm(
            self.layer_norm_epsilon,
            use_bias=False,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=name,
        )(x)
