"""Hugging Face directories: config.json, weights, and how images are prepared.

The names are those that `transformers` writes to disk for `vit`, `vit_msn`, `deit`,
`ijepa`, `dinov2`, `dinov2_with_registers`, `siglip_vision_model` and the vision half of
`siglip`.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from vit_jax.checkpoints.formats import huggingface_config, model_types
from vit_jax.checkpoints.formats.inferred import Fields, Inferred
from vit_jax.checkpoints.formats.layouts import (
    FROM_HEADS,
    SAME,
    Entry,
    Layout,
    Shape,
    to_heads,
    to_heads_bias,
    to_heads_without_bias,
)
from vit_jax.checkpoints.formats.timm import conv, dense, norm
from vit_jax.errors import UserError

# The model's name, which its tensors begin with in a classifier's file.
PREFIXES = {
    "vit": "vit.",
    "vit_msn": "vit.",
    "deit": "deit.",
    "ijepa": "ijepa.",
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
_QKV = re.compile(r"attention\.attention\.(query|key|value)\.weight$")
_GELU = {"gelu": "erf", "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh"}

# Position embeddings that they keep as a table [n, d].
_TABLE = Layout(lambda s: s[0][1:], lambda a, _: [a[None]], lambda a: a[0][0])


def infer(
    config: Mapping[str, Any], shapes: Mapping[str, Shape], known: Mapping[str, Any]
) -> Inferred:
    """The fields of the model that a config.json and its tensors are of.

    Args:
      config: what is not in it is as in transformers.
      shapes: of the tensors by name.
      known: fields that are said elsewhere.

    Raises:
      UserError: if it is no model of ours.
    """
    kind = str(config["model_type"])
    if kind not in PREFIXES:
        model_types.refuse(kind, tuple(PREFIXES))
    if kind == "siglip":  # image and text; ours is the image's
        config = config["vision_config"] if "vision_config" in config else {}
    if not isinstance(config, Mapping):
        raise UserError("config.json: vision_config is no object")
    config = huggingface_config.check_values(kind, config)
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
        "pool": _pool(kind, config, shapes),
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
    if not leaves_head_out(known):
        _refuse_other_heads(kind, shapes, width)
        for name in ("classifier.weight", "cls_classifier.weight"):
            if name in shapes:
                fields["num_classes"] = shapes[name][0]
    patch = config["patch_size"]
    if not isinstance(patch, int):
        height, width = patch
        if height != width:
            raise UserError(f"config.json has patch_size {patch}, not one number")
        patch = fields["patch_size"] = height
    grid = tuple(size // patch for size in _pair(config["image_size"]))
    return Inferred(fields, grid[0] * grid[1], (patch, patch), grid)


def leaves_head_out(known: Mapping[str, Any]) -> bool:
    """Whether the user asks for no head, with num_classes=0."""
    return "num_classes" in known and not known["num_classes"]


def _refuse_other_heads(kind: str, shapes: Mapping[str, Shape], width: int) -> None:
    """Refuses classifiers that see something else than ours."""
    out = "num_classes=0 leaves it out"
    if kind == "deit" and "classifier.weight" in shapes:
        raise UserError(
            "a deit classifier whose distillation token has no head is not supported, "
            f"only DeiTForImageClassificationWithTeacher: {out}"
        )
    if any(name.startswith("decoder.") for name in shapes):
        raise UserError(f"a decoder for masked images ({kind}) is not supported: {out}")
    if "classifier.weight" in shapes and shapes["classifier.weight"][1] != width:
        raise UserError(
            f"the classifier of {kind} is not supported: it sees the mean of "
            f"the patches beside the class token; {out}"
        )


def entries(
    fields: Fields, kind: str, prefix: str, shapes: Mapping[str, Shape]
) -> list[Entry]:
    """What maps to what.

    Args:
      fields: of the model.
      kind: `model_type` of config.json.
      prefix: that the backbone's tensors begin with.
      shapes: of the tensors; None of them when there is no file yet, to write one.
    """
    names = _siglip if "siglip" in kind else _vit
    found = list(names(fields, kind, prefix))
    if shapes and prefix:  # transformers itself writes vit_msn's layers without it
        found += names(fields, kind, "")
    # A whole model without them is one that was made so (`qkv_bias`).
    if not shapes or any(name.endswith("query.bias") for name in shapes):
        return found
    return [_with_zero_bias(e) if _QKV.search(e.theirs) else e for e in found]


def _with_zero_bias(entry: Entry) -> Entry:
    (kernel,) = entry.ours
    bias = kernel.replace("/kernel", "/bias")
    return Entry(entry.theirs, (kernel, bias), to_heads_without_bias(1))


def ignored(shapes: Mapping[str, Shape], known: Mapping[str, Any]) -> tuple[str, ...]:
    """Patterns of what a file may hold that no model of ours has."""
    found = _IGNORED
    if "vision_model.head.probe" in shapes and "classifier.weight" in shapes:
        found += (_SIGLIP_HEAD,)
    if leaves_head_out(known):
        found += (r"(cls_|distillation_)?classifier\.(weight|bias)", r"decoder\..*")
    return found


def _pool(kind: str, config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> str:
    if "siglip" not in kind:
        return "gap" if kind == "ijepa" else "token"
    has_head = config["vision_use_head"]
    return "gap" if "classifier.weight" in shapes or not has_head else "map"


def prefix_of(shapes: Mapping[str, Shape], kind: str) -> str:
    """What the backbone's tensors begin with: its name, or nothing."""
    prefix = PREFIXES[kind]
    return prefix if any(name.startswith(prefix) for name in shapes) else ""


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
