"""The encoder: position embeddings, layers as a loop or as a scan, the last LayerNorm.

Axes: b batch, n tokens, d width. Numbers such as (2) are the equations of the paper
(arXiv:2010.11929), which stand at the top of `vit.py`.
"""

import math
from collections.abc import Callable, Collection
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.models.blocks import AddPositionEmbs, Encoder1DBlock

Features = dict[str, jax.Array]
Name = Literal["q", "k", "v", "attn_o", "mid", "up"]
RematPolicy = Literal[
    "auto",
    "none",
    "nothing_saveable",
    "everything_saveable",
    "dots_saveable",
    "dots_with_no_batch_dims_saveable",
    "save_only_these_names",
]
# With these saved, the backward pass computes no matrix product of the forward pass
# again but attention's scores; everything else in between is elementwise.
REMAT_NAMES: tuple[Name, ...] = ("q", "k", "v", "attn_o", "mid", "up")


class Encoder(nn.Module, kw_only=True):
    """Position embeddings, registers, the layers, and the last LayerNorm."""

    block: Callable[..., nn.Module]
    depth: int
    posemb: Literal["learn", "sincos2d", "none"]
    registers: int
    final_norm: bool
    dropout: float
    stochastic_depth: float
    layer_norm_epsilon: float
    dtype: str
    param_dtype: str
    scan: bool
    constrain: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(
        self,
        z: jax.Array,
        grid: tuple[int, int],
        *,
        train: bool,
        capture: Collection[str],
    ) -> tuple[jax.Array, Features]:
        """Embedded patches [b, n, d] to encoded tokens [b, n, d], and features.

        With registers there are so many tokens more, before those of the patches.
        """
        if self.posemb != "none":
            z = AddPositionEmbs(
                posemb=self.posemb, param_dtype=self.param_dtype, name="posembed_input"
            )(z, grid)
        if self.registers:
            z = self._with_registers(z, patches=math.prod(grid))
        z = nn.Dropout(self.dropout, deterministic=not train, name="Dropout_0")(z)
        z = self.constrain(z)  # z_0  (1)

        layers = self._scan if self.scan else self._loop
        encoded, features = layers(z, train, capture)  # z_L  (2), (3)
        features = {"posembed_input": z, **features}
        if not self.final_norm:
            return encoded, features
        y = nn.LayerNorm(
            self.layer_norm_epsilon,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="encoder_norm",
        )(encoded)  # (4)
        return y, {**features, "encoder_norm": y}

    def _with_registers(self, z: jax.Array, *, patches: int) -> jax.Array:
        batch, tokens, width = z.shape
        registers = self.param(
            "registers",
            nn.initializers.normal(stddev=0.02),
            (1, self.registers, width),
            jnp.dtype(self.param_dtype),
        )
        registers = jnp.tile(registers.astype(z.dtype), (batch, 1, 1))
        before = tokens - patches  # class tokens
        return jnp.concatenate([z[:, :before], registers, z[:, before:]], axis=1)

    def _drop_rates(self) -> np.ndarray:
        """Those of stochastic depth, from 0 in the first layer up: [depth]."""
        return np.linspace(0.0, self.stochastic_depth, self.depth, dtype=np.float32)

    def _loop(
        self, z: jax.Array, train: bool, capture: Collection[str]
    ) -> tuple[jax.Array, Features]:
        features = {}
        for layer, drop_rate in enumerate(self._drop_rates()):
            name = f"encoderblock_{layer}"
            wanted = tuple(s for s in ("", "/attention") if name + s in capture)
            z, found = self.block(name=name)(z, drop_rate, train, wanted)
            features |= {name + suffix: x for suffix, x in found.items()}
        return z, features

    def _scan(
        self, z: jax.Array, train: bool, capture: Collection[str]
    ) -> tuple[jax.Array, Features]:
        # A scan gives a feature of all layers or of none: [depth, b, ...].
        names = [f"encoderblock_{layer}" for layer in range(self.depth)]
        wanted = tuple(
            s for s in ("", "/attention") if any(name + s in capture for name in names)
        )
        block = self.block(name="encoderblock")
        z, stacked = block(z, self._drop_rates(), train, wanted)
        return z, {
            name + suffix: x[layer]
            for suffix, x in stacked.items()
            for layer, name in enumerate(names)
            if name + suffix in capture
        }


def lifted_block(
    *,
    scan: bool,
    depth: int,
    remat_policy: RematPolicy,
    remat_names: tuple[Name, ...] | None,
) -> Callable[..., nn.Module]:
    """Encoder1DBlock under a remat policy, and scanned if `scan`."""
    block: Any = Encoder1DBlock
    policy = remat_policy
    if policy == "auto":
        policy = "save_only_these_names" if scan else "none"
    if policy != "none":
        rule = getattr(jax.checkpoint_policies, policy)
        if policy == "save_only_these_names":
            rule = rule(*(remat_names or REMAT_NAMES))
        # A scan's body is compiled apart from its transpose, so nothing can merge the
        # two again; in a loop only the barriers of `prevent_cse` hold them apart.
        # Arguments 3 and 4, counted from self, are `train` and `wanted`.
        block = nn.remat(
            block, policy=rule, prevent_cse=not scan, static_argnums=(3, 4)
        )
    if scan:
        in_axes: Any = (0, nn.broadcast, nn.broadcast)  # drop_rate, train, wanted
        block = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=in_axes,
            length=depth,
        )
    return block
