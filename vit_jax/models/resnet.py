"""ResNets with GroupNorm and weight standardisation: the stem of hybrids, and BiT.

Axes: b batch, H and W height and width, c channels.

The stem is the ResNet v1 of the paper's hybrids (arXiv:2010.11929, section 3.1), with
the parameter names of its published checkpoints. `ResNet` is the v2 (pre-activation)
of "Big Transfer" (arXiv:1912.11370), which the paper compares with; its parameter names
are big_vision's.
"""

import functools
from collections.abc import Callable, Collection
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.errors import UserError
from vit_jax.models.blocks import classify, head_of, identity
from vit_jax.models.inputs import check_capture, check_epsilons, check_images

# How a standard deviation is kept from 0, as the implementations differ: the paper's
# code adds 1e-5 to it; timm adds 1e-8 and BiT's code 1e-10 to the variance.
Standardization = Literal["std+1e-5", "var+1e-8", "var+1e-10"]


# In groups of 32; E[x^2] - E[x]^2, which Flax takes by default, costs digits.
GroupNorm = functools.partial(nn.GroupNorm, num_groups=32, use_fast_variance=False)


def standardize(kernel: jax.Array, how: Standardization = "std+1e-5") -> jax.Array:
    """Weight standardisation (arXiv:1903.10520): each output has mean 0 and variance 1.

    Args:
      kernel: [height, width, inputs, outputs].
      how: see `Standardization`.

    >>> standardize(jnp.array([1.0, 3.0]).reshape(2, 1, 1, 1)).ravel().round(3).tolist()
    [-1.0, 1.0]
    """
    kernel = kernel - jnp.mean(kernel, axis=(0, 1, 2))
    variance = jnp.mean(jnp.square(kernel), axis=(0, 1, 2))
    if how == "std+1e-5":
        return kernel / (jnp.sqrt(variance) + 1e-5)
    return kernel / jnp.sqrt(variance + float(how.removeprefix("var+")))


class StdConv(nn.Module, kw_only=True):
    """A convolution without a bias, whose kernel is standardised before it is used."""

    features: int
    kernel_size: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: Literal["SAME", "both sides"]
    standardization: Standardization
    dtype: str
    param_dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, H, W, c] to [b, H / stride, W / stride, features]."""
        kernel = self.param(
            "kernel",
            nn.initializers.lecun_normal(),
            (*self.kernel_size, x.shape[-1], self.features),
            jnp.dtype(self.param_dtype),
        )
        kernel = standardize(kernel, self.standardization)
        padding: Any = self.padding
        if padding == "both sides":
            padding = [(size // 2, size // 2) for size in self.kernel_size]
        return jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            self.strides,
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class Unit(nn.Module, kw_only=True):
    """A bottleneck with its activations after the convolutions (ResNet v1)."""

    width: int
    strides: tuple[int, int]
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, H, W, c] to [b, H / stride, W / stride, 4 width]."""
        outputs, residual = 4 * self.width, x
        if x.shape[-1] != outputs or self.strides != (1, 1):
            residual = self.conv(
                features=outputs,
                kernel_size=(1, 1),
                strides=self.strides,
                name="conv_proj",
            )(x)
            residual = self.norm(name="gn_proj")(residual)
        y = self.conv(features=self.width, kernel_size=(1, 1), name="conv1")(x)
        y = nn.relu(self.norm(name="gn1")(y))
        y = self.conv(
            features=self.width, kernel_size=(3, 3), strides=self.strides, name="conv2"
        )(y)
        y = nn.relu(self.norm(name="gn2")(y))
        y = self.conv(features=outputs, kernel_size=(1, 1), name="conv3")(y)
        y = self.norm(name="gn3", scale_init=nn.initializers.zeros)(y)
        return nn.relu(residual + y)


class PreActivationUnit(nn.Module, kw_only=True):
    """A bottleneck with its activations before the convolutions (ResNet v2)."""

    width: int
    strides: tuple[int, int]
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, H, W, c] to [b, H / stride, W / stride, 4 width]."""
        outputs, residual = 4 * self.width, x
        y = nn.relu(self.norm(name="gn1")(x))
        if x.shape[-1] != outputs or self.strides != (1, 1):
            residual = self.conv(
                features=outputs,
                kernel_size=(1, 1),
                strides=self.strides,
                name="conv_proj",
            )(y)
        y = self.conv(features=self.width, kernel_size=(1, 1), name="conv1")(y)
        y = nn.relu(self.norm(name="gn2")(y))
        y = self.conv(
            features=self.width, kernel_size=(3, 3), strides=self.strides, name="conv2"
        )(y)
        y = nn.relu(self.norm(name="gn3")(y))
        return residual + self.conv(features=outputs, kernel_size=(1, 1), name="conv3")(
            y
        )


class Stage(nn.Module, kw_only=True):
    """Units of one width; the first takes the stride."""

    unit: Callable[..., nn.Module]
    units: int
    width: int
    first_stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, H, W, c] to [b, H / stride, W / stride, 4 width]."""
        for number in range(1, self.units + 1):
            stride = self.first_stride if number == 1 else 1
            x = self.unit(
                width=self.width, strides=(stride, stride), name=f"unit{number}"
            )(x)
        return x


