"""The Vision Transformer (Dosovitskiy et al., 2020, arXiv:2010.11929).

Axes: b batch, H and W image height and width, c channels, p patch size, N patches,
n tokens (N, and one for the class), d width, h heads.

    z_0  = [x_class; x_p^1 E; ...; x_p^N E] + E_pos     (1)
    z'_l = MSA(LN(z_{l-1})) + z_{l-1}                   (2)
    z_l  = MLP(LN(z'_l)) + z'_l                         (3)
    y    = LN(z_L^0)                                    (4)

The names and shapes of the parameters are those of the checkpoints published with
Flax Linen. They are an interface, and every module is named for that reason.
"""

import functools
from collections.abc import Callable, Collection
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.errors import UserError
from vit_jax.models.attention import Attend, Choice
from vit_jax.models.blocks import MAPHead, classify, head_of, identity
from vit_jax.models.encoder import Encoder, Name, RematPolicy, lifted_block
from vit_jax.models.inputs import check_capture, check_epsilons, check_images
from vit_jax.models.resnet import Standardization, stem, stem_stride


class VisionTransformer(nn.Module, kw_only=True):
    """A Vision Transformer; its fields are the keys of `config.model`.

    Attributes:
      num_classes: outputs of the head; None or 0 leaves the head out.
      patch_size: height and width of a patch in pixels, or one number for both.
      width: of the tokens (D in the paper). `num_heads` must divide it.
      depth: number of encoder layers (L).
      mlp_dim: width of the MLP's hidden layer.
      num_heads: attention heads of each layer.
      pool: what the head sees: "token" a class token that is put before the patches,
        "gap" the mean over patches, "map" attention pooling over all tokens
        (arXiv:2106.04560), "none" every patch for itself.
      class_token: a class token before the patches also where `pool` is another one,
        as in MAE's fine-tuned models (arXiv:2111.06377): the layers see it, the mean
        over patches is without it. With `pool="token"` there is one in any case.
      posemb: position embeddings: "learn" (one for each token), "sincos2d" (fixed,
        needs no class-token position and a width that 4 divides) or "none".
      final_norm: what the last LayerNorm is applied to: "tokens" before pooling, as in
        the paper, or what was "pooled", as timm does with its averages (`fc_norm`).
      registers: tokens that are put between the class token and the patches, after the
        position embeddings, and are not pooled (arXiv:2309.16588).
      distilled: DeiT's second class token and second head (arXiv:2012.12877), whose
        logits are averaged with the first's. Needs `pool="token"`.
      resnet: units of each stage of a ResNet whose output takes the image's place, for
        hybrids such as (3, 4, 9); () is its root alone, None no ResNet. `patch_size`
        is then in pixels of that output: `stem_stride` pixels of the image each.
      standardization: how a hybrid's kernels are standardised; see `models.resnet`.
      group_norm_epsilon: added to the variance in every GroupNorm of a hybrid.
      representation_size: width of a tanh layer before the head, which the paper has
        in pre-training; None leaves it out.
      dropout: rate after each dense layer but q, k, v and after the position
        embeddings, as in the paper's appendix B.1.
      attention_dropout: rate of dropping attention weights.
      stochastic_depth: rate of dropping a residual branch in the last layer; layers
        before it have less in proportion, the first has none.
      head_bias_init: where the head's bias starts, such as -log(num_classes) for
        sigmoid losses. The head's kernel starts at zero.
      qk_norm: LayerNorm over each head of queries and keys (arXiv:2302.05442).
      layer_scale: where the factors of each channel that a residual branch is
        multiplied with start (CaiT, arXiv:2103.17239), such as 1e-5; None leaves them
        out.
      mlp: "gelu" between two dense layers, or "swiglu" (arXiv:2002.05202), whose first
        layer is twice as wide: the gate, then what it gates.
      gelu: "tanh" approximation, as Flax and the paper's code, or exact "erf", as
        PyTorch.
      layer_norm_epsilon: added to the variance in every LayerNorm.
      dtype: of the computation. Softmax, LayerNorm statistics, pooling and the head
        are in float32 all the same, and so is the output.
      param_dtype: of the parameters.
      scan: layers as one `jax.lax.scan` over stacked parameters, which compiles faster;
        otherwise as a loop. `models.layers` converts parameters. Random numbers, those
        of the initialisation too, differ between the two.
      remat_policy: what the forward pass of a layer keeps for the backward pass: a name
        in `jax.checkpoint_policies`, or "none" for all that JAX's differentiation asks
        for. "auto" is "none" in a loop and "save_only_these_names" in a scan, which
        without a policy would stack every intermediate result of every layer.
      remat_names: the activations that "save_only_these_names" keeps; default all of
        q, k, v, attn_o (attention before its output projection), mid (between attention
        and MLP) and up (before GELU).
      write_norms: what LayerNorm gives in a layer is written to memory, where the TPU
        compiler would compute it again in each product that reads it. Faster or slower,
        by the model's shape; see docs/planning.md. Without a remat policy it is kept
        for the backward pass too.
      recompute_gelu: the backward pass computes GELU again from its argument, instead
        of keeping more. None means so on GPUs without a remat policy, where cuBLAS then
        computes GELU together with the product before it.
      attention: "plain" as XLA compiles it, "fused" as one TPU kernel (elsewhere it is
        interpreted, slowly), "cudnn" as cuDNN's flash kernels (NVIDIA GPUs since
        Ampere, bfloat16), which both keep their scores out of memory, or "auto": the
        kernel of the device, for what it takes; laid out with heads first on CPUs.
        With `attention_dropout`, training has the plain one in any case.
      constrain: applied to the tokens [b, n, d] after the embedding and after every
        layer, for sharding constraints. Not a config key.
      attend: self-attention as `attention` asks for on the devices at hand; None is
        the plain one. Not a config key.
      classify: the head's product (x [..., d], kernel [d, k], bias [k]) -> logits, for
        sharing the classes out among devices. Not a config key.
    """

    num_classes: int | None = None
    patch_size: int | tuple[int, int]
    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    pool: Literal["token", "gap", "map", "none"] = "token"
    class_token: bool = False
    posemb: Literal["learn", "sincos2d", "none"] = "learn"
    final_norm: Literal["tokens", "pooled"] = "tokens"
    registers: int = 0
    distilled: bool = False
    resnet: tuple[int, ...] | None = None
    standardization: Standardization = "std+1e-5"
    group_norm_epsilon: float = 1e-6
    representation_size: int | None = None
    dropout: float = 0.0
    attention_dropout: float = 0.0
    stochastic_depth: float = 0.0
    head_bias_init: float = 0.0
    qk_norm: bool = False
    layer_scale: float | None = None
    mlp: Literal["gelu", "swiglu"] = "gelu"
    gelu: Literal["tanh", "erf"] = "tanh"
    layer_norm_epsilon: float = 1e-6
    dtype: Literal["float32", "bfloat16"] = "float32"
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    scan: bool = False
    remat_policy: RematPolicy = "auto"
    remat_names: tuple[Name, ...] | None = None
    write_norms: bool = False
    recompute_gelu: bool | None = None
    attention: Choice = "auto"
    constrain: Callable[[jax.Array], jax.Array] = identity
    attend: Attend | None = None
    classify: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] = classify

    def __post_init__(self) -> None:
        _check_fields(self)
        super().__post_init__()

    @property
    def prefix_tokens(self) -> int:
        """Tokens before those of the patches: class tokens and registers."""
        own = self.class_token or self.pool == "token"
        return own + self.distilled + self.registers

    @property
    def feature_names(self) -> tuple[str, ...]:
        """What `capture` can name; see `__call__`."""
        blocks = [f"encoderblock_{layer}" for layer in range(self.depth)]
        return (
            "embedding",
            "posembed_input",
            *(name + suffix for name in blocks for suffix in ("", "/attention")),
            *(["encoder_norm"] if self.final_norm == "tokens" else []),
            *(["MAPHead_0/attention"] if self.pool == "map" else []),
            "pre_logits",
            *(["head", "head_dist"] if self.distilled else []),
        )

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        capture: Collection[str] | None = None,
    ) -> Any:
        """Images to logits.

        Args:
          images: normalised pixels [b, H, W, c] in a floating-point type. The patch
            size must divide height and width, which need not be equal.
          train: dropout and stochastic depth are on, and need the rng "dropout".
          capture: names of features to return, of:
            embedding: embedded patches, and the class token [b, n, d].
            posembed_input: the same with position embeddings, equation (1).
            encoderblock_{l}: tokens after that layer [b, n, d].
            encoderblock_{l}/attention: its weights, before dropout [b, h, n, n].
            encoder_norm: equation (4) for all tokens [b, n, d].
            MAPHead_0/attention: weights of `pool="map"` [b, h, 1, n].
            pre_logits: what the head sees [b, d], or [b, representation_size].
            head, head_dist: with `distilled`, the logits of the two heads.

        Returns:
          Logits [b, num_classes] in float32; without a head what it would have seen.
          With `pool="none"` there is a token axis after the first. With `capture` a
          pair: that, and a dict of the named features.

        Raises:
          UserError: the patch size does not divide the images, the parameters are for
            another number of tokens, or a feature has an unknown name.
        """
        names = frozenset(capture or ())
        check_capture(names, self.feature_names)
        x, grid = self._embed(images)
        features: dict[str, Any]
        y, features = self._encoder()(x, grid, train=train, capture=names)
        features["embedding"] = x

        precise = jnp.promote_types(self.dtype, jnp.float32)
        tokens = y
        if self.pool == "token":
            y = y[:, 0]
        elif self.pool == "gap":
            y = jnp.mean(y[:, self.prefix_tokens :], axis=1, dtype=precise)
        elif self.pool == "map":
            y, features["MAPHead_0/attention"] = self._map_head()(y)
        else:
            y = y[:, self.prefix_tokens :]
        y = y.astype(precise)  # [b, d]
        if self.final_norm == "pooled":
            y = nn.LayerNorm(
                self.layer_norm_epsilon,
                dtype=precise,
                param_dtype=self.param_dtype,
                name="fc_norm",
            )(y)
        if self.representation_size:
            y = nn.Dense(
                self.representation_size,
                dtype=precise,
                param_dtype=self.param_dtype,
                name="pre_logits",
            )(y)
            y = nn.tanh(y)
        features["pre_logits"] = y
        if self.num_classes:
            y = head_of(self)(y)
            if self.distilled:
                features["head"] = y
                features["head_dist"] = head_of(self, "head_dist")(
                    tokens[:, 1].astype(precise)
                )
                y = (y + features["head_dist"]) / 2
        if capture is None:
            return y
        return y, {name: features[name] for name in names}

    def _embed(self, images: jax.Array) -> tuple[jax.Array, tuple[int, int]]:
        """Patches times E behind the class token [b, n, d], and the grid of patches."""
        patch, stride = _pair(self.patch_size), 1
        if self.resnet is not None:
            stride = stem_stride(self.resnet)
        check_images(images, (patch[0] * stride, patch[1] * stride))
        x = images
        if self.resnet is not None:
            x = stem(
                x,
                stages=self.resnet,
                standardization=self.standardization,
                group_norm_epsilon=self.group_norm_epsilon,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
            )
        x = nn.Conv(
            self.width,
            patch,
            strides=patch,
            padding="VALID",
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="embedding",
        )(x)  # [b, H / p, W / p, d]
        batch, rows, columns, width = x.shape
        x = x.reshape(batch, rows * columns, width)  # [b, N, d]
        names = ["cls"] if self.class_token or self.pool == "token" else []
        names += ["dist"] if self.distilled else []
        for name in reversed(names):
            token = self.param(
                name, nn.initializers.zeros, (1, 1, width), jnp.dtype(self.param_dtype)
            )
            token = jnp.tile(token.astype(x.dtype), (batch, 1, 1))
            x = jnp.concatenate([token, x], axis=1)  # [b, N + 1, d]
        return x, (rows, columns)

    def _encoder(self) -> Encoder:
        block = functools.partial(
            lifted_block(
                scan=self.scan,
                depth=self.depth,
                remat_policy=self.remat_policy,
                remat_names=self.remat_names,
            ),
            num_heads=self.num_heads,
            mlp_dim=self.mlp_dim,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            stochastic_depth=self.stochastic_depth,
            qk_norm=self.qk_norm,
            layer_scale=self.layer_scale,
            mlp=self.mlp,
            gelu=self.gelu,
            recompute_gelu=bool(self.recompute_gelu),
            layer_norm_epsilon=self.layer_norm_epsilon,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            constrain=self.constrain,
            attend=self.attend,
            write_norms=self.write_norms,
        )
        return Encoder(
            block=block,
            depth=self.depth,
            posemb=self.posemb,
            registers=self.registers,
            final_norm=self.final_norm == "tokens",
            dropout=self.dropout,
            stochastic_depth=self.stochastic_depth,
            layer_norm_epsilon=self.layer_norm_epsilon,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            scan=self.scan,
            constrain=self.constrain,
            name="Transformer",
        )

    def _map_head(self) -> MAPHead:
        return MAPHead(
            num_heads=self.num_heads,
            mlp_dim=self.mlp_dim,
            qk_norm=self.qk_norm,
            gelu=self.gelu,
            layer_norm_epsilon=self.layer_norm_epsilon,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="MAPHead_0",
        )


