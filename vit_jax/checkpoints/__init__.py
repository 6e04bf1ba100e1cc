"""Checkpoints: our own, by Orbax."""

from vit_jax.checkpoints.manager import Checkpoints
from vit_jax.checkpoints.reading import Position, choose, read_params

__all__ = ["Checkpoints", "Position", "choose", "read_params"]
