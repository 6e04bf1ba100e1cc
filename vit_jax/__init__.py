"""Vision Transformers in JAX: pre-train, fine-tune, evaluate, ship.

Importing the package is cheap: what needs jax is imported on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from vit_jax import errors

if TYPE_CHECKING:
    from vit_jax.api import evaluate, load_config, train
    from vit_jax.loading import load
    from vit_jax.models import list_models

__version__ = "0.1.0.dev0"
__all__ = [
    "__version__",
    "errors",
    "evaluate",
    "list_models",
    "load",
    "load_config",
    "train",
]

_LAZY = {
    "evaluate": "vit_jax.api",
    "list_models": "vit_jax.models",
    "load": "vit_jax.loading",
    "load_config": "vit_jax.api",
    "train": "vit_jax.api",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
