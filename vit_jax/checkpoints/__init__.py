"""Checkpoints: our own, by Orbax, and in `formats` those of other libraries."""

from vit_jax.checkpoints.manager import Checkpoints
from vit_jax.checkpoints.reading import (
    Position,
    choose,
    head_width,
    is_run,
    newest_config,
    read_config,
    read_label_names,
    read_params,
)

__all__ = [
    "Checkpoints",
    "Position",
    "choose",
    "head_width",
    "is_run",
    "newest_config",
    "read_config",
    "read_label_names",
    "read_params",
]
