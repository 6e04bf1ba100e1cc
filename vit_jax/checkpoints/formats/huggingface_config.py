"""config.json of `transformers`: what its values may be, and writing one."""

from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax import limits
from vit_jax.checkpoints.formats.inferred import Fields
from vit_jax.errors import UserError

# Larger than any model: who writes more means to fill the memory.
_MOST = 2**20
_SIZES = ("image_size", "patch_size")  # one number, or height and width
_SHOWN = 60  # letters of a value that a message repeats


def check_values(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with transformers' defaults; values of another kind are refused.

    Args:
      kind: `model_type` of config.json.
      config: what its config.json, or a vision_config in it, says.

    Raises:
      UserError: with the key.
    """
    defaults = _defaults(kind)
    config = {**defaults, **config}
    for key, default in defaults.items():
        value = config[key]
        numbers = value if key in _SIZES and isinstance(value, list) else [value]
        good, expected = True, type(default).__name__
        if isinstance(default, bool | str):
            good = type(value) is type(default)
        elif isinstance(default, int):
            most = limits.LAYERS if key == "num_hidden_layers" else _MOST
            least = 0 if key == "num_register_tokens" else 1
            good = all(type(n) is int and least <= n <= most for n in numbers)
            good &= isinstance(value, int) or len(numbers) == 2
            expected = f"a whole number from {least} to {most:,}"
        elif isinstance(default, float):
            good = isinstance(value, int | float) and 0 <= value < _MOST
            good &= not isinstance(value, bool)
            expected = "a number"
        if not good:
            shown = str(value)[:_SHOWN]
            raise UserError(f"config.json has {key} {shown!r}; expected {expected}")
    return config


def model_type(fields: Fields) -> str | None:
    """The Hugging Face model that can say all of this, if any."""
    plain = (
        fields["name"] == "vit"
        and fields.get("resnet") is None
        and fields.get("posemb", "learn") == "learn"
        and not fields.get("representation_size")
        and not fields.get("qk_norm")
        and fields.get("final_norm", "tokens") == "tokens"
        and isinstance(fields["patch_size"], int)
        and not fields.get("class_token")
    )
    if not plain:
        return None
    scaled, registers = fields.get("layer_scale"), fields.get("registers")
    if fields["pool"] in ("map", "gap"):
        if scaled or registers or fields.get("mlp", "gelu") != "gelu":
            return None
        if not fields.get("num_classes"):
            return "siglip_vision_model"
        return "siglip" if fields["pool"] == "gap" else None
    if fields["pool"] != "token":
        return None
    if scaled is not None:
        if fields.get("num_classes") or fields.get("distilled"):
            return None  # its classifier sees the patches too
        return "dinov2_with_registers" if registers else "dinov2"
    if registers or fields.get("mlp", "gelu") != "gelu":
        return None
    return "deit" if fields.get("distilled") else "vit"


# Without a head, and with one.
_CLASSES: dict[str, tuple[str, ...]] = {
    "vit": ("ViTModel", "ViTForImageClassification"),
    "deit": ("DeiTModel", "DeiTForImageClassificationWithTeacher"),
    # Their classifiers see something else than the class token.
    "dinov2": ("Dinov2Model",),
    "dinov2_with_registers": ("Dinov2WithRegistersModel",),
    "siglip_vision_model": ("SiglipVisionModel",),
    # Of the tokens' mean, as the paper's comparison of heads has it (appendix D.3).
    "siglip": ("SiglipVisionModel", "SiglipForImageClassification"),
}

# That are read, and written as another one.
_READ = (
    *("IJepaModel", "IJepaForImageClassification"),
    *("ViTMSNModel", "ViTMSNForImageClassification"),
)
ARCHITECTURES = tuple(
    sorted({*_READ, *(name for pair in _CLASSES.values() for name in pair)})
)


# What `transformers` takes where a config.json, or a vision_config in it, says nothing.
_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "vision_use_head": True,
    "layerscale_value": 1.0,
    "use_swiglu_ffn": False,
    "num_register_tokens": 4,
}


def _defaults(kind: str) -> dict[str, Any]:
    if "siglip" in kind:
        own = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
        return {**_DEFAULTS, **own}
    if kind.startswith("dinov2"):
        patch = 16 if kind == "dinov2_with_registers" else 14
        return {**_DEFAULTS, "layer_norm_eps": 1e-6, "patch_size": patch}
    if kind == "vit_msn":
        return {**_DEFAULTS, "layer_norm_eps": 1e-6}
    return _DEFAULTS


def config(
    fields: Fields,
    image_size: tuple[int, int],
    label_names: Sequence[str] | None,
    loss: str,
) -> dict[str, Any]:
    """config.json of a model that `model_type` has found.

    Args:
      fields: of the model.
      image_size: (height, width).
      label_names: of the classes.
      loss: "sigmoid_xent" where they do not exclude each other.

    Raises:
      UserError: if its MLP has a width that dinov2 cannot say.
    """
    kind = model_type(fields)
    assert kind is not None
    classes = fields.get("num_classes") or 0
    height, width = image_size
    found: dict[str, Any] = {
        "architectures": [_CLASSES[kind][bool(classes)]],
        "model_type": kind,
        "hidden_size": fields["width"],
        "num_hidden_layers": fields["depth"],
        "num_attention_heads": fields["num_heads"],
        "hidden_act": {"erf": "gelu", "tanh": "gelu_pytorch_tanh"}[fields["gelu"]],
        "layer_norm_eps": fields["layer_norm_epsilon"],
        "image_size": height if height == width else [height, width],
        "patch_size": fields["patch_size"],
        "num_channels": 3,
        "dtype": "float32",
    }
    if kind.startswith("dinov2"):
        swiglu = fields["mlp"] == "swiglu"
        ratio = fields["mlp_dim"] / fields["width"]
        if swiglu:
            # As published, or the nearest: two thirds of it count, see `_swiglu_width`.
            ratios = [*map(float, range(1, 9)), ratio * 3 / 2]
            right = [r for r in ratios if _swiglu_width(fields, r) == fields["mlp_dim"]]
            if not right:
                raise UserError(
                    f"dinov2 cannot say a SwiGLU of width {fields['mlp_dim']}: choose "
                    "another format"
                )
            ratio = right[0]
        found |= {
            "mlp_ratio": int(ratio) if ratio == int(ratio) else ratio,
            "use_swiglu_ffn": swiglu,
            "layerscale_value": fields["layer_scale"],
        }
    else:
        found["intermediate_size"] = fields["mlp_dim"]
    if "siglip" in kind:
        if height != width:
            raise UserError(
                f"siglip cannot say an image size of {height} x {width}, only squares: "
                "choose another format"
            )
        found["vision_use_head"] = fields["pool"] == "map"
    else:
        found["qkv_bias"] = True
    if kind == "dinov2_with_registers":
        found["num_register_tokens"] = fields["registers"]
    if kind == "siglip":
        about = {key: found.pop(key) for key in ("architectures", "dtype")}
        found["model_type"] = "siglip_vision_model"
        found = {**about, "model_type": kind, "vision_config": found}
    if classes:
        names = label_names or [f"LABEL_{i}" for i in range(classes)]
        found["id2label"] = {str(i): name for i, name in enumerate(names)}
        found["label2id"] = {name: i for i, name in enumerate(names)}
        if loss == "sigmoid_xent":
            found["problem_type"] = "multi_label_classification"
    return found


def _swiglu_width(fields: Fields, ratio: float) -> int:
    """What `transformers` makes of dinov2's mlp_ratio: a multiple of 8."""
    return (int(int(fields["width"] * ratio) * 2 / 3) + 7) // 8 * 8