def _pair(patch_size: int | tuple[int, int]) -> tuple[int, int]:
    if isinstance(patch_size, int):
        return patch_size, patch_size
    height, width = patch_size
    return height, width


def _check_fields(model: VisionTransformer) -> None:
    """What no single field's type says."""
    for key in ("width", "depth", "mlp_dim", "num_heads"):
        if getattr(model, key) < 1:
            raise UserError(f"model.{key}={getattr(model, key)} must be at least 1")
    for key in ("num_classes", "representation_size"):
        if (getattr(model, key) or 0) < 0:
            raise UserError(f"model.{key}={getattr(model, key)} must be at least 0")
    if min(_pair(model.patch_size)) < 1:
        raise UserError(f"model.patch_size={model.patch_size} must be at least 1")
    if model.registers < 0:
        raise UserError(f"model.registers={model.registers} must be at least 0")
    if model.resnet and min(model.resnet) < 1:
        raise UserError(
            f"model.resnet={model.resnet}: each stage must have at least 1 unit"
        )
    if model.distilled and model.pool != "token":
        raise UserError(
            f'model.distilled needs model.pool="token"; that is "{model.pool}"'
        )
    if model.final_norm == "pooled" and model.pool not in ("token", "gap"):
        raise UserError(
            'model.final_norm="pooled" needs model.pool="gap" or "token"; that is '
            f'"{model.pool}"'
        )
    if model.width % model.num_heads:
        raise UserError(
            f"model.num_heads={model.num_heads} does not divide model.width="
            f"{model.width}: each head takes an equal part of the width"
        )
    if model.posemb == "sincos2d" and (model.width % 4 or model.width < 8):
        raise UserError(
            f'model.posemb="sincos2d" needs a width of 8, 12, 16, ...; model.width='
            f"{model.width}"
        )
    for key in ("dropout", "attention_dropout", "stochastic_depth"):
        if not 0.0 <= getattr(model, key) < 1.0:
            raise UserError(
                f"model.{key}={getattr(model, key)} must be at least 0 and less than 1"
            )
    check_epsilons(model)
    if model.remat_names is not None and model.remat_policy != "save_only_these_names":
        raise UserError(
            f"model.remat_names is only read with model.remat_policy="
            f'"save_only_these_names", but that is {model.remat_policy!r}'
        )
