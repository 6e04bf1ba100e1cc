"""Names of JAX checkpoints: the paper's `.npz` files, AugReg, Mixer, BiT, big_vision.

Paths are those of our own parameters, but for what `Names` renames. Two numberings of
a layer's parts are about: the published files count all modules of a layer together
(`LayerNorm_0`, `MultiHeadDotProductAttention_1`, `LayerNorm_2`, `MlpBlock_3`), Flax
Linen counts each kind (`LayerNorm_1`, `MlpBlock_0`), as we do.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

from vit_jax.checkpoints.formats.inferred import Fields, Inferred, count, kernel_of
from vit_jax.checkpoints.formats.layouts import (
    DENSE_AS_FLAX_CONV,
    LAST_OF_FOUR,
    SAME,
    STACKED,
    Entry,
    Layout,
    Shape,
)
from vit_jax.errors import UserError

Style = Literal["published", "linen", "big_vision"]

# Within a layer: our part, and the published one.
_OLDER = {
    "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
    "LayerNorm_1": "LayerNorm_2",
    "MlpBlock_0": "MlpBlock_3",
}
_POSEMB = "Transformer/posembed_input/pos_embedding"


class Names:
    """How one file names our parameters.

    Attributes:
      prefix: before every name, such as "params/" or "params/img/".
      style: "published" and "linen" differ in the numbering; "big_vision" is "linen"
        with the position embeddings at the top.
      bit: BiT's own files, made with TensorFlow.
      stacked: the layers of a scan are one `encoderblock`, not many.
    """

    def __init__(
        self,
        *,
        style: Style = "published",
        prefix: str = "",
        bit: bool = False,
        stacked: bool = False,
    ) -> None:
        self.style, self.prefix, self.bit, self.stacked = style, prefix, bit, stacked

    def __call__(self, path: str) -> str:
        """The name of one of our parameters, such as "head/kernel"."""
        if self.bit:
            return _bit(path)
        if self.stacked:
            path = re.sub(r"/encoderblock_\d+/", "/encoderblock/", path)
        if self.style == "big_vision" and path == _POSEMB:
            path = "pos_embedding"
        if self.style == "published":
            path = _rename_parts(path, _OLDER)
        return self.prefix + path


def find_names(shapes: Mapping[str, Shape]) -> Names | None:
    """How a file names its arrays, or None if it is not one of these formats."""
    if "resnet/root_block/standardized_conv2d/kernel" in shapes:
        return Names(bit=True)
    prefix = find_prefix(shapes)
    if prefix is None:
        return None
    stacked = any(n.startswith(f"{prefix}Transformer/encoderblock/") for n in shapes)
    style: Style = "linen"
    if any(
        re.search("encoderblock.*MultiHeadDotProductAttention_1/", n) for n in shapes
    ):
        style = "published"
    elif f"{prefix}pos_embedding" in shapes:
        style = "big_vision"
    return Names(style=style, prefix=prefix, stacked=stacked)


def find_prefix(shapes: Mapping[str, Shape]) -> str | None:
    """What stands before every name: most often nothing or "params/"."""
    for name in ("embedding/kernel", "stem/kernel", "conv_root/kernel"):
        found = [n.removesuffix(name) for n in shapes if n.endswith(name)]
        # Of an image-and-text model the image's tower is called "img".
        found = [p for p in found if not p or p.endswith("/")]
        for prefix in sorted(found, key=lambda p: (not p.endswith("img/"), len(p))):
            return prefix
    return None


def infer(shapes: Mapping[str, Shape], known: Mapping[str, Any]) -> Inferred:
    """The fields of the model that arrays by our own paths are of.

    GELU is the tanh approximation, as in all JAX code that wrote such files.

    Args:
      shapes: by our paths, looped layers.
      known: fields that are said elsewhere, and win.
    """
    if "MixerBlock_0/token_mixing/Dense_0/kernel" in shapes:
        return _infer_mixer(shapes, known)
    if "norm-pre-head/scale" in shapes:
        return _infer_resnet(shapes, known)
    block = "Transformer/encoderblock_0"
    attention = f"{block}/MultiHeadDotProductAttention_0"
    if f"{attention}/query/kernel" not in shapes:
        raise UserError(
            f"no array is called {attention}/query/kernel, or the like: this is no "
            "Vision Transformer, Mixer or BiT"
        )
    width, heads, _ = shapes[f"{attention}/query/kernel"]
    mlp_dim = shapes[f"{block}/MlpBlock_0/Dense_1/kernel"][0]
    patch = kernel_of(shapes["embedding/kernel"][:2])
    fields: Fields = {
        "name": "vit",
        "patch_size": patch,
        "width": width,
        "depth": count(shapes, r"Transformer/encoderblock_(\d+)/"),
        "mlp_dim": mlp_dim,
        "num_heads": heads,
        "gelu": "tanh",
        "pool": "token" if "cls" in shapes else "gap",
        "posemb": "learn" if _POSEMB in shapes else "sincos2d",
        "qk_norm": f"{attention}/query_ln/scale" in shapes,
    }
    if shapes[f"{block}/MlpBlock_0/Dense_0/kernel"][1] == 2 * mlp_dim:
        fields["mlp"] = "swiglu"
    if f"{block}/LayerScale_0/scale" in shapes:
        fields["layer_scale"] = 1e-5
    if "MAPHead_0/probe" in shapes:
        fields["pool"] = "map"
    fields |= known
    fields["class_token"] = "cls" in shapes and fields["pool"] != "token"
    if "Transformer/registers" in shapes:
        fields["registers"] = shapes["Transformer/registers"][1]
    if "dist" in shapes:
        fields["distilled"] = True
    if "fc_norm/scale" in shapes:
        fields["final_norm"] = "pooled"
    if "pre_logits/kernel" in shapes:
        fields["representation_size"] = shapes["pre_logits/kernel"][1]
    if "head/kernel" in shapes:
        fields["num_classes"] = shapes["head/kernel"][-1]
    stride = 1
    if "conv_root/kernel" in shapes:
        stages = count(shapes, r"block(\d+)/", start=1)
        fields["resnet"] = tuple(
            count(shapes, rf"block{i + 1}/unit(\d+)/", start=1) for i in range(stages)
        )
        stride = 4 * 2 ** max(stages - 1, 0)
    height, width = patch if isinstance(patch, tuple) else (patch, patch)
    patches = None
    if _POSEMB in shapes:
        tokens = ("cls" in shapes) + ("dist" in shapes)
        patches = shapes[_POSEMB][1] - tokens
    return Inferred(fields, patches, (height * stride, width * stride))


def _infer_mixer(shapes: Mapping[str, Shape], known: Mapping[str, Any]) -> Inferred:
    patch = kernel_of(shapes["stem/kernel"][:2])
    assert isinstance(patch, int)
    block = "MixerBlock_0"
    tokens, tokens_mlp_dim = shapes[f"{block}/token_mixing/Dense_0/kernel"]
    fields: Fields = {
        "name": "mixer",
        "patch_size": patch,
        "width": shapes["stem/kernel"][-1],
        "depth": count(shapes, r"MixerBlock_(\d+)/"),
        "tokens_mlp_dim": tokens_mlp_dim,
        "mlp_dim": shapes[f"{block}/channel_mixing/Dense_0/kernel"][1],
        "gelu": "tanh",
    }
    if "head/kernel" in shapes:
        fields["num_classes"] = shapes["head/kernel"][-1]
    return Inferred({**fields, **known}, tokens, (patch, patch))


def _infer_resnet(shapes: Mapping[str, Shape], known: Mapping[str, Any]) -> Inferred:
    stages = count(shapes, r"block(\d+)/", start=1)
    fields: Fields = {
        "name": "resnet",
        "stages": tuple(
            count(shapes, rf"block{i + 1}/unit(\d+)/", start=1) for i in range(stages)
        ),
        "width_factor": shapes["conv_root/kernel"][-1] // 64,
    }
    if "head/kernel" in shapes:
        fields["num_classes"] = shapes["head/kernel"][-1]
    return Inferred({**fields, **known}, None, (1, 1))


def ours_of(names: Names, theirs: str) -> str | None:
    """Our path of an array, or None if it is beside the model."""
    if names.bit:
        return _bit_inverse(theirs)
    if not theirs.startswith(names.prefix):
        return None
    path = theirs.removeprefix(names.prefix)
    if names.style == "published":
        path = _rename_parts(path, {older: ours for ours, older in _OLDER.items()})
    return _POSEMB if path == "pos_embedding" else path


def _rename_parts(path: str, renamed: Mapping[str, str]) -> str:
    """A path with the part of its layer renamed; others come back as they are."""
    match = re.match(r"(.*encoderblock(?:_\d+)?)/([^/]+)(/.*)", path)
    if match is None or match[2] not in renamed:
        return path
    return f"{match[1]}/{renamed[match[2]]}{match[3]}"


def ours_shapes(names: Names, theirs: Mapping[str, Shape]) -> dict[str, Shape]:
    """The arrays of a file by our paths; of stacked layers each by itself."""
    ours: dict[str, Shape] = {}
    for name, shape in theirs.items():
        if (path := ours_of(names, name)) is None:
            continue
        if not names.stacked or "/encoderblock/" not in path:
            ours[path] = shape
            continue
        for i in range(shape[0] if shape else 0):
            ours[path.replace("/encoderblock/", f"/encoderblock_{i}/")] = shape[1:]
    return ours


def entries(
    names: Names, ours: Mapping[str, Shape], shapes: Mapping[str, Shape]
) -> list[Entry]:
    """What maps to what.

    Args:
      names: of the file.
      ours: our parameters' shapes, by path.
      shapes: of the file's arrays, which tell how GroupNorm's are laid out; published
        files have four axes there.
    """

    def layout(path: str) -> Layout:
        if names.bit and path == "head/kernel":
            return DENSE_AS_FLAX_CONV
        four = len(shapes.get(names(path), ())) == 4
        if re.search(r"(^|/)gn[^/]*/(scale|bias)$", path) and four:
            return LAST_OF_FOUR
        return SAME

    paths: dict[str, list[str]] = {}
    for path in ours:
        paths.setdefault(names(path), []).append(path)
    return [
        Entry(
            name,
            tuple(of_name),
            STACKED
            if names.stacked and "/encoderblock/" in name
            else layout(of_name[0]),
        )
        for name, of_name in paths.items()
    ]


# BiT's parts of a unit: ours and theirs.
_BIT_PARTS = {
    "gn1": "a/group_norm",
    "conv1": "a/standardized_conv2d",
    "gn2": "b/group_norm",
    "conv2": "b/standardized_conv2d",
    "gn3": "c/group_norm",
    "conv3": "c/standardized_conv2d",
    "conv_proj": "a/proj/standardized_conv2d",
}
_BIT_LEAVES = {"kernel": "kernel", "scale": "gamma", "bias": "beta"}
_BIT_TOP = {
    "conv_root/kernel": "resnet/root_block/standardized_conv2d/kernel",
    "norm-pre-head/scale": "resnet/group_norm/gamma",
    "norm-pre-head/bias": "resnet/group_norm/beta",
    "head/kernel": "resnet/head/conv2d/kernel",
    "head/bias": "resnet/head/conv2d/bias",
}


def _bit(path: str) -> str:
    if path in _BIT_TOP:
        return _BIT_TOP[path]
    block, unit, part, leaf = path.split("/")
    number = int(unit.removeprefix("unit"))
    return f"resnet/{block}/unit{number:02d}/{_BIT_PARTS[part]}/{_BIT_LEAVES[leaf]}"


def _bit_inverse(theirs: str) -> str | None:
    for ours, name in _BIT_TOP.items():
        if name == theirs:
            return ours
    match = re.fullmatch(
        r"resnet/(block\d+)/unit(\d+)/(.+)/(kernel|gamma|beta)", theirs
    )
    parts = {theirs: ours for ours, theirs in _BIT_PARTS.items()}
    if match is None or match[3] not in parts:
        return None
    leaf = next(k for k, v in _BIT_LEAVES.items() if v == match[4])
    return f"{match[1]}/unit{int(match[2])}/{parts[match[3]]}/{leaf}"
