"""`--config.a.b=c`: keys of a config that are set from outside its recipe."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vit_jax.config import hints
from vit_jax.config.schema import (
    SELECTORS,
    Plain,
    has_own_names,
    join,
    schema,
)
from vit_jax.config.values import coerce, is_section, parse
from vit_jax.errors import UserError, did_you_mean

_REMOVES = ("none", "null")
# The key that begins a new entry of a section whose names are the user's own.
_BEGINS = {"evals": "type", "mixture": "name"}
Pair = tuple[str, Any]


def apply(config: Plain, pairs: Sequence[Pair]) -> None:
    """Sets the keys in place, in their order.

    What says which other keys there are (`model.name`, `evals.NAME.type`) goes first,
    so that the flags of a new evaluation may come in any order.

    Args:
      config: what the recipe says.
      pairs: of a key and its value, or its value as text, which is parsed by the type
        that the key's owner states.

    Raises:
      UserError: if there is no such key or the value is not of its type.
    """
    first = [p for p in pairs if p[0].rpartition(".")[2] in SELECTORS]
    for path, value in [*first, *(p for p in pairs if p not in first)]:
        override(config, path, value, begin=[p for p, _ in first])


def flatten(overrides: Mapping[str, Any], path: str = "") -> list[Pair]:
    """Keys in full and their values, of a mapping that may hold sections.

    >>> flatten({"optim": {"b1": 0.9}, "data.train.flip": False})
    [('optim.b1', 0.9), ('data.train.flip', False)]
    """
    pairs: list[Pair] = []
    for name, value in overrides.items():
        if not isinstance(name, str):
            raise UserError(f"overrides: {name!r} is no key; expected a string")
        where = join(path, name.removeprefix("config."))
        if isinstance(value, Mapping):
            pairs += flatten(value, where)
        else:
            pairs.append((where, value))
    return pairs


def override(config: Plain, path: str, value: Any, begin: Iterable[str] = ()) -> None:
    """Sets one key in place; see `apply`.

    Args:
      config: what is said so far.
      path: the key.
      value: it, or the text that means it.
      begin: keys that are set too, and may begin a new evaluation or part.
    """
    *parents, last = path.split(".")
    section, where = config, ""
    for name in parents:
        own = has_own_names(where)
        if own and name not in section:
            _refuse_misspelling(path, where, name, section, begin)
        keys = section if own else schema(where, section)
        if not own and name not in keys:
            raise UserError(
                f"--config.{path}: config.{join(where, name)} is not a section; "
                + hints.of_key(name, keys, config)
            )
        if not own and not is_section(keys[name].type):
            raise UserError(f"--config.{path}: config.{join(where, name)} is a value")
        section, where = section.setdefault(name, {}), join(where, name)
        if not isinstance(section, dict):
            raise UserError(f"config.{where} is {section!r}: it is a section")
    if has_own_names(where):
        return _remove(section, path, where, last, value)
    keys = schema(where, section)
    if last not in keys:
        raise UserError(
            f"--config.{path} is not a key; {hints.of_key(last, keys, config)}"
        )
    if is_section(keys[last].type):
        raise UserError(f"--config.{path} is a section; set one of its keys")
    type_ = keys[last].type
    if isinstance(value, str):
        value = parse(value, type_)
    section[last] = coerce(path, value, type_)


def _refuse_misspelling(
    path: str, where: str, name: str, section: Plain, begin: Iterable[str]
) -> None:
    """A name that is not there is a new one if the key that begins one is given."""
    key = f"{join(where, name)}.{_BEGINS[where.rpartition('.')[2]]}"
    if not name or key not in begin:
        near = f" {did_you_mean(name, section)}" if section else ""
        raise UserError(
            f"--config.{path}: there is no config.{join(where, name)};{near} To add "
            f"one, give --config.{key}=... too"
        )


def _remove(section: Plain, path: str, where: str, name: str, value: Any) -> None:
    if name not in section:
        known = did_you_mean(name, section) if section else "there are none"
        raise UserError(f"--config.{path}: there is no config.{path}; {known}")
    if not (value is None or str(value).lower() in _REMOVES):
        raise UserError(
            f"--config.{path} is a section; set one of its keys, or remove it with "
            f"--config.{path}=none"
        )
    del section[name]
