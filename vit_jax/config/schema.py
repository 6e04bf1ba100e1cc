"""The keys of each section, from the signatures of what reads it.

The signature of the function that reads a section is the schema of that section: its
keyword-only parameters are the keys, their annotations the types, their defaults the
defaults. Nothing is listed twice, and a key that nobody reads cannot exist. A parameter
whose type cannot be written in a config (a callable, an array) is not a key.
"""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from vit_jax.config.values import is_config_type
from vit_jax.errors import UserError, did_you_mean

Plain = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a section: its type, and its default unless it is required."""

    type: Any
    default: Any = inspect.Parameter.empty

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty


def owners(path: str, given: Plain) -> list[Callable[..., Any]]:
    """The callables whose keyword-only parameters are the keys of section `path`.

    Args:
      path: "" for the top level, else such as "optim" or "evals.test.data".
      given: the section's own values, for the sections whose keys depend on one.
    """
    # Imported here: main shows --help and refuses a missing file without jax.
    from vit_jax import checkpoints, data, evaluators, layouts, models, optim
    from vit_jax.data import transforms
    from vit_jax.data.sources import mixture
    from vit_jax.objectives import Distillation, losses
    from vit_jax.run import Run

    parts = path.split(".")
    if parts[0] == "evals" and len(parts) > 1:
        if len(parts) == 2:
            return [pick(path, "type", given, evaluators.EVALUATORS)]
        parts = parts[2:]  # evals.NAME.data has the keys of data
    match parts:
        case [""]:
            return [Run]
        case ["model"]:
            return [models.create, pick(path, "name", given, models.MODELS)]
        case ["data"]:
            return [data.make]
        case ["data", "mixture", _]:
            return [mixture.open_part]
        case ["data", "train"] | ["train"]:
            return [transforms.TrainTransform]
        case ["data", "eval"] | ["eval"]:
            return [transforms.EvalTransform]
        case ["loss"]:
            return [losses.make]
        case ["distill"]:
            return [Distillation]
        case ["optim"]:
            return [optim.make]
        case ["mesh"]:
            return [layouts.Layout]
        case ["checkpoint"]:
            return [checkpoints.Checkpoints]
    raise AssertionError(path)


# The key of a section that says which keys the section has, see `owners`.
SELECTORS = ("name", "type")


def pick(path: str, key: str, given: Plain, table: Mapping[str, Any]) -> Any:
    """The entry of `table` that `given[key]`, or its first name, selects."""
    name = given[key] if key in given else next(iter(table))
    if not isinstance(name, str) or name not in table:
        raise UserError(
            f'config.{path}.{key} is "{name}"; {did_you_mean(str(name), table)}'
        )
    return table[name]


def schema(path: str, given: Plain) -> dict[str, Key]:
    """The keys of section `path`; see `owners` for the arguments."""
    keys: dict[str, Key] = {}
    for owner in owners(path, given):
        of_class = inspect.isclass(owner)
        hints = typing.get_type_hints(owner if of_class else inspect.unwrap(owner))
        if of_class and not dataclasses.is_dataclass(owner):
            hints = typing.get_type_hints(owner.__init__)
        for name, parameter in inspect.signature(owner).parameters.items():
            linen_internal = of_class and name in ("name", "parent")
            if parameter.kind is not parameter.KEYWORD_ONLY or linen_internal:
                continue
            if is_config_type(hints[name]):
                keys[name] = Key(hints[name], parameter.default)
                if path == "model" and keys[name].required:  # a variant may say it
                    keys[name] = Key(hints[name] | None, None)
    return keys


def has_own_names(where: str) -> bool:
    """Whether the names in a section are the user's own, each with a section."""
    return where == "evals" or where.endswith("data.mixture")


def join(path: str, name: str) -> str:
    """A key of the section `path` in full."""
    return f"{path}.{name}" if path else name
