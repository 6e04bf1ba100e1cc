"""timm's names: ViT, DeiT, hybrids, DINOv2, SigLIP, BiT and Mixer.

The names and layouts are those of timm's `vision_transformer.py`, `resnetv2.py` and
`mlp_mixer.py`. A state dict does not say how many heads fused q, k, v have, nor which
GELU they were trained with: see `infer`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vit_jax.checkpoints.formats.inferred import (
    Fields,
    Inferred,
    count,
    heads_of,
    kernel_of,
)
from vit_jax.checkpoints.formats.layouts import (
    CONV,
    DENSE,
    DENSE_AS_CONV,
    FROM_HEADS,
    SAME,
    Entry,
    Shape,
    after,
    to_heads,
    to_heads_bias,
    to_heads_without_bias,
)
from vit_jax.errors import UserError

_STEM = "patch_embed.backbone."


# One of these every model has.
_FIRST = (
    "blocks.0.attn.qkv.weight",
    "blocks.0.mlp_tokens.fc1.weight",
    "stages.0.blocks.0.conv1.weight",
)


def recognizes(shapes: Mapping[str, Shape]) -> bool:
    """Whether these are timm's names."""
    return any(n in shapes for n in _FIRST)


def prefixes(names: Iterable[str]) -> list[str]:
    """What stands before timm's names, if they are among these: "", "backbone.".

    A number is no prefix: a layer of another model is not a network of its own. Nor is
    the ResNet of a hybrid.

    >>> prefixes(["net.blocks.0.attn.qkv.weight", "net.0.blocks.0.attn.qkv.weight"])
    ['net.']
    """
    ends = "|".join(map(re.escape, _FIRST))
    found = [re.fullmatch(rf"((?:[A-Za-z_]\w*\.)*)({ends})", name) for name in names]
    prefixes = dict.fromkeys(m[1] for m in found if m)
    return [p for p in prefixes if not p.endswith(_STEM)]


def infer(shapes: Mapping[str, Shape], known: Mapping[str, Any]) -> Inferred:
    """The fields of the model that a state dict is of.

    Heads have 64 channels, but in the published sizes that do not. GELU is exact, as
    in timm, but in the published sizes where it is not. A class token beside a
    LayerNorm after pooling is not pooled: timm has that LayerNorm where it averages.

    Args:
      shapes: of the tensors by name.
      known: fields that are said elsewhere, and win.

    Raises:
      UserError: where the number of heads cannot even be guessed.
    """
    if "blocks.0.mlp_tokens.fc1.weight" in shapes:
        return _infer_mixer(shapes, known)
    if "stages.0.blocks.0.conv1.weight" in shapes:
        return _infer_resnet(shapes, known)
    width = shapes["patch_embed.proj.weight"][0]
    depth = count(shapes, r"blocks\.(\d+)\.")
    mlp_dim = shapes["blocks.0.mlp.fc1.weight"][0]
    swiglu = mlp_dim == 2 * shapes["blocks.0.mlp.fc2.weight"][1]
    patch = kernel_of(shapes["patch_embed.proj.weight"][2:])
    has_class, has_fc_norm = "cls_token" in shapes, "fc_norm.weight" in shapes
    fields: Fields = {
        "name": "vit",
        "patch_size": patch,
        "width": width,
        "depth": depth,
        "mlp_dim": mlp_dim // 2 if swiglu else mlp_dim,
        "mlp": "swiglu" if swiglu else "gelu",
        "gelu": "erf",
        "pool": "token" if has_class and not has_fc_norm else "gap",
        "class_token": has_class,
        "posemb": "learn" if "pos_embed" in shapes else "none",
        "final_norm": "pooled" if has_fc_norm else "tokens",
        "distilled": "dist_token" in shapes,
        # Where training started is not in a file, and does not matter for weights.
        "layer_scale": 1e-5 if "blocks.0.ls1.gamma" in shapes else None,
    }
    if "attn_pool.latent" in shapes:
        fields["pool"] = "map"
    if "reg_token" in shapes:
        fields["registers"] = shapes["reg_token"][1]
    stride = 1
    if f"{_STEM}conv.weight" in shapes or f"{_STEM}stem.conv.weight" in shapes:
        stages = count(shapes, rf"{re.escape(_STEM)}stages\.(\d+)\.")
        fields["resnet"] = tuple(
            count(shapes, rf"{re.escape(_STEM)}stages\.{i}\.blocks\.(\d+)\.")
            for i in range(stages)
        )
        fields |= {"standardization": "var+1e-8", "group_norm_epsilon": 1e-5}
        stride = 4 * 2 ** max(stages - 1, 0)
    if "head.weight" in shapes:
        fields["num_classes"] = shapes["head.weight"][0]
    height, width = patch if isinstance(patch, tuple) else (patch, patch)
    patches = None
    if "pos_embed" in shapes:
        patches = _patches(shapes)
    if _is_siglip(fields) and _is_siglip2(fields, patches):
        fields["gelu"] = "tanh"
    fields |= known
    fields["class_token"] = fields["class_token"] and fields["pool"] != "token"
    if "attn_pool.latent" in shapes and fields["class_token"] | ("reg_token" in shapes):
        _refuse_unless_all_are_pooled(known)
    guess = None
    if "num_heads" not in known:
        _refuse_two_of_a_kind(fields, patches)
        fields["num_heads"], guess = heads_of(fields["width"], depth, mlp_dim)
    pixels = height * stride, width * stride
    return Inferred(fields, patches, pixels, guesses=(guess,) if guess else ())


