"""The flags that make the model of a config that of the weights it starts from."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vit_jax import models
from vit_jax.checkpoints.adapt import Weights
from vit_jax.checkpoints.formats.writing import fields_of

# What fine-tuning may choose anew.
_FREE = {
    "num_classes",
    "head_bias_init",
    "representation_size",
    "dropout",
    "attention_dropout",
    "stochastic_depth",
    "dtype",
    "param_dtype",
}
Normalization = tuple[tuple[float, ...], tuple[float, ...]]


def model_flags(source: Weights, model: Mapping[str, Any]) -> list[str]:
    """`--config.model.KEY=VALUE` for each field in which a model differs.

    Args:
      source: the weights.
      model: keywords of `models.create` that make the model of the config.
    """
    theirs, ours = _create(source.model), _create(model)
    was, now = fields_of(theirs), fields_of(ours)
    keys = [*was, *(key for key in now if key not in was and hasattr(theirs, key))]
    values = {key: was[key] if key in was else None for key in keys}
    # What a model of another kind cannot know is told unless it is the default.
    known = {f.name: f.default for f in dataclasses.fields(theirs)} | now
    return [
        f"--config.model.{key}={_text(value)}"
        for key, value in values.items()
        if key not in _FREE and (key not in known or known[key] != value)
    ]


def normalization_flags(source: Weights, here: Normalization) -> list[str]:
    """Those of `config.data.mean` and `std`, where the weights say others.

    >>> weights = Weights(arrays={}, model={}, image_size=(1, 1),
    ...                   normalization=((0.5, 0.5, 0.4), (0.5, 0.5, 0.5)))
    >>> normalization_flags(weights, ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    ['--config.data.mean=0.5,0.5,0.4']
    """
    if source.normalization is None:
        return []
    pairs = zip(("mean", "std"), source.normalization, here, strict=True)
    return [
        f"--config.data.{key}={_text(was)}"
        for key, was, now in pairs
        if tuple(was) != tuple(now)
    ]


def _create(fields: Mapping[str, Any]) -> Any:
    values: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()
    }
    return models.create(**values)


def _text(value: Any) -> str:
    """A value as a shell and `--config.KEY=` take it."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) + ("," if len(value) == 1 else "")
    return str(value)
