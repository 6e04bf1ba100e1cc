"""The embedded dataset, as tests of datasets and of batches read it."""

from typing import Any

from vit_jax import data

PAD = {"crop": "pad", "padding": 2}


def mini(**keys: Any) -> data.Dataset:
    keys = {"image_size": 28, "train": PAD, "eval": {}} | keys
    return data.make(name="fashion_mnist_mini", **keys)
