"""A small ViT on the 10,000 images that come with the package.

    python -m vit_jax.main --config=configs/quickstart.py --workdir=workdirs/quickstart

Needs nothing but a CPU. Expected: see the README.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """8,000 images to train on, 2,000 to test on, 28x28 pixels, 10 classes."""
    return ConfigDict(
        {
            "batch_size": 64,
            "total_epochs": 20.0,
            "log_every": 25,
            "mixup": 0.2,
            "model": {
                "patch_size": 4,
                "width": 96,
                "depth": 6,
                "mlp_dim": 384,
                "num_heads": 3,
                "pool": "gap",
            },
            "data": {
                "name": "fashion_mnist_mini",
                "image_size": 28,
                "mean": (0.286, 0.286, 0.286),
                "std": (0.353, 0.353, 0.353),
                "train": {"crop": "pad", "padding": 2},
            },
            "loss": {"label_smoothing": 0.1},
            "optim": {
                "learning_rate": 1e-3,
                "warmup_steps": 250,
                "weight_decay": 0.1,
                "clip_norm": 1.0,
            },
            "checkpoint": {"every": 500},
            "evals": {"test": {"type": "classification", "every": 500}},
        }
    )