def _is_siglip(fields: Fields) -> bool:
    """Whether no token is before the patches, and the last LayerNorm before pooling."""
    prefix = fields["class_token"] or "registers" in fields or fields["distilled"]
    return not prefix and fields["final_norm"] == "tokens"


def _is_siglip2(fields: Fields, patches: int | None) -> bool:
    """Those of timm's SigLIP models that have the tanh form of GELU."""
    tanh = ((768, 32), (1152, 16), (1536, 16))
    large_512 = (fields["width"], fields["patch_size"], patches) == (1024, 16, 1024)
    return large_512 or (fields["width"], fields["patch_size"]) in tanh


def _refuse_two_of_a_kind(fields: Fields, patches: int | None) -> None:
    """Two of timm's models differ in nothing but the number of their heads."""
    shape = tuple(fields[k] for k in ("width", "mlp_dim", "patch_size", "pool"))
    plain = fields["layer_scale"] is None and fields["posemb"] == "learn"
    if (
        _is_siglip(fields)
        and plain
        and "num_classes" in fields
        and (*shape, patches) == (768, 3072, 16, "gap", 196)
    ):
        raise UserError(
            "timm has two models of these shapes: give num_heads=12 for "
            "vit_base_patch16_siglip_gap_224, num_heads=16 for vit_base_patch16_gap_224"
        )


def _refuse_unless_all_are_pooled(known: Mapping[str, Any]) -> None:
    if "pool" not in known:
        raise UserError(
            "attention pooling beside class tokens or registers: the tensors do not "
            'say whether these are pooled too; if they are, give pool="map"'
        )


def entries(fields: Fields, shapes: Mapping[str, Shape]) -> list[Entry]:
    """What maps to what.

    Args:
      fields: of the model, as `infer` returns them.
      shapes: of the tensors; None of them when there is no file yet, to write one.
    """
    if fields["name"] == "mixer":
        return list(_mixer(fields))
    if fields["name"] == "resnet":
        return list(_resnet(fields))
    return list(_vit(fields, shapes))


def _patches(shapes: Mapping[str, Shape]) -> int:
    """How many patches the position embeddings are for."""
    positions = shapes["pos_embed"][1]
    patches = positions - _with_position(shapes)
    if "reg_token" in shapes and not _is_square(patches):
        own = shapes["reg_token"][1] + ("cls_token" in shapes)
        if _is_square(positions - own):
            raise UserError(
                "a ViT whose registers have position embeddings is not supported: of "
                f"{positions} positions {own} are not of patches"
            )
    return patches


def _with_position(shapes: Mapping[str, Shape]) -> int:
    """How many class tokens have a position embedding."""
    tokens = ("cls_token" in shapes) + ("dist_token" in shapes)
    rest = shapes["pos_embed"][1] - tokens
    # `no_embed_class`, which every timm model with both has; others say it by their
    # numbers, since an image's patches have at least a grid.
    if "reg_token" in shapes or not _is_square(rest):
        return 0 if _is_square(shapes["pos_embed"][1]) else tokens
    return tokens


def _is_square(n: int) -> bool:
    return n > 0 and round(n**0.5) ** 2 == n


def dense(theirs: str, ours: str) -> Iterator[Entry]:
    """A dense layer with a bias."""
    yield Entry(f"{theirs}.weight", (f"{ours}/kernel",), DENSE)
    yield Entry(f"{theirs}.bias", (f"{ours}/bias",), SAME)


