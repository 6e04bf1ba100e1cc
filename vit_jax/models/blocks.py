"""The parts of the Vision Transformer: MLP, encoder block, position, attention pool.

Axes: b batch, n tokens, d width, h heads, m MLP dim. Numbers such as (2) are the
equations of the paper (arXiv:2010.11929), which stand at the top of `vit.py`.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from vit_jax.errors import UserError
from vit_jax.models.attention import Attend, MultiHeadAttention


def drop_path(x: jax.Array, rng: jax.Array, *, rate: float | jax.Array) -> jax.Array:
    """Stochastic depth (arXiv:1603.09382): zeroes whole examples, scales the others.

    Args:
      x: [b, ...], what a residual branch is about to add.
      rng: a key; each example is dropped or kept on its own.
      rate: the probability of being dropped, at least 0 and below 1.

    Returns:
      0 or `x / (1 - rate)` for each example, so that the expectation is `x`.

    >>> x = jnp.ones((4, 2))
    >>> drop_path(x, jax.random.key(0), rate=0.0).tolist() == x.tolist()
    True
    """
    keep_rate = 1.0 - rate
    keep = jax.random.bernoulli(rng, keep_rate, (len(x),) + (1,) * (x.ndim - 1))
    return jnp.where(keep, x / keep_rate, 0.0).astype(x.dtype)


def sincos2d(height: int, width: int, *, dim: int) -> np.ndarray:
    """Fixed position embeddings of a grid, [height * width, dim] in float32.

    Four equal parts: sines and cosines of x, then of y, with wavelengths from 2 pi to
    10,000 * 2 pi. As MoCo v3 (arXiv:2104.02057) and big_vision.

    >>> sincos2d(2, 3, dim=8).shape
    (6, 8)
    """
    # In NumPy and float64, so that every backend gets the same table.
    frequency = 10_000.0 ** -np.linspace(0, 1, dim // 4)
    y, x = np.mgrid[:height, :width].reshape(2, -1, 1) * frequency  # [n, d / 4] each
    table = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
    return table.astype(np.float32)


class AddPositionEmbs(nn.Module, kw_only=True):
    """Adds a learned or a fixed embedding of its position to each token.

    A learned one covers the class token too; the fixed one leaves it as it is.
    """

    posemb: Literal["learn", "sincos2d"]
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """[b, n, d] to [b, n, d]; the grid of patches is their rows and columns."""
        _, tokens, width = x.shape
        if self.posemb == "sincos2d":
            table = sincos2d(*grid, dim=width)
            table = np.pad(table, ((tokens - len(table), 0), (0, 0)))
            return x + jnp.asarray(table, x.dtype)
        shape = (1, tokens, width)
        if self.has_variable("params", "pos_embedding"):
            found = jnp.shape(self.get_variable("params", "pos_embedding"))
            if found != shape:
                raise UserError(
                    f"the images give {tokens} tokens of width {width}, but the "
                    f"learned position embeddings have shape {list(found)}: "
                    "use images of the size that the parameters were made for, or "
                    "resize pos_embedding first"
                )
        table = self.param(
            "pos_embedding",
            nn.initializers.normal(stddev=0.02),
            shape,
            jnp.dtype(self.param_dtype),
        )
        return x + table.astype(x.dtype)


class MlpBlock(nn.Module, kw_only=True):
    """Two dense layers with a GELU or a gated SiLU (SwiGLU) between them.

    What the nonlinearity is applied to is named "up" for remat policies. With
    `recompute_gelu` GELU keeps nothing else for its gradient.
    """

    mlp_dim: int
    dropout: float = 0.0
    kind: Literal["gelu", "swiglu"] = "gelu"
    gelu: Literal["tanh", "erf"] = "tanh"
    recompute_gelu: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """[b, n, d] to [b, n, d]; needs the "dropout" rng to train with dropout."""
        dense = functools.partial(
            nn.Dense,
            kernel_init=nn.initializers.xavier_uniform(),
            bias_init=nn.initializers.normal(stddev=1e-6),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        width = x.shape[-1]
        up = self.mlp_dim if self.kind == "gelu" else 2 * self.mlp_dim
        x = checkpoint_name(dense(up, name="Dense_0")(x), "up")
        if self.kind == "gelu":
            gelu = functools.partial(nn.gelu, approximate=self.gelu == "tanh")
            x = (jax.checkpoint(gelu) if self.recompute_gelu else gelu)(x)  # [b, n, m]
        else:
            gate, x = jnp.split(x, 2, axis=-1)
            x = nn.silu(gate) * x  # [b, n, m]
        x = nn.Dropout(self.dropout, deterministic=not train, name="Dropout_0")(x)
        return dense(width, name="Dense_1")(x)  # [b, n, d]


class LayerScale(nn.Module, kw_only=True):
    """Multiplies each channel with a learned factor (CaiT, arXiv:2103.17239)."""

    start: float
    param_dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., d] to [..., d]."""
        init, dtype = nn.initializers.constant(self.start), jnp.dtype(self.param_dtype)
        return x * self.param("scale", init, x.shape[-1:], dtype).astype(x.dtype)


