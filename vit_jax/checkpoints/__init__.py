"""Checkpoints: our own, by Orbax, and in `formats` those of other libraries."""

from vit_jax.checkpoints.choosing import choose, is_run, newest_config
from vit_jax.checkpoints.manager import Checkpoints
from vit_jax.checkpoints.manifest import Damaged
from vit_jax.checkpoints.reading import (
    Position,
    committed_steps,
    examine,
    head_width,
    read_config,
    read_everything,
    read_label_names,
    read_params,
)

__all__ = [
    "Checkpoints",
    "Damaged",
    "Position",
    "choose",
    "committed_steps",
    "examine",
    "head_width",
    "is_run",
    "newest_config",
    "read_config",
    "read_everything",
    "read_label_names",
    "read_params",
]
