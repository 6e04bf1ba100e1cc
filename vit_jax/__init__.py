"""Vision Transformers in JAX: pre-train, fine-tune, evaluate, ship.

Importing the package is cheap: what needs jax is imported on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit_jax.loading import load
    from vit_jax.models import list_models

__version__ = "0.1.0.dev0"
__all__ = ["__version__", "list_models", "load"]

_LAZY = {"list_models": "vit_jax.models", "load": "vit_jax.loading"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
