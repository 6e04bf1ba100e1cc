"""The tiny model of `everything`, with evaluations of its representations."""

from ml_collections import ConfigDict

from tests.recipes import everything

# No batch size divides these.
SPLITS = {"train_split": "train[:603]", "split": "test[:301]", "every": 4}


def get_config() -> ConfigDict:
    config = everything.get_config()
    with config.unlocked():
        del config.evals["test"]
        config.update(
            {
                "total_steps": 8,
                "checkpoint": {"best": "nn/accuracy"},
                "evals": {
                    "few": {"type": "fewshot", "shots": (1, 10), **SPLITS},
                    "nn": {"type": "knn", **SPLITS},
                    "probe": {"type": "linear_probe", "c_sweep": (0.1, 1.0), **SPLITS},
                },
            }
        )
    return config
