"""Families of models that cannot be read here, by what gives them away.

A file of another family can have all the names and shapes of a Vision Transformer and
compute something else: these are refused by name before anything is inferred.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from vit_jax.checkpoints.formats.layouts import Shape
from vit_jax.errors import UserError


class Family(NamedTuple):
    """A family, and its tensors.

    Attributes:
      name: as its authors call it.
      reason: what it has, and no model of ours.
      has: a pattern that the start of a tensor's name matches.
    """

    name: str
    reason: str
    has: str


_BLOCK = r"blocks\.\d+\."
_STAGE = r"stages\.\d+\.blocks\.\d+\."
# The first that matches counts: those that share a part with others come first.
_FAMILIES = (
    Family("CaiT", "layers of the class token alone", r"blocks_token_only\."),
    Family("XCiT", "attention between channels", rf"{_BLOCK}local_mp\."),
    Family(
        "BEiT", "relative position bias", rf"{_BLOCK}attn\.relative_position_bias_table"
    ),
    Family("BEiT", "relative position bias", r"rel_pos_bias\."),
    Family("SAM", "relative positions and windows", rf"{_BLOCK}attn\.rel_pos_h"),
    Family(
        "a ViT with relative positions",
        "relative position bias",
        rf"({_BLOCK}attn\.|shared_)rel_pos\.",
    ),
    Family("TNT", "transformers within patches", rf"{_BLOCK}attn_in\."),
    Family(
        "AIMv2", "RMSNorm and SwiGLU without biases", rf"{_BLOCK}mlp\.fc1_g\.weight"
    ),
    Family(
        "EVA, DINOv3, or another ViT with rotary position embeddings",
        "rotary position embeddings, which no tensor tells",
        rf"{_BLOCK}(gamma_[12]$|attn\.([qv]_bias|[kq]_proj\.)|norm1\.reg)|rope\.",
    ),
    Family("BEiT-3", "LayerNorm within attention", rf"{_BLOCK}attn\.norm\."),
    Family(
        "a ViT with differential attention",
        "differences of attention",
        rf"{_BLOCK}(attn\.)?lambda_[kq]1",
    ),
    Family(
        "a parallel ViT",
        "attention and MLP beside each other",
        rf"{_BLOCK}((attns|ffns)\.|in_proj\.)",
    ),
    Family(
        "a ViT with LayerNorm of queries and keys",
        "LayerNorm with biases on queries and keys",
        rf"{_BLOCK}attn\.[kq]_norm\.",
    ),
    Family("ViTamin", "stages of convolutions", rf"{_BLOCK}mlp\.w0\."),
    Family("NaFlexViT", "images of any size in one batch", r"embeds\."),
    Family(
        "CLIP or the Perception Encoder",
        "LayerNorm before the first layer",
        r"norm_pre\.",
    ),
    Family("OpenAI's CLIP", "another order of layers", r"(visual\.)?class_embedding"),
    Family(
        "a hybrid with BatchNorm", "BatchNorm", r"patch_embed\.backbone\..*running_mean"
    ),
    Family("ConViT", "gated positional attention", rf"{_BLOCK}attn\.gating_param"),
    Family("CrossViT", "two branches", rf"{_BLOCK}(fusion|projs)\."),
    Family("VOLO", "outlook attention", r"network\.\d+\.\d+\."),
    Family("CoaT", "convolutional attention", r"serial_blocks\d+\."),
    Family("PiT", "pooling between stages", r"transformers\.\d+\.blocks\."),
    Family("NesT", "nested transformers", r"levels\.\d+\.transformer_encoder\."),
    Family(
        "DaViT", "attention between channels", rf"{_STAGE}(\d+\.cpe1|channel_block)\."
    ),
    Family("LeViT", "BatchNorm and stages", rf"{_STAGE}attn\.qkv\.(linear|bn)\."),
    Family("LeViT", "BatchNorm and stages", rf"{_STAGE}attn\.(qkv|q)\.c\."),
    Family("MViT", "attention over pooled tokens", rf"{_STAGE}attn\.norm_k\."),
    Family(
        "Swin Transformer",
        "attention within windows",
        r"(layers|stages)\.\d+\.blocks\.\d+\.attn\."
        r"(relative_position_bias_table|logit_scale)",
    ),
    Family("PVT", "spatial reduction", rf"{_STAGE}attn\.kv\."),
    Family("Twins", "two kinds of attention", r"blocks\.\d+\.\d+\.attn\."),
    Family("Visformer", "convolutions in place of attention", r"patch_embed1\."),
    Family("Hiera", "pooling between stages", rf"{_BLOCK}proj\.|pos_embed_win"),
    Family("gMLP", "gates between tokens", rf"{_BLOCK}mlp_channels\.gate\."),
    Family(
        "ResMLP", "affine layers in place of LayerNorm", rf"{_BLOCK}linear_tokens\."
    ),
    Family(
        "Gemma's image encoder", "RMSNorm and gated MLPs", rf"{_BLOCK}.*_proj\.linear"
    ),
    Family("Qwen's image encoder", "rotary position embeddings", r"merger\."),
    Family("DeepSeek's image encoder", "RMSNorm", r"aligner\."),
    Family(
        "a ResNet v2 with another normalisation",
        "BatchNorm, or EvoNorm, or FilterResponseNorm",
        r"stages\.\d+\.blocks\.\d+\.norm1\.(running_mean|tau|v)$",
    ),
    Family(
        "a ResNet v2 with several convolutions at its start",
        "a deep stem; those with `bit` in timm's names can be read",
        r"stem\.conv1\.",
    ),
    Family(
        "torchvision's VisionTransformer",
        "other names; timm's vit_* have the same layers",
        r"encoder\.layers\.encoder_layer_0\.",
    ),
)
# What is plain by its names, and lacks what every model of ours has.
_LACKS = (
    ("blocks.0.norm1.bias", "a ViT with RMSNorm, or with LayerNorm without biases"),
    ("blocks.0.mlp.fc1.bias", "a ViT without biases in its MLP"),
    ("blocks.0.attn.proj.bias", "a ViT without biases in its projections"),
)


def refuse(shapes: Mapping[str, Shape]) -> None:
    """Refuses the tensors of a family that cannot be read here, by its name.

    Args:
      shapes: by name, of timm's kind of names.

    Raises:
      UserError: that names the family and what it has.

    >>> refuse({"blocks_token_only.0.norm1.weight": (8,)})
    Traceback (most recent call last):
      ...
    vit_jax.errors.UserError: CaiT is not supported: layers of the class token alone
    """
    for family in _FAMILIES:
        pattern = re.compile(rf"([a-z]\w*\.)*?({family.has})")
        if any(map(pattern.match, shapes)):
            raise UserError(f"{family.name} is not supported: {family.reason}")
    if "blocks.0.attn.qkv.weight" not in shapes:
        return
    for name, family_name in _LACKS:
        if name not in shapes:
            raise UserError(f"{family_name}, is not supported: it lacks {name}")
    tokens = ("cls_token", "reg_token", "norm.weight", "blocks.0.attn.qkv.bias")
    if not any(name in shapes for name in tokens):
        raise UserError(
            "a ViT of timm's kind `rpn`, or one that has the same tensors, is not "
            "supported: it may have its LayerNorms after attention"
        )
    if not any(f"{n}.weight" in shapes for n in ("norm", "fc_norm")):
        raise UserError(
            "a ViT without a LayerNorm after its last layer, such as RADIO and "
            "InternViT, is not supported"
        )