def stem(
    x: jax.Array,
    *,
    stages: tuple[int, ...],
    standardization: Standardization,
    group_norm_epsilon: float,
    dtype: str,
    param_dtype: str,
) -> jax.Array:
    """The ResNet below a hybrid's patches; to be called in a compact method.

    It makes its modules in the caller's scope: published files have no level between
    the model and `conv_root`, `gn_root` and `block{i}`.

    Args:
      x: images [b, H, W, c].
      stages: units of each stage; after the root, the first keeps the resolution and
        the others halve it.
      standardization: of the kernels.
      group_norm_epsilon: added to the variance in every GroupNorm.
      dtype: of the computation.
      param_dtype: of the parameters.

    Returns:
      [b, H / s, W / s, c'] where s is `stem_stride(stages)`.
    """
    conv = functools.partial(
        StdConv,
        padding="SAME",
        standardization=standardization,
        dtype=dtype,
        param_dtype=param_dtype,
    )
    norm = functools.partial(
        GroupNorm, epsilon=group_norm_epsilon, dtype=dtype, param_dtype=param_dtype
    )
    x = conv(features=64, kernel_size=(7, 7), strides=(2, 2), name="conv_root")(x)
    x = nn.relu(norm(name="gn_root")(x))
    x = nn.max_pool(x, (3, 3), (2, 2), padding="SAME")
    unit = functools.partial(Unit, conv=conv, norm=norm)
    for i, units in enumerate(stages):
        x = Stage(
            unit=unit,
            units=units,
            width=64 * 2**i,
            first_stride=1 if i == 0 else 2,
            name=f"block{i + 1}",
        )(x)
    return x


def stem_stride(stages: tuple[int, ...]) -> int:
    """Pixels of the image to one of the stem's output.

    >>> stem_stride(()), stem_stride((3, 4, 9)), stem_stride((2, 2, 2, 2))
    (4, 16, 32)
    """
    return 4 * 2 ** max(len(stages) - 1, 0)


class ResNet(nn.Module, kw_only=True):
    """BiT's ResNet v2; its fields are the keys of `config.model` with `name=resnet`.

    Attributes:
      num_classes: outputs of the head; None or 0 leaves the head out.
      stages: units of each stage, such as (3, 4, 6, 3).
      width_factor: times 64 is the width of the root.
      standardization: how a kernel's standard deviation is kept from 0: what is added
        to it ("std+...") or to its square ("var+...").
      group_norm_epsilon: added to the variance in every GroupNorm.
      head_bias_init: where the head's bias starts.
      dtype: of the computation; pooling, the head and the output are in float32.
      param_dtype: of the parameters.
      constrain: applied to the activations after every stage. Not a config key.
      classify: the head's product; not a config key. See `VisionTransformer`.
    """

    num_classes: int | None = None
    stages: tuple[int, ...]
    width_factor: int
    standardization: Standardization = "var+1e-10"
    group_norm_epsilon: float = 1e-5
    head_bias_init: float = 0.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    constrain: Callable[[jax.Array], jax.Array] = identity
    classify: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] = classify

    def __post_init__(self) -> None:
        if not self.stages or min(self.stages) < 1 or self.width_factor < 1:
            raise UserError(
                f"model.stages={self.stages} and model.width_factor="
                f"{self.width_factor} must have at least one stage, of at least 1"
            )
        check_epsilons(self)
        super().__post_init__()

    @property
    def feature_names(self) -> tuple[str, ...]:
        """What `capture` can name; see `__call__`."""
        blocks = [f"block{i + 1}" for i in range(len(self.stages))]
        return ("conv_root", *blocks, "norm-pre-head", "pre_logits")

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
          images: normalised pixels [b, H, W, c] in a floating-point type.
          train: as `VisionTransformer`'s; nothing here depends on it.
          capture: names of features to return, of:
            conv_root: [b, H / 2, W / 2, c].
            block{i}: after that stage.
            norm-pre-head: after the last GroupNorm and ReLU.
            pre_logits: what the head sees [b, c].

        Returns:
          Logits [b, num_classes] in float32; without a head what it would have seen.
          With `capture` a pair: that, and a dict of the named features.

        Raises:
          UserError: the images are no normalised pixels, or a feature has an unknown
            name.
        """
        del train
        names = frozenset(capture or ())
        check_capture(names, self.feature_names)
        check_images(images, (1, 1))
        norm = functools.partial(
            GroupNorm,
            epsilon=self.group_norm_epsilon,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        conv = functools.partial(
            StdConv,
            padding="both sides",  # alike, whatever the stride, as BiT's code pads
            standardization=self.standardization,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        width = 64 * self.width_factor
        features = {}
        root = conv(
            features=width, kernel_size=(7, 7), strides=(2, 2), name="conv_root"
        )
        x = root(images)
        features["conv_root"] = x
        # Zeros around it, not minus infinity: nothing has been rectified yet, and BiT
        # was trained so.
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = nn.max_pool(x, (3, 3), (2, 2))
        unit = functools.partial(PreActivationUnit, conv=conv, norm=norm)
        for i, units in enumerate(self.stages):
            name = f"block{i + 1}"
            x = Stage(
                unit=unit,
                units=units,
                width=width * 2**i,
                first_stride=1 if i == 0 else 2,
                name=name,
            )(x)
            x = features[name] = self.constrain(x)
        x = features["norm-pre-head"] = nn.relu(norm(name="norm-pre-head")(x))
        y = jnp.mean(x, axis=(1, 2), dtype=jnp.promote_types(self.dtype, jnp.float32))
        features["pre_logits"] = y
        if self.num_classes:
            y = head_of(self)(y)
        if capture is None:
            return y
        return y, {name: features[name] for name in names}
