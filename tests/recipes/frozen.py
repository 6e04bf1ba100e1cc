"""The tiny model of `everything`, with evaluations of its representations."""

from typing import Any

from ml_collections import ConfigDict

from tests.recipes import everything

# No batch size divides these.
SPLITS = {"train_split": "train[:603]", "split": "test[:301]", "every": 4}


def get_config() -> ConfigDict:
    config: dict[str, Any] = everything.get_config().to_dict()
    config["total_steps"] = 8
    config["checkpoint"]["best"] = "nn/accuracy"
    config["evals"] = {
        "few": {"type": "fewshot", "shots": (1, 10), **SPLITS},
        "nn": {"type": "knn", **SPLITS},
        "probe": {"type": "linear_probe", "c_sweep": (0.1, 1.0), **SPLITS},
    }
    return ConfigDict(config)
