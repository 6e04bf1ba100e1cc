"""What the shapes of a checkpoint say of its model."""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from vit_jax import models
from vit_jax.errors import UserError

Fields = dict[str, Any]


class Inferred(NamedTuple):
    """What a checkpoint says of its model.

    Attributes:
      fields: keywords of `models.create`.
      patches: that the parameters are for; None where any number will do.
      pixels: height and width of the part of the image that makes a patch.
      grid: rows and columns of patches, where the checkpoint says them.
      guesses: what is not certain, as sentences that say how to say otherwise.
    """

    fields: Fields
    patches: int | None
    pixels: tuple[int, int]
    grid: tuple[int, ...] | None = None
    guesses: tuple[str, ...] = ()

    def if_fits(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """The size if the parameters can be for it."""
        return size if self.patches in (None, self.count(size)) else None

    def count(self, size: tuple[int, int]) -> int:
        """How many patches an image of a size has."""
        return (size[0] // self.pixels[0]) * (size[1] // self.pixels[1])

    def image_size(self, given: tuple[int, int] | None) -> tuple[int, int]:
        """(height, width) of the images that the parameters are for.

        Args:
          given: what the user says it is.

        Raises:
          UserError: if it is not known or cannot be.
        """
        height, width = self.pixels
        if given is not None:
            tokens = self.count(given)
            if self.patches is not None and tokens != self.patches:
                raise UserError(
                    f"image_size={given} has {tokens} patches; the position embeddings "
                    f"are of {self.patches}"
                )
            return given
        if self.patches is None:
            return (224 // height * height, 224 // width * width)
        if self.grid is not None:
            return self.grid[0] * height, self.grid[1] * width
        side = round(self.patches**0.5)
        if side * side != self.patches or not side:
            raise UserError(
                f"the position embeddings are of {self.patches} patches, which is no "
                "square: give image_size=(HEIGHT, WIDTH)"
            )
        return side * height, side * width


def count(names: Iterable[str], pattern: str, *, start: int = 0) -> int:
    r"""How many numbers the group of a pattern takes at the beginning of the names.

    Raises:
      UserError: if they are not `start`, `start` + 1, and so on.

    >>> count(["blocks.0.norm", "blocks.1.norm", "norm"], r"blocks\.(\d+)\.")
    2
    """
    found = {int(m[1]) for m in map(re.compile(pattern).match, names) if m}
    if found != set(range(start, start + len(found))):
        raise UserError(
            f"the checkpoint numbers its layers {sorted(found)[:20]}: expected {start} "
            f"to {start + len(found) - 1} without a gap"
        )
    return len(found)


def kernel_of(size: tuple[int, ...]) -> int | tuple[int, int]:
    """A patch size: one number where height and width are equal.

    >>> kernel_of((16, 16)), kernel_of((4, 8))
    (16, (4, 8))
    """
    height, width = size
    return height if height == width else (height, width)


# (width, depth, mlp_dim) of timm's models whose heads are not of 64 channels or whose
# size has no name here, and how many they have.
_HEADS = {
    (64, 6, 192): 2,
    (64, 8, 192): 2,
    (256, 14, 1280): 4,
    (320, 14, 1792): 5,
    (384, 36, 1536): 6,
    (512, 12, 2048): 8,
    (512, 20, 2048): 8,
    (640, 12, 2560): 10,
    (768, 8, 2304): 8,
    (832, 21, 2176): 13,
    (896, 12, 3584): 14,
    (896, 18, 2304): 14,
    (1536, 40, 6144): 16,
    (1536, 40, 8192): 24,
}


# What convert writes says it to every other command.
TELL_HEADS = "vit_jax.load takes num_heads=N, and vit_jax.convert --model.num_heads=N"


def heads_of(width: int, depth: int, mlp_dim: int) -> tuple[int, str | None]:
    """The number of heads, where a format does not store it.

    Of a published size its own; else that of the size with the same layers but another
    number of them; else of 64 channels each.

    Args:
      width: of the tokens.
      depth: number of layers.
      mlp_dim: rows of the MLP's first kernel: both halves of a SwiGLU.

    Returns:
      The number, and for a guess a sentence that says so.

    Raises:
      UserError: if the width does not even allow a guess.

    >>> heads_of(768, 12, 3072), heads_of(1280, 32, 5120)
    ((12, None), (16, None))
    >>> heads_of(128, 4, 256)[0]
    2
    >>> heads_of(128, 4, 256)[1].split(";")[0]
    'guessed 2 heads of 64 channels'
    """
    sizes = {size[:3]: size[3] for size in models.SIZES.values()} | _HEADS
    if (width, depth, mlp_dim) in sizes:
        return sizes[width, depth, mlp_dim], None
    alike = {h for (w, _, m), h in sizes.items() if (w, m) == (width, mlp_dim)}
    if not alike and width % 64:
        raise UserError(
            f"the format does not say how many heads a width of {width} has: "
            + TELL_HEADS
        )
    heads = alike.pop() if alike else width // 64
    said = f"guessed {heads} heads of {width // heads} channels"
    return heads, f"{said}; if that is wrong, {TELL_HEADS}"
