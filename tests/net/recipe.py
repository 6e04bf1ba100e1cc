"""Twelve tiny runs that between them use all that a run can do: recipe.py:NAME,DATA.

`tests/net/data.py` writes the folder DATA. The first run is the teacher of others and
the weights from which another begins.
"""

from typing import Any

from ml_collections import ConfigDict

from tests.recipes import everything

FIRST = "everything"
STEPS = 12
PARTS = ("train[:50%]", "train[50%:]")
SPLITS = {"train_split": "train[:203]", "split": "test[:101]", "every": 6}

VIT = {
    **everything.get_config().to_dict()["model"],
    "width": 16,
    "mlp_dim": 32,
    "num_heads": 2,
}
# What each changes of `tests/recipes/everything.py`; DATA stands for the folder.
RUNS: dict[str, dict[str, Any]] = {
    FIRST: {},
    "layers_in_a_scan": {
        "model": {
            "scan": True,
            "pool": "map",
            "registers": 2,
            "qk_norm": True,
            "layer_scale": 0.1,
            "mlp": "swiglu",
            "class_token": True,
        },
        "optim": {"name": "adafactor", "layer_decay": 0.7, "schedule": "linear"},
        "mesh": {"fsdp": 2, "tensor": 2},
    },
    "mixer": {
        "model": {
            "name": "mixer",
            "patch_size": 7,
            "width": 16,
            "depth": 2,
            "tokens_mlp_dim": 8,
            "mlp_dim": 32,
            "stochastic_depth": 0.2,
        },
        "optim": {"name": "sgd", "schedule": "rsqrt", "timescale": 10},
        "mesh": {"fsdp": 2, "zero1": True},
    },
    "resnet": {
        "model": {"name": "resnet", "stages": (1, 1), "width_factor": 1},
        "optim": {
            "name": "lion",
            "schedule": "constant",
            "learning_rate": 1e-4,
            "cooldown_steps": 3,
        },
        "accumulation_steps": 1,
    },
    "hybrid": {
        "model": {
            **VIT,
            "patch_size": 1,
            "dtype": "bfloat16",
            "posemb": "sincos2d",
            "pool": "gap",
            "resnet": (1, 1),
        },
        "data": {"image_size": 32},
        "optim": {"moment_dtype": "bfloat16"},
    },
    "labels_that_do_not_exclude_each_other": {
        "data": {"name": "npz", "data_dir": "DATA/tags.npz"},
        "loss": {"name": "sigmoid_xent", "label_smoothing": 0.0},
        "evals": {"test": {"split": "test", "every": 6}},
        "checkpoint": {"best": "test/mAP"},
    },
    "mixture": {
        "data": {
            "name": "mixture",
            "mixture": {
                "one": {"name": "fashion_mnist_mini", "split": PARTS[0], "weight": 3.0},
                "two": {"name": "fashion_mnist_mini", "split": PARTS[1], "weight": 1.0},
            },
            "train": {
                "augment": "trivialaugment",
                "crop": "inception",
                "padding": None,
            },
        },
        "mixup_prob": 0.5,
        "evals": {"test": {"data": {"name": "fashion_mnist_mini"}}},
    },
    "examples_left_out": {
        "data": {
            "name": "folder",
            "data_dir": "DATA/folder",
            "on_bad_example": "skip",
            "num_workers": 1,
        },
        "loss": {"class_weights": "balanced"},
        "evals": {"test": {"split": "test", "batch_size": 8}},
        "checkpoint": {"best": "test/accuracy"},
    },
    "fine_tuned": {
        "init_from": "DATA/first.npz",
        "data": {"image_size": 42},
        "model": {"dropout": 0.0},
        "optim": {"lr_multipliers": (("embedding/.*", 0.1),)},
        "ema": 0.99,
    },
    "frozen": {
        "init_from": "DATA/first",
        "optim": {"train_only": "head/.*|.*/LayerNorm_.*", "name": "sgd"},
        "evals": {
            "few": {"type": "fewshot", "shots": (1, 10), **SPLITS},
            "nn": {"type": "knn", **SPLITS},
            "probe": {"type": "linear_probe", "c_sweep": (0.1, 1.0), **SPLITS},
            "corrupted": {
                "type": "corruptions",
                "corruptions": ("fog", "snow"),
                "severities": (1, 2),
                "relative_to_alexnet": False,
                "split": "{severity}",
                "every": 6,
                "data": {"name": "folder", "data_dir": "DATA/corrupted/{corruption}"},
            },
        },
    },
    "distilled_in_two_heads": {
        "model": {"distilled": True},
        "distill": {"teacher": "DATA/first", "kind": "hard", "weight": 0.5},
    },
    "distilled_softly": {
        "distill": {
            "teacher": "DATA/first",
            "kind": "soft",
            "weight": 0.1,
            "temperature": 3.0,
        },
        "mesh": {"data": 2, "fsdp": 2},
    },
}
# Another model has other keys than the ViT of `everything`.
OTHER_MODELS = ("mixer", "resnet", "hybrid")


def get_config(argument: str) -> ConfigDict:
    name, data = argument.split(",")
    config: dict[str, Any] = everything.get_config().to_dict()
    config["total_steps"] = STEPS
    config["checkpoint"]["every"] = 5
    config["evals"]["test"]["every"] = 6
    config["model"] = {} if name in OTHER_MODELS else VIT.copy()
    merge(config, placed(RUNS[name], data))
    return ConfigDict(config)


def merge(into: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


def placed(value: Any, data: str) -> Any:
    """With the folder's name where DATA stands."""
    if isinstance(value, dict):
        return {key: placed(x, data) for key, x in value.items()}
    return value.replace("DATA", data) if isinstance(value, str) else value
