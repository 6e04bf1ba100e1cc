"""Recipes: one a file, `get_config(arg)`; they import only ml_collections."""

import sys

# They import each other as `configs.NAME`, also where they are `vit_jax.configs`.
sys.modules.setdefault("configs", sys.modules[__name__])
