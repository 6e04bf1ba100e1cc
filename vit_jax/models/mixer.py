"""MLP-Mixer (Tolstikhin et al., 2021, arXiv:2105.01601).

Axes: b batch, n patches, d width. Parameter names are those of the published files.
"""

import functools
from collections.abc import Callable, Collection
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.errors import UserError
from vit_jax.models.blocks import classify, drop_path, head_of, identity
from vit_jax.models.inputs import check_capture, check_epsilons, check_images


class MixerBlock(nn.Module, kw_only=True):
    """Mixes tokens, then channels: equation (1) of the Mixer's paper."""

    tokens_mlp_dim: int
    mlp_dim: int
    norm: Callable[..., nn.Module]
    mlp: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, drop_rate: float, train: bool) -> jax.Array:
        """[b, n, d] to [b, n, d]."""

        def drop(branch: jax.Array) -> jax.Array:
            if train and drop_rate:
                return drop_path(branch, self.make_rng("dropout"), rate=drop_rate)
            return branch

        y = self.norm(name="LayerNorm_0")(x).swapaxes(1, 2)  # [b, d, n]
        y = self.mlp(mlp_dim=self.tokens_mlp_dim, name="token_mixing")(y)
        x = x + drop(y.swapaxes(1, 2))
        y = self.norm(name="LayerNorm_1")(x)
        return x + drop(self.mlp(mlp_dim=self.mlp_dim, name="channel_mixing")(y))


class MlpBlock(nn.Module, kw_only=True):
    """Two dense layers with a GELU between them."""

    mlp_dim: int
    gelu: Literal["tanh", "erf"]
    dtype: str
    param_dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., d] to [..., d]."""
        dense = functools.partial(
            nn.Dense, dtype=self.dtype, param_dtype=self.param_dtype
        )
        y = dense(self.mlp_dim, name="Dense_0")(x)
        y = nn.gelu(y, approximate=self.gelu == "tanh")
        return dense(x.shape[-1], name="Dense_1")(y)


class MlpMixer(nn.Module, kw_only=True):
    """An MLP-Mixer; its fields are the keys of `config.model` with `name=mixer`.

    Attributes:
      num_classes: outputs of the head; None or 0 leaves the head out.
      patch_size: height and width of a patch in pixels.
      width: of the tokens (the paper's C).
      depth: number of layers.
      tokens_mlp_dim: hidden width of the MLP over tokens (the paper's D_S).
      mlp_dim: hidden width of the MLP over channels (the paper's D_C).
      stochastic_depth: rate of dropping a residual branch in the last layer; layers
        before it have less in proportion, the first has none.
      head_bias_init: where the head's bias starts.
      gelu: "tanh" approximation, as the paper's code, or exact "erf", as timm.
      layer_norm_epsilon: added to the variance in every LayerNorm.
      dtype: of the computation; pooling, the head and the output are in float32.
      param_dtype: of the parameters.
      constrain: applied to the tokens [b, n, d] after every layer. Not a config key.
      classify: the head's product; not a config key. See `VisionTransformer`.
    """

    num_classes: int | None = None
    patch_size: int
    width: int
    depth: int
    tokens_mlp_dim: int
    mlp_dim: int
    stochastic_depth: float = 0.0
    head_bias_init: float = 0.0
    gelu: Literal["tanh", "erf"] = "tanh"
    layer_norm_epsilon: float = 1e-6
    dtype: Literal["float32", "bfloat16"] = "float32"
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    constrain: Callable[[jax.Array], jax.Array] = identity
    classify: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] = classify

    def __post_init__(self) -> None:
        for key in ("patch_size", "width", "depth", "tokens_mlp_dim", "mlp_dim"):
            if getattr(self, key) < 1:
                raise UserError(f"model.{key}={getattr(self, key)} must be at least 1")
        if not 0.0 <= self.stochastic_depth < 1.0:
            raise UserError(
                f"model.stochastic_depth={self.stochastic_depth} must be at least 0 "
                "and less than 1"
            )
        check_epsilons(self)
        super().__post_init__()

    @property
    def feature_names(self) -> tuple[str, ...]:
        """What `capture` can name; see `__call__`."""
        blocks = [f"MixerBlock_{layer}" for layer in range(self.depth)]
        return ("stem", *blocks, "pre_head_layer_norm", "pre_logits")

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
          images: normalised pixels [b, H, W, c] in a floating-point type, of the size
            that the parameters are for.
          train: stochastic depth is on, and needs the rng "dropout".
          capture: names of features to return, of:
            stem: embedded patches [b, n, d].
            MixerBlock_{l}: tokens after that layer [b, n, d].
            pre_head_layer_norm: after the last LayerNorm [b, n, d].
            pre_logits: what the head sees [b, d].

        Returns:
          Logits [b, num_classes] in float32; without a head what it would have seen.
          With `capture` a pair: that, and a dict of the named features.

        Raises:
          UserError: the images do not fit the patches or the parameters, or a feature
            has an unknown name.
        """
        names = frozenset(capture or ())
        check_capture(names, self.feature_names)
        patch = (self.patch_size, self.patch_size)
        check_images(images, patch)
        self._check_tokens(images)
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        norm = functools.partial(nn.LayerNorm, self.layer_norm_epsilon, **types)
        mlp = functools.partial(MlpBlock, gelu=self.gelu, **types)
        features = {}
        x = nn.Conv(self.width, patch, patch, padding="VALID", name="stem", **types)(
            images
        )
        batch, rows, columns, width = x.shape
        x = x.reshape(batch, rows * columns, width)  # [b, n, d]
        x = features["stem"] = self.constrain(x)
        rates = np.linspace(0.0, self.stochastic_depth, self.depth).tolist()
        for layer, rate in enumerate(rates):
            name = f"MixerBlock_{layer}"
            block = MixerBlock(
                tokens_mlp_dim=self.tokens_mlp_dim,
                mlp_dim=self.mlp_dim,
                norm=norm,
                mlp=mlp,
                name=name,
            )
            x = features[name] = self.constrain(block(x, rate, train))
        x = features["pre_head_layer_norm"] = norm(name="pre_head_layer_norm")(x)
        y = jnp.mean(x, axis=1, dtype=jnp.promote_types(self.dtype, jnp.float32))
        features["pre_logits"] = y
        if self.num_classes:
            y = head_of(self)(y)
        if capture is None:
            return y
        return y, {name: features[name] for name in names}

    def _check_tokens(self, images: jax.Array) -> None:
        path = ("MixerBlock_0", "token_mixing", "Dense_0")
        if not self.has_variable("params", path[0]):
            return
        parameters: Any = self.variables["params"]
        for name in path:
            parameters = parameters[name]
        _, height, width, _ = images.shape
        tokens = height // self.patch_size * (width // self.patch_size)
        if (found := len(parameters["kernel"])) != tokens:
            raise UserError(
                f"images of {height} x {width} pixels give {tokens} tokens, but the "
                f"parameters mix {found}: a Mixer takes images of the size it was "
                "made for"
            )
