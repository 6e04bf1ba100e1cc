"""Recipes: one a file, `get_config(arg)`; they import only ml_collections."""
