"""What every model checks of its arguments."""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.errors import UserError, did_you_mean


def check_capture(names: Collection[str], valid: Collection[str]) -> None:
    """Refuses the name of a feature that the model does not have."""
    for name in sorted(names):
        if name not in valid:
            raise UserError(f'no feature "{name}": {did_you_mean(name, valid)}')


def check_epsilons(model: Any) -> None:
    """Refuses what is added to a variance and is not above 0, or hides it."""
    for key in ("layer_norm_epsilon", "group_norm_epsilon"):
        if not 0.0 < (value := getattr(model, key, 1.0)) <= 1.0:
            raise UserError(f"model.{key}={value} must be above 0, and at most 1")


def check_images(images: jax.Array, patch: tuple[int, int]) -> None:
    """Refuses what is no batch of normalised images, or not divisible into patches."""
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(
            "images must be normalised floating-point pixels [batch, height, width, "
            f"channels]; got {images.dtype} {list(images.shape)}"
        )
    check_divides(images.shape[1:3], patch)


def check_divides(image_size: tuple[int, ...], patch: tuple[int, int]) -> None:
    """Refuses a (height, width) that is no whole number of patches."""
    hints = []
    for axis, pixels, size in zip(("height", "width"), image_size, patch, strict=True):
        if pixels % size or not pixels:
            below = pixels // size * size
            nearest = [str(x) for x in (below, below + size) if x]
            hints.append(f"nearest {axis} {' or '.join(nearest)}")
    if hints:
        raise UserError(
            f"images of {image_size[0]} x {image_size[1]} pixels (height x width) "
            f"cannot be cut into patches of {patch[0]} x {patch[1]}: {', '.join(hints)}"
        )