def norm(theirs: str, ours: str) -> Iterator[Entry]:
    """A LayerNorm or GroupNorm."""
    yield Entry(f"{theirs}.weight", (f"{ours}/scale",), SAME)
    yield Entry(f"{theirs}.bias", (f"{ours}/bias",), SAME)


def conv(theirs: str, ours: str) -> Iterator[Entry]:
    """A convolution with a bias."""
    yield Entry(f"{theirs}.weight", (f"{ours}/kernel",), CONV)
    yield Entry(f"{theirs}.bias", (f"{ours}/bias",), SAME)


def _vit(fields: Fields, shapes: Mapping[str, Shape]) -> Iterator[Entry]:
    if fields.get("resnet") is not None:
        yield from _stem(fields["resnet"])
    yield from conv("patch_embed.proj", "embedding")
    yield Entry("cls_token", ("cls",), SAME)
    yield Entry("dist_token", ("dist",), SAME)
    yield Entry("reg_token", ("Transformer/registers",), SAME)
    tokens = (fields["pool"] == "token") + bool(fields.get("distilled"))
    tokens += bool(fields.get("class_token"))
    if "pos_embed" in shapes:
        without = tokens - _with_position(shapes)
    else:
        without = tokens if fields.get("registers") else 0
    yield Entry(
        "pos_embed",
        ("Transformer/posembed_input/pos_embedding",),
        after(without) if without else SAME,
    )
    # A whole model without them is one that was made so; a single layer is a defect.
    has_bias = not shapes or any(n.endswith(".attn.qkv.bias") for n in shapes)
    for i in range(fields["depth"]):
        theirs, ours = f"blocks.{i}", f"Transformer/encoderblock_{i}"
        yield from _block(theirs, ours, has_bias=has_bias)
    yield from norm("norm", "Transformer/encoder_norm")
    yield from norm("fc_norm", "fc_norm")
    yield from _attention_pool()
    yield from dense("head", "head")
    yield from dense("head_dist", "head_dist")


def _block(theirs: str, ours: str, *, has_bias: bool) -> Iterator[Entry]:
    attention = f"{ours}/MultiHeadDotProductAttention_0"
    yield from norm(f"{theirs}.norm1", f"{ours}/LayerNorm_0")
    kernels = tuple(f"{attention}/{n}/kernel" for n in ("query", "key", "value"))
    biases = tuple(f"{attention}/{n}/bias" for n in ("query", "key", "value"))
    if has_bias:
        yield Entry(f"{theirs}.attn.qkv.weight", kernels, to_heads(3))
        yield Entry(f"{theirs}.attn.qkv.bias", biases, to_heads_bias(3))
    else:
        both = to_heads_without_bias(3)
        yield Entry(f"{theirs}.attn.qkv.weight", kernels + biases, both)
    yield Entry(f"{theirs}.attn.proj.weight", (f"{attention}/out/kernel",), FROM_HEADS)
    yield Entry(f"{theirs}.attn.proj.bias", (f"{attention}/out/bias",), SAME)
    yield from norm(f"{theirs}.norm2", f"{ours}/LayerNorm_1")
    yield from dense(f"{theirs}.mlp.fc1", f"{ours}/MlpBlock_0/Dense_0")
    yield from dense(f"{theirs}.mlp.fc2", f"{ours}/MlpBlock_0/Dense_1")
    for i in range(2):
        yield Entry(
            f"{theirs}.ls{i + 1}.gamma", (f"{ours}/LayerScale_{i}/scale",), SAME
        )


def _attention_pool() -> Iterator[Entry]:
    ours = "MAPHead_0/MultiHeadDotProductAttention_0"
    yield Entry("attn_pool.latent", ("MAPHead_0/probe",), SAME)
    yield Entry("attn_pool.q.weight", (f"{ours}/query/kernel",), to_heads())
    yield Entry("attn_pool.q.bias", (f"{ours}/query/bias",), to_heads_bias())
    kernels = (f"{ours}/key/kernel", f"{ours}/value/kernel")
    yield Entry("attn_pool.kv.weight", kernels, to_heads(2))
    biases = (f"{ours}/key/bias", f"{ours}/value/bias")
    yield Entry("attn_pool.kv.bias", biases, to_heads_bias(2))
    yield Entry("attn_pool.proj.weight", (f"{ours}/out/kernel",), FROM_HEADS)
    yield Entry("attn_pool.proj.bias", (f"{ours}/out/bias",), SAME)
    yield from norm("attn_pool.norm", "MAPHead_0/LayerNorm_0")
    yield from dense("attn_pool.mlp.fc1", "MAPHead_0/MlpBlock_0/Dense_0")
    yield from dense("attn_pool.mlp.fc2", "MAPHead_0/MlpBlock_0/Dense_1")


