"""timm's config.json: what it says of a model beside its tensors, read and written.

As timm's `save_for_hf` and `push_to_hf_hub` write it, and `create_model` reads it from
`local-dir:DIRECTORY`. Until 2022 it was one level, without the model's arguments.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.checkpoints.formats import processors, timm
from vit_jax.checkpoints.formats.inferred import Fields, Inferred
from vit_jax.checkpoints.formats.layouts import Shape
from vit_jax.checkpoints.formats.metadata import About
from vit_jax.errors import UserError

_MOST = 2**20  # pixels of a side
_POOLS = {"token": "token", "avg": "gap", "map": "map", "": "none"}
_GELUS = {"gelu": "erf", "gelu_erf": "erf", "gelu_tanh": "tanh"}
# Names of timm's models whose tensors alone are those of another one.
_BY_NAME: dict[str, Fields] = {
    "vit_base_patch16_gap_224": {"num_heads": 16},
    "vit_base_patch16_siglip_gap_224": {"num_heads": 12},
}
# Arguments that the tensors tell too, and that change nothing outside of training.
_TOLD = (
    *("img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth"),
    *("num_heads", "mlp_ratio", "qkv_bias", "proj_bias", "init_values", "class_token"),
    *("pos_embed", "no_embed_class", "reg_tokens", "final_norm", "fc_norm", "pre_norm"),
    *("dynamic_img_size", "strict_img_size", "weight_init", "fix_init", "global_pool"),
    *("num_blocks", "layers", "width_factor", "qk_norm", "act_layer", "distilled"),
    *("pool_include_prefix", "scale_attn_norm", "scale_mlp_norm", "drop_rate"),
    *("pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate"),
    *("drop_path_rate", "drop_path", "cache_dir", "pretrained_cfg_overlay"),
)


def is_timm(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is timm's."""
    return "model_type" not in config and (
        "architecture" in config or "pretrained_cfg" in config
    )