class Encoder1DBlock(nn.Module, kw_only=True):
    """One layer of the encoder: equations (2) and (3).

    What enters the second half is named "mid" for remat policies.
    """

    num_heads: int
    mlp_dim: int
    dropout: float
    attention_dropout: float
    stochastic_depth: float
    qk_norm: bool
    layer_scale: float | None
    mlp: Literal["gelu", "swiglu"]
    gelu: Literal["tanh", "erf"]
    recompute_gelu: bool
    layer_norm_epsilon: float
    dtype: str
    param_dtype: str
    constrain: Callable[[jax.Array], jax.Array]
    attend: Attend | None
    write_norms: bool

    @nn.compact
    def __call__(
        self, z: jax.Array, drop_rate: jax.Array, train: bool, wanted: tuple[str, ...]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns z_l [b, n, d], and by suffix the features that are wanted.

        All positional, as `nn.remat` and `nn.scan` ask for.

        Args:
          z: z_{l-1}, [b, n, d].
          drop_rate: this layer's share of `stochastic_depth`, a scalar.
          train: whether dropout and stochastic depth are on.
          wanted: of "" (z_l itself) and "/attention" (weights [b, h, n, n]).
        """
        norm = functools.partial(
            nn.LayerNorm,
            epsilon=self.layer_norm_epsilon,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        msa = MultiHeadAttention(
            num_heads=self.num_heads,
            dropout=self.attention_dropout,
            qk_norm=self.qk_norm,
            layer_norm_epsilon=self.layer_norm_epsilon,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            attend=self.attend,
            name="MultiHeadDotProductAttention_0",
        )
        mlp = MlpBlock(
            mlp_dim=self.mlp_dim,
            dropout=self.dropout,
            kind=self.mlp,
            gelu=self.gelu,
            recompute_gelu=self.recompute_gelu,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="MlpBlock_0",
        )

        def drop(branch: jax.Array, half: int) -> jax.Array:
            name = f"Dropout_{half}"
            dropout = nn.Dropout(self.dropout, deterministic=not train, name=name)
            branch = dropout(branch)
            if self.layer_scale is not None:
                branch = LayerScale(
                    start=self.layer_scale,
                    param_dtype=self.param_dtype,
                    name=f"LayerScale_{half}",
                )(branch)
            if train and self.stochastic_depth:
                branch = drop_path(branch, self.make_rng("dropout"), rate=drop_rate)
            return branch

        written = _written if self.write_norms else identity

        # z' = MSA(LN(z)) + z  (2)
        y = written(norm(name="LayerNorm_0")(z))
        y, attention = msa(y, y, train=train, with_weights="/attention" in wanted)
        z = checkpoint_name(drop(y, 0) + z, "mid")

        # z = MLP(LN(z')) + z'  (3)
        y = written(norm(name="LayerNorm_1")(z))
        y = mlp(y, train=train)
        z = self.constrain(drop(y, 1) + z)

        features = {"": z, "/attention": attention}
        return z, {suffix: features[suffix] for suffix in wanted}


class MAPHead(nn.Module, kw_only=True):
    """Multi-head attention pooling: a learned query attends to all tokens.

    The pooling of "Scaling Vision Transformers" (arXiv:2106.04560); parameters and
    result agree with big_vision. No dropout here.
    """

    num_heads: int
    mlp_dim: int
    qk_norm: bool = False
    gelu: Literal["tanh", "erf"] = "tanh"
    layer_norm_epsilon: float = 1e-6
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Tokens [b, n, d] to one vector [b, d], and the weights [b, h, 1, n]."""
        batch, _, width = x.shape
        probe = self.param(
            "probe",
            nn.initializers.xavier_uniform(),
            (1, 1, width),
            jnp.dtype(self.param_dtype),
        )
        x, attention = MultiHeadAttention(
            num_heads=self.num_heads,
            qk_norm=self.qk_norm,
            layer_norm_epsilon=self.layer_norm_epsilon,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="MultiHeadDotProductAttention_0",
        )(jnp.tile(probe, (batch, 1, 1)), x)  # [b, 1, d]
        y = nn.LayerNorm(
            self.layer_norm_epsilon,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="LayerNorm_0",
        )(x)
        x = x + MlpBlock(
            mlp_dim=self.mlp_dim,
            gelu=self.gelu,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="MlpBlock_0",
        )(y)
        return x[:, 0], attention


def classify(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """[..., d], [d, k] and [k] to logits [..., k]."""
    return x @ kernel + bias


class Head(nn.Module, kw_only=True):
    """The classifier: a dense layer that starts at zero."""

    num_classes: int
    bias_init: float
    classify: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    param_dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., d] to logits [..., num_classes], in the dtype of `x`."""
        shape = x.shape[-1], self.num_classes
        dtype = jnp.dtype(self.param_dtype)
        kernel = self.param("kernel", nn.initializers.zeros, shape, dtype)
        bias_init = nn.initializers.constant(self.bias_init)
        bias = self.param("bias", bias_init, shape[1:], dtype)
        return self.classify(x, kernel.astype(x.dtype), bias.astype(x.dtype))


def head_of(model: Any, name: str = "head") -> Head:
    """The classifier that the fields of a model ask for; in a compact method."""
    return Head(
        num_classes=model.num_classes,
        bias_init=model.head_bias_init,
        classify=model.classify,
        param_dtype=model.param_dtype,
        name=name,
    )


@jax.custom_jvp
def _written(x: jax.Array) -> jax.Array:
    """`x`, which cannot be fused into what reads it; its gradient can."""
    return jax.lax.optimization_barrier(x)


@_written.defjvp
def _written_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return _written(*primals), tangents[0]


def identity(x: jax.Array) -> jax.Array:
    """What a model's `constrain` is without a mesh."""
    return x
