"""The published sizes of the models, by names such as "B/16"."""

import re
from collections.abc import Iterable
from typing import Any

from vit_jax.errors import UserError, did_you_mean

_KEYS = ("width", "depth", "mlp_dim", "num_heads")

# Ti: DeiT (arXiv:2012.12877). S: arXiv:2106.10270. B, L, H: table 1 of the paper
# (arXiv:2010.11929). g, G: table 2 of arXiv:2106.04560. e: PaLI (arXiv:2209.06794).
# So400m: arXiv:2305.13035. All numbers agree with big_vision's `decode_variant`.
SIZES = {
    "Ti": (192, 12, 768, 3),
    "S": (384, 12, 1536, 6),
    "B": (768, 12, 3072, 12),
    "L": (1024, 24, 4096, 16),
    "So400m": (1152, 27, 4304, 16),
    "H": (1280, 32, 5120, 16),
    "g": (1408, 40, 6144, 16),
    "G": (1664, 48, 8192, 16),
    "e": (1792, 56, 15360, 16),
}

# Units of each stage and patch size on the ResNet's output, by its name and the
# hybrid's nominal patch size (arXiv:2106.10270, table 2). The root alone strides 4 and
# has patches of 8 on top, whatever its name says.
HYBRIDS = {
    ("R", 16): ((), 8),
    ("R26", 32): ((2, 2, 2, 2), 1),
    ("R50", 16): ((3, 4, 9), 1),
    ("R50", 32): ((3, 4, 6, 3), 1),
}

# The patch sizes that weights or results were published for; any other works too.
PUBLISHED = (
    "Ti/16",
    *("S/32", "S/16", "S/8"),
    *("B/32", "B/16", "B/8"),
    *("L/32", "L/16"),
    *("So400m/16", "So400m/14"),
    *("H/16", "H/14"),
    *("g/14", "G/14", "e/14"),
    *("R+ViT-Ti/16", "R26+ViT-S/32", "R26+ViT-B/32"),
    *("R50+ViT-B/16", "R50+ViT-L/32"),
)

# Table 1 of arXiv:2105.01601: width, depth, hidden widths over tokens and channels.
MIXER_SIZES = {
    "S": (512, 8, 256, 2048),
    "B": (768, 12, 384, 3072),
    "L": (1024, 24, 512, 4096),
    "H": (1280, 32, 640, 5120),
}
MIXERS = ("S/32", "S/16", "B/32", "B/16", "L/32", "L/16", "H/14")

# The depths of ResNets, and the published products of depth and width (BiT).
RESNETS = {
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
BITS = ("50x1", "50x3", "101x1", "101x3", "152x2", "152x4", "200x3")


def list_models(name: str = "vit") -> tuple[str, ...]:
    """The variants with published results; other patch sizes and widths work too.

    Args:
      name: of the architecture, as in `config.model.name`.

    >>> list_models()[:4]
    ('Ti/16', 'S/32', 'S/16', 'S/8')
    >>> list_models("resnet")[:3]
    ('50x1', '50x3', '101x1')
    """
    published = {"vit": PUBLISHED, "mixer": MIXERS, "resnet": BITS}
    if name not in published:
        raise UserError(f'no model "{name}": {did_you_mean(name, published)}')
    return published[name]


def expand(variant: str, name: str = "vit") -> dict[str, Any]:
    """What a name such as "B/16" stands for, as fields of its model.

    Args:
      variant: SIZE/PATCH, e.g. "B/16" or "H/14"; PATCH in pixels, any positive number.
        RESNET+ViT-SIZE/PATCH for hybrids. Of ResNets DEPTHxWIDTH, e.g. "50x1".
      name: of the architecture.

    Raises:
      UserError: the size is unknown, or the name is not of that form.

    >>> expand("B/8")
    {'width': 768, 'depth': 12, 'mlp_dim': 3072, 'num_heads': 12, 'patch_size': 8}
    >>> expand("R50+ViT-B/16")["resnet"], expand("R50+ViT-B/16")["patch_size"]
    ((3, 4, 9), 1)
    >>> expand("101x3", "resnet")
    {'stages': (3, 4, 23, 3), 'width_factor': 3}
    """
    if name == "resnet":
        return _expand_resnet(variant)
    published = list_models(name)
    match = re.fullmatch(r"(?:(R\d*)\+(?:ViT-)?)?(\w+)/([1-9]\d*)", variant)
    if match is None or (match[1] and name != "vit"):
        raise UserError(
            f'model.variant="{variant}" is not of the form SIZE/PATCH, such as "B/16": '
            + _nearest(variant, published)
        )
    resnet, size, patch = match.groups()
    sizes = SIZES if name == "vit" else MIXER_SIZES
    if size not in sizes:
        raise UserError(
            f'model.variant="{variant}" has an unknown size: '
            + _nearest(variant, [f"{known}/{patch}" for known in sizes])
        )
    keys = _KEYS if name == "vit" else ("width", "depth", "tokens_mlp_dim", "mlp_dim")
    fields = dict(zip(keys, sizes[size], strict=True))
    if resnet is None:
        return fields | {"patch_size": int(patch)}
    if (resnet, int(patch)) not in HYBRIDS:
        hybrids = [f"{r}+ViT-{size}/{p}" for r, p in HYBRIDS]
        raise UserError(
            f'model.variant="{variant}" has no such ResNet for its patch size: '
            + did_you_mean(variant, hybrids)
        )
    stages, on_top = HYBRIDS[resnet, int(patch)]
    return fields | {"resnet": stages, "patch_size": on_top}


def _nearest(given: str, valid: Iterable[str]) -> str:
    """The end of a sentence: the variant that another library's name stands for.

    >>> _nearest("vit_base_patch16_224", ("R50+ViT-B/16", "B/16", "B/32"))
    'did you mean "B/16"?'
    """
    valid = list(valid)
    same = [name for name in valid if _plain(name) == _plain(given)]
    return f'did you mean "{same[0]}"?' if same else did_you_mean(given, valid)


def _plain(variant: str) -> str:
    """Size and patch, however they are written.

    >>> _plain("ViT-B/16"), _plain("vit_tiny_patch16_224"), _plain("R50+ViT-B/16")
    ('b16', 'ti16', 'r50b16')
    """
    name = re.sub(r"vit|patch|[-_]\d{3,}$", "", variant.lower())
    name = re.sub(r"[^a-z0-9]", "", name)
    words = {"tiny": "ti", "small": "s", "base": "b", "large": "l", "huge": "h"}
    return re.sub("|".join(words), lambda word: words[word[0]], name)


def _expand_resnet(variant: str) -> dict[str, Any]:
    match = re.fullmatch(r"(\d+)x([1-9]\d*)", variant)
    if match is None or int(match[1]) not in RESNETS:
        raise UserError(
            f'model.variant="{variant}" is not of the form DEPTHxWIDTH, such as '
            f'"50x1", with a depth of {", ".join(map(str, RESNETS))}: '
            + did_you_mean(variant, BITS)
        )
    return {"stages": RESNETS[int(match[1])], "width_factor": int(match[2])}
