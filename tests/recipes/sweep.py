"""As small as a run can be: for tests of many runs."""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "batch_size": 16,
            "total_epochs": 0.024,  # of 8,000 images: 12 steps
            "log_every": 1,
            "model": {
                "patch_size": 14,
                "width": 16,
                "depth": 1,
                "mlp_dim": 16,
                "num_heads": 1,
            },
            "data": {"name": "fashion_mnist_mini", "image_size": 28},
            "optim": {"learning_rate": 3e-3, "schedule": "constant"},
            "checkpoint": {"every": 3},
            "evals": {
                "test": {
                    "type": "classification",
                    "every": 4,
                    "split": "test[:10%]",
                    "batch_size": 200,
                }
            },
        }
    )


def sweep() -> Iterator[dict[str, Any]]:
    """Wider models learn more slowly."""
    for width in (16, 32):
        yield {"model.width": width, "optim.learning_rate": 0.048 / width}


def group(config: dict[str, Any]) -> str:
    """Narrow and wide models."""
    return "wide" if config["model"]["width"] > 16 else "narrow"
