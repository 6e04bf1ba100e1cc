"""Hugging Face directories: config.json, weights, and how images are prepared.

The names are those that `transformers` writes to disk for `vit`, `deit`, `dinov2`,
`dinov2_with_registers`, `siglip_vision_model` and the vision half of `siglip`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vit_jax.checkpoints.formats.inferred import Fields, Inferred
from vit_jax.checkpoints.formats.layouts import (
    FROM_HEADS,
    SAME,
    Entry,
    Layout,
    Shape,
    to_heads,
    to_heads_bias,
)
from vit_jax.checkpoints.formats.timm import conv, dense, norm
from vit_jax.errors import UserError, did_you_mean

# The model's name, which its tensors begin with in a classifier's file.
PREFIXES = {
    "vit": "vit.",
    "deit": "deit.",
    "dinov2": "dinov2.",
    "dinov2_with_registers": "dinov2_with_registers.",
    "siglip_vision_model": "vision_model.",
    "siglip": "vision_model.",
}
# What a file may hold beside what we have: dinov2's mask token is for pre-training,
# `pooler` is a layer after the class token that no classifier uses.
_IGNORED = (
    r"(.*\.)?embeddings\.mask_token",
    r"(.*\.)?pooler\.dense\.(weight|bias)",
    r"(.*\.)?embeddings\.position_ids",
    r"(text_model\..*|logit_scale|logit_bias)",
)
# SigLIP's classifier is on the mean of the patches, whatever else the file holds.
_SIGLIP_HEAD = r"vision_model\.head\..*"
_GELU = {"gelu": "erf", "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh"}

# Position embeddings that they keep as a table [n, d].
_TABLE = Layout(lambda s: s[0][1:], lambda a, _: [a[None]], lambda a: a[0][0])


def infer(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> Inferred:
    """The fields of the model that a config.json and its tensors are of.

    Raises:
      UserError: if it is no model of ours.
    """
    kind = config["model_type"]
    if kind == "siglip":  # image and text; ours is the image's
        config = _SIGLIP_DEFAULTS | config["vision_config"]
    if kind not in PREFIXES:
        raise UserError(
            f'config.json has model_type "{kind}": {did_you_mean(str(kind), PREFIXES)}'
        )
    act = config["hidden_act"]
    if act not in _GELU:
        raise UserError(
            f'config.json has hidden_act "{act}"; expected {", ".join(_GELU)}'
        )
    prefix = prefix_of(shapes, kind)
    width, dino = config["hidden_size"], kind.startswith("dinov2")
    swiglu = dino and config["use_swiglu_ffn"]
    fields: Fields = {
        "name": "vit",
        "patch_size": config["patch_size"],
        "width": width,
        "depth": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "mlp": "swiglu" if swiglu else "gelu",
        "gelu": _GELU[act],
        "layer_norm_epsilon": config["layer_norm_eps"],
        "pool": _siglip_pool(config, shapes) if "siglip" in kind else "token",
        "distilled": kind == "deit",
        "layer_scale": config["layerscale_value"] if dino else None,
    }
    if dino:
        name = "weights_out.weight" if swiglu else "fc2.weight"
        fields["mlp_dim"] = shapes[f"{prefix}encoder.layer.0.mlp.{name}"][1]
    else:
        fields["mlp_dim"] = config["intermediate_size"]
    if kind == "dinov2_with_registers":
        fields["registers"] = config["num_register_tokens"]
    if kind == "deit" and "classifier.weight" in shapes:
        raise UserError(
            "a deit classifier whose distillation token has no head: only "
            "DeiTForImageClassificationWithTeacher can be read"
        )
    for name in ("classifier.weight", "cls_classifier.weight"):
        if name in shapes and not _on_two(shapes[name], width):
            fields["num_classes"] = shapes[name][0]
    patch = config["patch_size"]
    grid = tuple(size // patch for size in _pair(config["image_size"]))
    return Inferred(fields, grid[0] * grid[1], (patch, patch), grid)


def entries(fields: Fields, kind: str, prefix: str) -> list[Entry]:
    """What maps to what.

    Args:
      fields: of the model.
      kind: `model_type` of config.json.
      prefix: that the backbone's tensors begin with.
    """
    names = _siglip if "siglip" in kind else _vit
    return list(names(fields, kind, prefix))


def ignored(shapes: Mapping[str, Shape]) -> tuple[str, ...]:
    """Patterns of what a file may hold that no model of ours has."""
    classifies = "vision_model.head.probe" in shapes and "classifier.weight" in shapes
    return (*_IGNORED, _SIGLIP_HEAD) if classifies else _IGNORED


def _siglip_pool(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> str:
    has_head = config.get("vision_use_head", True)
    return "gap" if "classifier.weight" in shapes or not has_head else "map"


def prefix_of(shapes: Mapping[str, Shape], kind: str) -> str:
    """What the backbone's tensors begin with: its name, or nothing."""
    prefix = PREFIXES[kind]
    return prefix if any(name.startswith(prefix) for name in shapes) else ""


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
ARCHITECTURES = tuple(sorted({name for pair in _CLASSES.values() for name in pair}))
# What `transformers` leaves out of a vision_config that says nothing else.
_SIGLIP_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}


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


