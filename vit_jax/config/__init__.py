"""Configs: read a recipe, apply `--config.a.b=c`, check every key against its owner."""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from vit_jax.config import hints, overrides, reading, results
from vit_jax.config.reading import module as recipe_module
from vit_jax.config.schema import Key, Plain, has_own_names, join, owners, schema
from vit_jax.config.values import (
    accepts_none,
    coerce,
    describe,
    is_section,
    placeholder,
)
from vit_jax.errors import UserError

__all__ = [
    "Key",
    "complete",
    "load",
    "owners",
    "pairs",
    "recipe_module",
    "results",
    "schema",
]


def load(
    config: str | Mapping[str, Any] | ConfigDict,
    changes: Sequence[tuple[str, Any]] | Mapping[str, Any] = (),
) -> ConfigDict:
    """A locked, complete and checked ConfigDict.

    Args:
      config: a recipe, `PATH.py` or `PATH.py:ARG`, whose file defines
        `get_config(arg)`; the workdir of a run, or its config.json; or what a recipe
        returns, a ConfigDict or a dict.
      changes: to it: pairs such as `("optim.learning_rate", "1e-3")`, in their order,
        or a mapping. Values are text, as on the command line, or plain values.

    Raises:
      UserError: for a file that is not there, an unknown key, a value of a wrong type.
    """
    given = reading.read(config) if isinstance(config, str) else reading.plain(config)
    overrides.apply(given, pairs(changes))
    return ConfigDict(complete(given), type_safe=True).lock()


def pairs(
    changes: Sequence[tuple[str, Any]] | Mapping[str, Any],
) -> Sequence[tuple[str, Any]]:
    """Keys in full and their values."""
    return overrides.flatten(changes) if isinstance(changes, Mapping) else changes


def complete(given: Plain, path: str = "", root: Plain | None = None) -> Plain:
    """Checks a section and fills in the defaults of its owner, recursively.

    Args:
      given: what is said of the section.
      path: of the section.
      root: the whole config, for hints.

    Raises:
      UserError: for an unknown key, a missing one, or a value of a wrong type.
    """
    root = given if root is None else root
    keys = schema(path, given)
    for name in given:
        if name not in keys:
            raise UserError(
                f"config.{join(path, name)} is not a key; "
                + hints.of_key(name, keys, root)
            )
    result: Plain = {}
    for name, key in keys.items():
        where = join(path, name)
        if is_section(key.type):
            section = given[name] if name in given else {}
            result[name] = _complete_section(where, section, root)
        else:
            result[name] = _complete_value(where, name, key, given)
    return result


def _complete_value(where: str, name: str, key: Key, given: Plain) -> Any:
    if name in given and given[name] is not None:
        return coerce(where, given[name], key.type)
    if name in given and accepts_none(key.type):
        return placeholder(key.type)
    if key.required:
        raise UserError(f"config.{where} is not set: it should be {describe(key.type)}")
    return placeholder(key.type) if key.default is None else key.default


def _complete_section(where: str, given: Any, root: Plain) -> Plain:
    if not isinstance(given, dict):
        raise UserError(f"config.{where} is {given!r}: it is a section, not a value")
    if has_own_names(where):
        for name, entry in given.items():
            if not isinstance(entry, dict):
                raise UserError(
                    f"config.{join(where, name)} is {entry!r}: it is a section"
                )
        return {n: complete(g, join(where, n), root) for n, g in given.items()}
    if where.startswith("evals.") and where.count(".") == 2:
        # What an evaluation says of its data is laid over config.data when it is
        # opened, so only what is said is kept.
        checked = complete({"name": "", **given}, where, root)
        return {name: _only(checked[name], given[name]) for name in given}
    return complete(given, where, root)


def _only(checked: Any, given: Any) -> Any:
    if not isinstance(given, dict):
        return checked
    return {name: _only(checked[name], given[name]) for name in given}
