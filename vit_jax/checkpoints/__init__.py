"""Checkpoints: our own, by Orbax (`manager`)."""

from vit_jax.checkpoints.manager import Checkpoints, Position, choose, read_params

__all__ = ["Checkpoints", "Position", "choose", "read_params"]