def _on_two(shape: Shape, width: int) -> bool:
    """Whether a head sees two vectors: dinov2's sees the patches' mean too."""
    return shape[1] == 2 * width


def _pair(size: int | list[int]) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


def _vit(fields: Fields, kind: str, prefix: str) -> Iterator[Entry]:
    embeddings = f"{prefix}embeddings."
    yield from conv(f"{embeddings}patch_embeddings.projection", "embedding")
    yield Entry(f"{embeddings}cls_token", ("cls",), SAME)
    yield Entry(f"{embeddings}distillation_token", ("dist",), SAME)
    yield Entry(f"{embeddings}register_tokens", ("Transformer/registers",), SAME)
    posemb = "Transformer/posembed_input/pos_embedding"
    yield Entry(f"{embeddings}position_embeddings", (posemb,), SAME)
    dino = kind.startswith("dinov2")
    for i in range(fields["depth"]):
        theirs, ours = f"{prefix}encoder.layer.{i}", f"Transformer/encoderblock_{i}"
        yield from norm(
            f"{theirs}.norm1" if dino else f"{theirs}.layernorm_before",
            f"{ours}/LayerNorm_0",
        )
        attention = f"{ours}/MultiHeadDotProductAttention_0"
        for name in ("query", "key", "value"):
            yield from _to_heads(
                f"{theirs}.attention.attention.{name}", f"{attention}/{name}"
            )
        yield from _from_heads(f"{theirs}.attention.output.dense", f"{attention}/out")
        yield from norm(
            f"{theirs}.norm2" if dino else f"{theirs}.layernorm_after",
            f"{ours}/LayerNorm_1",
        )
        layers = ("intermediate.dense", "output.dense")
        if dino:
            layers = ("mlp.fc1", "mlp.fc2")
        if fields.get("mlp", "gelu") == "swiglu":
            layers = ("mlp.weights_in", "mlp.weights_out")
        for j, layer in enumerate(layers):
            yield from dense(f"{theirs}.{layer}", f"{ours}/MlpBlock_0/Dense_{j}")
            scale = (f"{ours}/LayerScale_{j}/scale",)
            yield Entry(f"{theirs}.layer_scale{j + 1}.lambda1", scale, SAME)
    yield from norm(f"{prefix}layernorm", "Transformer/encoder_norm")
    yield from dense("cls_classifier" if kind == "deit" else "classifier", "head")
    yield from dense("distillation_classifier", "head_dist")


def _to_heads(theirs: str, ours: str) -> Iterator[Entry]:
    yield Entry(f"{theirs}.weight", (f"{ours}/kernel",), to_heads())
    yield Entry(f"{theirs}.bias", (f"{ours}/bias",), to_heads_bias())


def _from_heads(theirs: str, ours: str) -> Iterator[Entry]:
    yield Entry(f"{theirs}.weight", (f"{ours}/kernel",), FROM_HEADS)
    yield Entry(f"{theirs}.bias", (f"{ours}/bias",), SAME)


def _siglip(fields: Fields, _: str, prefix: str) -> Iterator[Entry]:
    embeddings = f"{prefix}embeddings."
    yield from conv(f"{embeddings}patch_embedding", "embedding")
    posemb = "Transformer/posembed_input/pos_embedding"
    yield Entry(f"{embeddings}position_embedding.weight", (posemb,), _TABLE)
    for i in range(fields["depth"]):
        theirs, ours = f"{prefix}encoder.layers.{i}", f"Transformer/encoderblock_{i}"
        yield from norm(f"{theirs}.layer_norm1", f"{ours}/LayerNorm_0")
        attention = f"{ours}/MultiHeadDotProductAttention_0"
        for short, name in (("q", "query"), ("k", "key"), ("v", "value")):
            yield from _to_heads(
                f"{theirs}.self_attn.{short}_proj", f"{attention}/{name}"
            )
        yield from _from_heads(f"{theirs}.self_attn.out_proj", f"{attention}/out")
        yield from norm(f"{theirs}.layer_norm2", f"{ours}/LayerNorm_1")
        for j in range(2):
            yield from dense(f"{theirs}.mlp.fc{j + 1}", f"{ours}/MlpBlock_0/Dense_{j}")
    yield from norm(f"{prefix}post_layernorm", "Transformer/encoder_norm")
    head, ours = f"{prefix}head", "MAPHead_0/MultiHeadDotProductAttention_0"
    yield Entry(f"{head}.probe", ("MAPHead_0/probe",), SAME)
    parts = ("query", "key", "value")
    kernels = tuple(f"{ours}/{name}/kernel" for name in parts)
    yield Entry(f"{head}.attention.in_proj_weight", kernels, to_heads(3))
    biases = tuple(f"{ours}/{name}/bias" for name in parts)
    yield Entry(f"{head}.attention.in_proj_bias", biases, to_heads_bias(3))
    yield from _from_heads(f"{head}.attention.out_proj", f"{ours}/out")
    yield from norm(f"{head}.layernorm", "MAPHead_0/LayerNorm_0")
    for j in range(2):
        yield from dense(f"{head}.mlp.fc{j + 1}", f"MAPHead_0/MlpBlock_0/Dense_{j}")
    yield from dense("classifier", "head")
