"""Many runs of vit_jax.main that differ in a few keys; docs/launching.md."""

from launch.sweep.command import main

__all__ = ["main"]
