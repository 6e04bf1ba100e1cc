"""A tiny model with every random feature on; a step takes milliseconds."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 3,
            "batch_size": 16,
            "total_steps": 30,
            "log_every": 1,
            "accumulation_steps": 2,
            "mixup": 0.3,
            "cutmix": 0.5,
            "ema": 0.9,
            "model": {
                "patch_size": 7,
                "width": 32,
                "depth": 2,
                "mlp_dim": 64,
                "num_heads": 4,
                "dropout": 0.1,
                "attention_dropout": 0.1,
                "stochastic_depth": 0.2,
            },
            "data": {
                "name": "fashion_mnist_mini",
                "image_size": 28,
                "train": {
                    "crop": "pad",
                    "padding": 2,
                    "flip": True,
                    "augment": "randaugment",
                    "color_jitter": (0.2, 0.2, 0.2, 0.0),
                    "erasing": 0.25,
                    "repeats": 2,
                },
            },
            "loss": {"label_smoothing": 0.1},
            "optim": {
                "learning_rate": 3e-3,
                "warmup_steps": 5,
                "weight_decay": 0.1,
                "clip_norm": 1.0,
            },
            "checkpoint": {"every": 7, "keep": 2, "best": "test/raw/top5_accuracy"},
            "evals": {
                "test": {
                    "type": "classification",
                    "every": 10,
                    "split": "test[:10%]",
                    "batch_size": 64,
                }
            },
        }
    )
