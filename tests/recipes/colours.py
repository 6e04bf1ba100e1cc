"""Two evaluations of a tiny model that tells colours apart within a few steps."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "batch_size": 16,
            "total_steps": 40,
            "model": {
                "patch_size": 8,
                "width": 16,
                "depth": 1,
                "mlp_dim": 32,
                "num_heads": 1,
            },
            "data": {
                "name": "folder",
                "image_size": 8,
                "train": {"crop": "resize"},
            },
            "optim": {"learning_rate": 0.01, "warmup_steps": 1},
            "evals": {
                "test": {"type": "classification"},
                "other": {"type": "classification", "data": {"data_dir": ""}},
            },
        }
    )
