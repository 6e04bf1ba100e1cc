"""Many runs of vit_jax.main that differ in a few keys; docs/launching.md."""

from vit_jax.launch.sweep.command import main

__all__ = ["main"]
