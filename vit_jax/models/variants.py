"""The published sizes of the Vision Transformer, by names such as "B/16"."""

import re

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

# The patch sizes that weights or results were published for; any other works too.
PUBLISHED = (
    "Ti/16",
    *("S/32", "S/16", "S/8"),
    *("B/32", "B/16", "B/8"),
    *("L/32", "L/16"),
    *("So400m/16", "So400m/14"),
    *("H/16", "H/14"),
    *("g/14", "G/14", "e/14"),
)


def list_models() -> tuple[str, ...]:
    """The variants with published results, smallest first; any patch size works.

    >>> list_models()[:4]
    ('Ti/16', 'S/32', 'S/16', 'S/8')
    """
    return PUBLISHED


def expand(variant: str) -> dict[str, int]:
    """What a name such as "B/16" stands for, as fields of `VisionTransformer`.

    Args:
      variant: SIZE/PATCH, e.g. "B/16" or "H/14"; PATCH in pixels, any positive number.

    Raises:
      UserError: the size is unknown, or the name is not of that form.

    >>> expand("B/8")
    {'width': 768, 'depth': 12, 'mlp_dim': 3072, 'num_heads': 12, 'patch_size': 8}
    """
    match = re.fullmatch(r"(\w+)/([1-9]\d*)", variant)
    if match is None:
        raise UserError(
            f'model.variant="{variant}" is not of the form SIZE/PATCH, such as "B/16": '
            + did_you_mean(variant, PUBLISHED)
        )
    size, patch = match.groups()
    if size not in SIZES:
        near = [known for known in SIZES if known.lower() == size.lower()] or SIZES
        raise UserError(
            f'model.variant="{variant}" has an unknown size: '
            + did_you_mean(variant, [f"{known}/{patch}" for known in near])
        )
    return dict(zip(_KEYS, SIZES[size], strict=True), patch_size=int(patch))
