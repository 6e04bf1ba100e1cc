"""Ways to start `vit_jax.main` on many devices and hosts; docs/launching.md."""