def _stem(stages: tuple[int, ...]) -> Iterator[Entry]:
    # With no stages timm has the root alone, without the level around it.
    root = f"{_STEM}stem." if stages else _STEM
    yield Entry(f"{root}conv.weight", ("conv_root/kernel",), CONV)
    yield from norm(f"{root}norm", "gn_root")
    for i, units in enumerate(stages):
        for j in range(units):
            theirs = f"{_STEM}stages.{i}.blocks.{j}"
            ours = f"block{i + 1}/unit{j + 1}"
            yield from _unit(theirs, ours)
            yield from norm(f"{theirs}.downsample.norm", f"{ours}/gn_proj")


def _unit(theirs: str, ours: str) -> Iterator[Entry]:
    yield Entry(f"{theirs}.downsample.conv.weight", (f"{ours}/conv_proj/kernel",), CONV)
    for i in (1, 2, 3):
        yield Entry(f"{theirs}.conv{i}.weight", (f"{ours}/conv{i}/kernel",), CONV)
        yield from norm(f"{theirs}.norm{i}", f"{ours}/gn{i}")


def _infer_resnet(shapes: Mapping[str, Shape], known: Mapping[str, Any]) -> Inferred:
    stages = count(shapes, r"stages\.(\d+)\.")
    fields: Fields = {
        "name": "resnet",
        "stages": tuple(
            count(shapes, rf"stages\.{i}\.blocks\.(\d+)\.") for i in range(stages)
        ),
        "width_factor": shapes["stem.conv.weight"][0] // 64,
        "standardization": "var+1e-8",
    }
    if "stem.norm.weight" in shapes:
        raise UserError(
            "this ResNet has its activations after its convolutions: of timm's "
            "resnetv2, those with `bit` in their names can be read"
        )
    if "head.fc.weight" in shapes:
        fields["num_classes"] = shapes["head.fc.weight"][0]
    return Inferred({**fields, **known}, None, (1, 1))


def _resnet(fields: Fields) -> Iterator[Entry]:
    yield Entry("stem.conv.weight", ("conv_root/kernel",), CONV)
    for i, units in enumerate(fields["stages"]):
        for j in range(units):
            yield from _unit(f"stages.{i}.blocks.{j}", f"block{i + 1}/unit{j + 1}")
    yield from norm("norm", "norm-pre-head")
    yield Entry("head.fc.weight", ("head/kernel",), DENSE_AS_CONV)
    yield Entry("head.fc.bias", ("head/bias",), SAME)


def _infer_mixer(shapes: Mapping[str, Shape], known: Mapping[str, Any]) -> Inferred:
    patch = kernel_of(shapes["stem.proj.weight"][2:])
    assert isinstance(patch, int)
    tokens_mlp_dim, tokens = shapes["blocks.0.mlp_tokens.fc1.weight"]
    fields: Fields = {
        "name": "mixer",
        "patch_size": patch,
        "width": shapes["stem.proj.weight"][0],
        "depth": count(shapes, r"blocks\.(\d+)\."),
        "tokens_mlp_dim": tokens_mlp_dim,
        "mlp_dim": shapes["blocks.0.mlp_channels.fc1.weight"][0],
        "gelu": "erf",
    }
    if "head.weight" in shapes:
        fields["num_classes"] = shapes["head.weight"][0]
    if shapes["blocks.0.mlp_tokens.fc2.weight"][1] != tokens_mlp_dim:
        raise UserError("gMixer is not supported: SwiGLU between tokens")
    return Inferred({**fields, **known}, tokens, (patch, patch))


def _mixer(fields: Fields) -> Iterator[Entry]:
    yield from conv("stem.proj", "stem")
    for i in range(fields["depth"]):
        theirs, ours = f"blocks.{i}", f"MixerBlock_{i}"
        for j, mixing in enumerate(("token", "channel")):
            yield from norm(f"{theirs}.norm{j + 1}", f"{ours}/LayerNorm_{j}")
            for k in range(2):
                yield from dense(
                    f"{theirs}.mlp_{mixing}s.fc{k + 1}",
                    f"{ours}/{mixing}_mixing/Dense_{k}",
                )
    yield from norm("norm", "pre_head_layer_norm")
    yield from dense("head", "head")
