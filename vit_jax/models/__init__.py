"""Models by name; the only part of vit_jax that knows Flax Linen."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

import jax

from vit_jax import limits
from vit_jax.errors import UserError, did_you_mean
from vit_jax.models import layers, variants
from vit_jax.models.attention import Attend, choose_attention
from vit_jax.models.blocks import sincos2d
from vit_jax.models.mixer import MlpMixer
from vit_jax.models.resnet import ResNet, stem_stride
from vit_jax.models.variants import SIZES, list_models
from vit_jax.models.vit import VisionTransformer

__all__ = [
    "MODELS",
    "SIZES",
    "MlpMixer",
    "Model",
    "ResNet",
    "VisionTransformer",
    "choose_attention",
    "create",
    "layers",
    "list_models",
    "looped",
    "patch_grid",
    "place",
    "shared_dims",
    "sincos2d",
]

Model = VisionTransformer | MlpMixer | ResNet
MODELS: dict[str, type[Model]] = {
    "vit": VisionTransformer,
    "mixer": MlpMixer,
    "resnet": ResNet,
}


def create(
    *,
    name: Literal["vit", "mixer", "resnet"] = "vit",
    variant: str | None = None,
    **fields: Any,
) -> Any:
    """Builds a model from the keys of `config.model`.

    Args:
      name: of the architecture, a key of `MODELS`.
      variant: a published size and a patch size, such as "B/16"; see `list_models`.
        With `name="resnet"` a depth and a width, such as "50x1".
      **fields: fields of the model. They win over the variant; None means not given.

    Raises:
      UserError: a key or a value is unknown, or a field has no value.

    >>> create(variant="Ti/16", num_classes=10, depth=3).width
    192
    """
    if name not in MODELS:
        raise UserError(f'model.name="{name}" is unknown: {did_you_mean(name, MODELS)}')
    known = {f.name: f for f in dataclasses.fields(MODELS[name])}
    del known["name"], known["parent"]  # Linen's own
    for key in fields:
        if key not in known:
            raise UserError(f"model.{key} is unknown: {did_you_mean(key, known)}")
    values: dict[str, Any] = {} if variant is None else variants.expand(variant, name)
    values |= {key: value for key, value in fields.items() if value is not None}
    missing = [
        key
        for key, field in known.items()
        if field.default is dataclasses.MISSING and key not in values
    ]
    if missing:
        raise UserError(
            f"the model has no {', '.join(missing)}: set model.variant, for example to "
            f'"{list_models(name)[0]}", or set model.{missing[0]}'
        )
    _check_choices(MODELS[name], values)
    _check_sizes(values)
    return MODELS[name](**values)


def shared_dims(model: Model) -> dict[str, int]:
    """The keys of a model whose values the mesh's axis `tensor` must divide.

    >>> shared_dims(create(variant="Ti/16"))
    {'num_heads': 3, 'mlp_dim': 768}
    """
    return {
        key: getattr(model, key)
        for key in ("num_heads", "mlp_dim")
        if hasattr(model, key)
    }


def looped(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of the same model with its layers in a loop, and nothing recomputed.

    >>> looped({"variant": "B/16", "scan": True})["scan"], looped({"name": "mixer"})
    (False, {'name': 'mixer'})
    """
    if fields.get("name", "vit") != "vit":
        return dict(fields)
    return {**fields, "scan": False, "remat_policy": None, "remat_names": None}


def patch_grid(model: Model, image_size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the patches of an image; (0, 0) for a model without.

    >>> patch_grid(create(variant="R50+ViT-B/16"), (224, 224))
    (14, 14)
    """
    if isinstance(model, ResNet):
        return 0, 0
    patch = model.patch_size
    height, width = (patch, patch) if isinstance(patch, int) else patch
    stride = 1
    if isinstance(model, VisionTransformer) and model.resnet is not None:
        stride = stem_stride(model.resnet)
    return image_size[0] // (height * stride), image_size[1] // (width * stride)


def place(
    model: Model,
    *,
    constrain: Callable[[jax.Array], jax.Array],
    attend: Attend | None,
    classify: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    platform: str,
) -> Any:
    """The model as it runs on a mesh; see the fields of `VisionTransformer`."""
    placed = model.clone(constrain=constrain, classify=classify)
    if isinstance(placed, VisionTransformer) and placed.recompute_gelu is None:
        nothing_else = placed.remat_policy in ("auto", "none") and not placed.scan
        placed = placed.clone(recompute_gelu=platform == "gpu" and nothing_else)
    return placed if attend is None else placed.clone(attend=attend)


# Larger numbers are slips of the finger, which the compiler may not survive.
_LARGEST = {
    "depth": limits.LAYERS,
    "num_classes": limits.CLASSES,
    "num_heads": 2**12,
    "registers": 2**12,
}
_LARGEST_OTHER = 2**20


def _check_sizes(values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if key == "head_bias_init":  # it may be negative
            continue
        largest = _LARGEST[key] if key in _LARGEST else _LARGEST_OTHER
        numbers = value if isinstance(value, tuple) else (value,)
        for number in numbers:
            if isinstance(number, int) and not 0 <= number <= largest:
                raise UserError(
                    f"config.model.{key} is {value}: it should be at most {largest:,}, "
                    "and not negative"
                )


def _check_choices(model: type, values: dict[str, Any]) -> None:
    """Names the valid values where a field takes one, or a tuple, of a few."""
    hints = get_type_hints(model)
    for key, value in values.items():
        valid = _choices(hints[key])
        for given in value if isinstance(value, tuple) else (value,):
            if valid and given not in valid:
                raise UserError(
                    f'model.{key}="{given}" is unknown: '
                    + did_you_mean(str(given), valid)
                )


def _choices(hint: Any) -> tuple[str, ...]:
    """The values of every `Literal` within a type."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(choice for part in get_args(hint) for choice in _choices(part))