def complete(
    shapes: Mapping[str, Shape], config: Mapping[str, Any], known: Mapping[str, Any]
) -> Inferred:
    """What tensors and config.json together say of a model.

    Args:
      shapes: of the tensors by name.
      config: of timm; empty where there is none.
      known: fields that are said elsewhere, and win.

    Raises:
      UserError: if it is none of ours.
    """
    said = fields_of(config) if is_timm(config) else {}
    if said.get("pool") == "map" and not pools_all(config):
        del said["pool"]  # the tensors say it, and whether all tokens are pooled not
    inferred = timm.infer(shapes, {**said, **known})
    size = image_size(config)
    if size is None or inferred.if_fits(size) is None:
        return inferred
    height, width = inferred.pixels
    return inferred._replace(grid=(size[0] // height, size[1] // width))


def fields_of(config: Mapping[str, Any]) -> Fields:
    """The fields of the model that config.json says; tensors may say them too.

    Args:
      config: of timm.

    Raises:
      UserError: for what no model of ours computes.

    >>> fields_of({"architecture": "vit_tiny_patch16_224", "global_pool": "avg"})
    {'pool': 'gap'}
    """
    name = str(config["architecture"]) if "architecture" in config else ""
    args = config["model_args"] if "model_args" in config else {}
    if not isinstance(args, dict):
        raise UserError("config.json: model_args is no object")
    said = {"quickgelu": "QuickGELU", "_rpn_": "LayerNorm after attention"}
    for part, what in said.items():
        if part in name:
            raise UserError(f"timm's {name} is not supported: {what}")
    unknown = sorted(k for k, v in args.items() if k not in _TOLD and v is not None)
    if unknown:
        raise UserError(
            f"config.json: model_args has {', '.join(unknown)}, and it is not known "
            "here what that changes"
        )
    fields = dict(_BY_NAME[name]) if name in _BY_NAME else {}
    pool = args["global_pool"] if "global_pool" in args else None
    pool = config["global_pool"] if "global_pool" in config else pool
    if pool is not None and re.match(r"(vit|deit|flexivit|eva|beit|test_vit)", name):
        fields["pool"] = _of("global_pool", pool, _POOLS)
    if "num_heads" in args and args["num_heads"] is not None:
        if type(args["num_heads"]) is not int:
            raise UserError("config.json: model_args has a num_heads that is no number")
        fields["num_heads"] = args["num_heads"]
    if args.get("act_layer") is not None and args["act_layer"] != "silu":
        fields["gelu"] = _of("act_layer", args["act_layer"], _GELUS)
    return fields


def pools_all(config: Mapping[str, Any]) -> bool:
    """Whether class tokens and registers are pooled as well."""
    args = config["model_args"] if "model_args" in config else {}
    return bool(args.get("pool_include_prefix"))


def image_size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """(height, width) that the model was made for, if it is said.

    >>> image_size({"model_args": {"img_size": [128, 512]}})
    (128, 512)
    """
    args = config["model_args"] if "model_args" in config else {}
    size = args.get("img_size")
    if size is None:
        return None
    sides = size if isinstance(size, list) else [size, size]
    if len(sides) != 2 or not all(type(n) is int and 0 < n <= _MOST for n in sides):
        raise UserError(
            f"config.json: model_args has img_size {str(size)[:60]!r}; expected one "
            f"whole number, or two, up to {_MOST:,}"
        )
    return sides[0], sides[1]


def label_names(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Of the classes: a list, or by number; `labels` in older files.

    >>> label_names({"label_names": {"1": "dog", "0": "cat"}})
    ('cat', 'dog')
    """
    cfg = config["pretrained_cfg"] if "pretrained_cfg" in config else {}
    for place in (config, cfg):
        for key in ("label_names", "labels"):
            if isinstance(place, dict) and place.get(key):
                return _names(place[key])
    return None


def _names(found: Any) -> tuple[str, ...] | None:
    if isinstance(found, list):
        return tuple(str(name) for name in found)
    if not isinstance(found, dict):
        return None
    if not all(str(number).isdecimal() for number in found):
        return None  # names of another kind
    by_number = {int(number): str(name) for number, name in found.items()}
    if sorted(by_number) != list(range(len(by_number))):
        return None  # with gaps
    return tuple(by_number[i] for i in range(len(by_number)))


def _of(key: str, value: Any, known: Mapping[str, str]) -> str:
    if not isinstance(value, str) or value not in known:
        raise UserError(
            f'config.json: {key} is "{value}"; supported are '
            + ", ".join(f'"{k}"' for k in known)
        )
    return known[value]


# --- Writing


def pretrained_cfg(fields: Fields, about: About) -> dict[str, Any]:
    """How images are prepared, and what the first and last layers are called."""
    classifier = "head.fc" if fields["name"] == "resnet" else "head"
    stems = {"resnet": "stem.conv", "mixer": "stem.proj", "vit": "patch_embed.proj"}
    first = stems[fields["name"]]
    if fields.get("resnet") is not None:
        stem = "stem.conv" if fields["resnet"] else "conv"
        first = f"patch_embed.backbone.{stem}"
    return {
        **processors.to_timm(about.preprocessing, about.image_size)[0],
        "fixed_input_size": fields["name"] != "resnet",
        "first_conv": first,
        "classifier": ["head", "head_dist"] if fields.get("distilled") else classifier,
    }


# Of each kind of model, one whose arguments can be changed to be any other.
_HYBRIDS = {
    (): "vit_tiny_r_s16_p8_224",
    (2, 2, 2, 2): "vit_small_r26_s32_224",
    (3, 4, 9): "vit_base_r50_s16_224",
    (3, 4, 6, 3): "vit_large_r50_s32_224",
}
_MIXERS = {
    (32, 512, 8): "mixer_s32_224",
    (16, 512, 8): "mixer_s16_224",
    (32, 768, 12): "mixer_b32_224",
    (16, 768, 12): "mixer_b16_224",
    (32, 1024, 24): "mixer_l32_224",
    (16, 1024, 24): "mixer_l16_224",
}
_BITS = {
    ((3, 4, 6, 3), 1): "resnetv2_50x1_bit",
    ((3, 4, 6, 3), 3): "resnetv2_50x3_bit",
    ((3, 4, 23, 3), 1): "resnetv2_101x1_bit",
    ((3, 4, 23, 3), 3): "resnetv2_101x3_bit",
    ((3, 8, 36, 3), 2): "resnetv2_152x2_bit",
    ((3, 8, 36, 3), 4): "resnetv2_152x4_bit",
}


def write(
    fields: Fields,
    image_size: tuple[int, int],
    *,
    pretrained_cfg: Mapping[str, Any],
    label_names: Sequence[str] | None,
) -> dict[str, Any]:
    """config.json of a model, for `timm.create_model("local-dir:...")`.

    Args:
      fields: of the model.
      image_size: (height, width).
      pretrained_cfg: how images are prepared.
      label_names: of the classes.

    Raises:
      UserError: if timm has no model that computes the same.
    """
    classes = fields.get("num_classes") or 0
    architecture, args = _architecture(fields, image_size)
    found = {
        "architecture": architecture,
        "num_classes": classes,
        "num_features": _features(fields),
        "model_args": {**args, "num_classes": classes},
        "pretrained_cfg": {**pretrained_cfg, "num_classes": classes},
    }
    if "global_pool" in args:
        found["global_pool"] = args["global_pool"]
    if label_names and classes:
        found["label_names"] = list(label_names)
    return found


def _features(fields: Fields) -> int:
    if fields["name"] == "resnet":
        return 64 * 4 * 2 ** (len(fields["stages"]) - 1) * fields["width_factor"]
    return fields["width"]


def _architecture(
    fields: Fields, image_size: tuple[int, int]
) -> tuple[str, dict[str, Any]]:
    if fields["name"] == "resnet":
        key = tuple(fields["stages"]), fields["width_factor"]
        if key not in _BITS:
            raise UserError(
                f"timm has no ResNet with stages={key[0]}, width_factor={key[1]}: give "
                "a DST that ends in .safetensors, which has no config.json"
            )
        return _BITS[key], {}
    if fields["name"] == "mixer":
        width = fields["width"]
        key = fields["patch_size"], width, fields["depth"]
        if key not in _MIXERS:
            raise UserError(
                f"timm has no Mixer with patch_size={key[0]}, width={width}, "
                f"depth={key[2]}: give a DST that ends in .safetensors, which has no "
                "config.json"
            )
        ratios = [_ratio(fields[k], width) for k in ("tokens_mlp_dim", "mlp_dim")]
        size = list(image_size)
        return _MIXERS[key], {"img_size": size, "mlp_ratio": ratios}
    act = {"erf": "gelu", "tanh": "gelu_tanh"}[fields["gelu"]]
    return _vit(fields, image_size, act)


def _vit(
    fields: Fields, image_size: tuple[int, int], act: str
) -> tuple[str, dict[str, Any]]:
    registers, swiglu = fields.get("registers", 0), fields.get("mlp") == "swiglu"
    patch, pool = fields["patch_size"], fields["pool"]
    own_class = pool == "token" or fields.get("class_token", False)
    mlp_dim = fields["mlp_dim"] * (2 if swiglu else 1)
    args: dict[str, Any] = {
        "img_size": list(image_size),
        "patch_size": list(patch) if isinstance(patch, tuple) else patch,
        "embed_dim": fields["width"],
        "depth": fields["depth"],
        "num_heads": fields["num_heads"],
        "mlp_ratio": _ratio(mlp_dim, fields["width"]),
        "global_pool": {v: k for k, v in _POOLS.items()}[pool],
        "act_layer": "silu" if swiglu else act,
        "init_values": fields.get("layer_scale"),
    }
    architecture = "vit_base_patch16_224"
    if fields.get("distilled"):
        architecture = "deit_base_distilled_patch16_224"
        return architecture, {k: v for k, v in args.items() if v is not None}
    args |= {
        "class_token": own_class,
        "fc_norm": fields.get("final_norm") == "pooled",
        "reg_tokens": registers,
        "no_embed_class": bool(registers),
        "pos_embed": "none" if fields.get("posemb") == "none" else "learn",
    }
    if pool == "map" and (own_class or registers):
        args["pool_include_prefix"] = True
    if swiglu:  # no argument says it, but this one has it
        architecture = "vit_giant_patch14_dinov2"
    if fields.get("resnet") is not None:
        stages = tuple(fields["resnet"])
        if stages not in _HYBRIDS:
            raise UserError(
                f"timm has no hybrid with resnet={stages}: give a DST that ends in "
                ".safetensors, which has no config.json"
            )
        architecture = _HYBRIDS[stages]
    return architecture, {k: v for k, v in args.items() if v is not None}


def _ratio(hidden: int, width: int) -> float:
    """So that `int(width * ratio)` is the hidden width."""
    ratio = hidden / width
    while int(width * ratio) < hidden:
        ratio += 1e-12
    return ratio
