"""Configs: read a recipe, apply `--config.a.b=c`, check every key against its owner.

The signature of the function that reads a section is the schema of that section: its
keyword-only parameters are the keys, their annotations the types, their defaults the
defaults. Nothing is listed twice, and a key that nobody reads cannot exist. A parameter
whose type cannot be written in a config (a callable, an array) is not a key.
"""

import ast
import dataclasses
import importlib.util
import inspect
import math
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ml_collections import ConfigDict, config_dict

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


def load(recipe: str, overrides: Sequence[tuple[str, str]]) -> ConfigDict:
    """A locked, complete and checked ConfigDict.

    Args:
      recipe: `PATH.py` or `PATH.py:ARG`; the file defines `get_config(arg)`.
      overrides: pairs such as `("optim.learning_rate", "1e-3")`, in their order.

    Raises:
      UserError: for a file that is not there, an unknown key, a value of a wrong type.
    """
    given = read_recipe(recipe).to_dict()
    for path, text in overrides:
        override(given, path, text)
    return ConfigDict(complete(given), type_safe=True).lock()


def read_recipe(recipe: str) -> ConfigDict:
    """Runs `get_config(arg)` of the file that `PATH.py[:ARG]` names."""
    module, arg = recipe_module(recipe), recipe.partition(":")[2]
    if not hasattr(module, "get_config"):
        raise UserError(f"--config={recipe}: the file defines no get_config(arg)")
    takes_argument = bool(inspect.signature(module.get_config).parameters)
    if arg and not takes_argument:
        raise UserError(f'--config={recipe}: this recipe takes no argument ":{arg}"')
    try:
        return module.get_config(arg) if arg else module.get_config()
    except ValueError as error:  # recipes import only ml_collections: see DESIGN
        raise UserError(f"--config={recipe}: {error}") from error


def recipe_module(recipe: str) -> types.ModuleType:
    """The module in the file that `PATH.py[:ARG]` names."""
    path = recipe.partition(":")[0]
    if not Path(path).is_file():
        near = sorted(str(p) for p in Path("configs").glob("*.py"))
        raise UserError(
            f'--config={recipe}: there is no file "{path}" here; '
            + (did_you_mean(path, near) if near else "run from the checkout's root")
        )
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    root = str(Path(path).resolve().parent.parent)
    if root not in sys.path:  # recipes import each other as configs.NAME
        sys.path.append(root)
    spec.loader.exec_module(module)
    return module


def owners(path: str, given: Plain) -> list[Callable[..., Any]]:
    """The callables whose keyword-only parameters are the keys of section `path`.

    Args:
      path: "" for the top level, else such as "optim" or "evals.test.data".
      given: the section's own values, for the sections whose keys depend on one.
    """
    # Imported here: main shows --help and refuses a missing file without jax.
    from vit_jax import checkpoints, data, evaluators, layouts, losses, models, optim
    from vit_jax.data import transforms
    from vit_jax.data.sources import mixture
    from vit_jax.distillation import Distillation
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


def pick(path: str, key: str, given: Plain, table: Mapping[str, Any]) -> Any:
    """The entry of `table` that `given[key]`, or its first name, selects."""
    name = given[key] if key in given else next(iter(table))
    if name not in table:
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


def is_section(type_: Any) -> bool:
    """Whether a key of this type is a section, with keys of its own."""
    return typing.get_origin(type_) is dict or type_ is dict


def is_config_type(type_: Any) -> bool:
    """Whether a value of this type can be written in a config.

    >>> is_config_type(int | None), is_config_type(Literal["a"]), is_config_type(slice)
    (True, True, False)
    """
    origin, args = typing.get_origin(type_), typing.get_args(type_)
    if origin in (typing.Union, types.UnionType, tuple):
        return all(is_config_type(a) for a in args if a is not Ellipsis)
    return origin is Literal or is_section(type_) or type_ in _SCALARS


_SCALARS = (int, float, bool, str, types.NoneType)


def complete(given: Plain, path: str = "") -> Plain:
    """Checks a section and fills in the defaults of its owner, recursively.

    Raises:
      UserError: for an unknown key, a missing one, or a value of a wrong type.
    """
    keys = schema(path, given)
    for name in given:
        if name not in keys:
            raise UserError(
                f"config.{join(path, name)} is not a key; {did_you_mean(name, keys)}"
            )
    result: Plain = {}
    for name, key in keys.items():
        where = join(path, name)
        if is_section(key.type):
            result[name] = _complete_section(
                where, given[name] if name in given else {}
            )
        elif name in given and given[name] is not None:
            result[name] = coerce(where, given[name], key.type)
        elif name in given and accepts_none(key.type):
            result[name] = placeholder(key.type)
        elif not key.required:
            default = key.default
            result[name] = placeholder(key.type) if default is None else default
        else:
            raise UserError(
                f"config.{where} is not set: it should be {describe(key.type)}"
            )
    return result


def _complete_section(where: str, given: Any) -> Plain:
    if not isinstance(given, dict):
        raise UserError(f"config.{where} is {given!r}: it is a section, not a value")
    if has_own_names(where):
        return {name: complete(g, join(where, name)) for name, g in given.items()}
    if where.startswith("evals.") and where.count(".") == 2:
        # What an evaluation says of its data is laid over config.data when it is
        # opened, so only what is said is kept.
        checked = complete({"name": "", **given}, where)
        return {name: _only(checked[name], given[name]) for name in given}
    return complete(given, where)


def has_own_names(where: str) -> bool:
    """Whether the names in a section are the user's own, each with a section."""
    return where == "evals" or where.endswith("data.mixture")


def _only(checked: Any, given: Any) -> Any:
    if not isinstance(given, dict):
        return checked
    return {name: _only(checked[name], given[name]) for name in given}


def override(config: Plain, path: str, text: str) -> None:
    """Sets `config.PATH=TEXT` in place, parsed by the type that its owner states.

    Raises:
      UserError: if there is no such key or the text is not of its type.
    """
    *parents, last = path.split(".")
    section, where = config, ""
    for name in parents:
        keys = section if has_own_names(where) else schema(where, section)
        if name not in keys:
            raise UserError(
                f"--config.{path}: config.{join(where, name)} is not a section; "
                + did_you_mean(name, keys)
            )
        if not has_own_names(where) and not is_section(keys[name].type):
            raise UserError(f"--config.{path}: config.{join(where, name)} is a value")
        section, where = section.setdefault(name, {}), join(where, name)
    if has_own_names(where):
        raise UserError(f"--config.{path} is a section; set one of its keys")
    keys = schema(where, section)
    if last not in keys:
        raise UserError(f"--config.{path} is not a key; {did_you_mean(last, keys)}")
    if is_section(keys[last].type):
        raise UserError(f"--config.{path} is a section; set one of its keys")
    section[last] = coerce(path, parse(text, keys[last].type), keys[last].type)


def parse(text: str, type_: Any) -> Any:
    """The value that the text on a command line means, given the type of its key.

    >>> parse("1", float), parse("1e4", int), parse("none", int | None)
    (1.0, 10000, None)
    >>> parse("14,16", tuple[int, int]), parse("false", bool), parse("7", str)
    ((14, 16), False, '7')
    >>> parse("q,k", tuple[Literal["q", "k"], ...] | None)
    ('q', 'k')
    """
    allowed = members(type_)
    if type(None) in allowed and text.lower() in ("none", "null", ""):
        return None
    if bool in allowed and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if any(t is str or typing.get_origin(t) is Literal for t in allowed):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        parts = [part for t in allowed for part in typing.get_args(t)]
        of_names = any(literal_names(part) for part in parts)
        return tuple(text.split(",")) if of_names else text  # coerce says what is wrong
    return fit(value, type_)[1]


def coerce(where: str, value: Any, type_: Any) -> Any:
    """The value as its type says (1 -> 1.0 for a float), or a UserError."""
    if isinstance(value, config_dict.FieldReference):
        value = value.get()
    fits, result = fit(value, type_)
    shown = f'"{value}"' if isinstance(value, str) else f"{value!r}"
    if fits and not _is_finite(result):
        raise UserError(f"config.{where} is {shown}: it should be finite")
    if fits:
        return result
    names = [n for t in members(type_) for n in literal_names(t)]
    if names and isinstance(value, str):
        raise UserError(f"config.{where} is {shown}; {did_you_mean(value, names)}")
    kind = type(value).__name__
    raise UserError(
        f"config.{where} is {shown} ({kind}): it should be {describe(type_)}"
    )


def fit(value: Any, type_: Any) -> tuple[bool, Any]:
    """Whether a value fits a type, and the value converted without loss.

    >>> fit(1, float), fit(2.0, int), fit(True, int), fit([1, 2], tuple[int, ...])
    ((True, 1.0), (True, 2), (False, True), (True, (1, 2)))
    """
    origin, args = typing.get_origin(type_), typing.get_args(type_)
    if origin in (typing.Union, types.UnionType):
        exact = [a for a in args if type(value) is a]  # 1 stays an int in int | float
        results = (fit(value, a) for a in exact or args)
        return next((r for r in results if r[0]), (False, value))
    if origin is Literal:
        return value in args, value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False, value
        variadic = len(args) == 2 and args[1] is Ellipsis
        if not variadic and len(args) != len(value):
            return False, value
        elements = [args[0]] * len(value) if variadic else args
        parts = [fit(v, t) for v, t in zip(value, elements, strict=True)]
        return all(ok for ok, _ in parts), tuple(v for _, v in parts)
    if type_ is float and type(value) is int:
        return True, float(value)
    if type_ is int and type(value) is float and value.is_integer():
        return True, int(value)
    return type(value) is type_, value


def _is_finite(value: Any) -> bool:
    """Whether no number is NaN or infinite: no key has a use for one."""
    if isinstance(value, tuple):
        return all(_is_finite(part) for part in value)
    return not isinstance(value, float) or math.isfinite(value)


def members(type_: Any) -> tuple[Any, ...]:
    """The types of a union; a type alone as a union of one."""
    union = typing.get_origin(type_) in (typing.Union, types.UnionType)
    return typing.get_args(type_) if union else (type_,)


def literal_names(type_: Any) -> tuple[str, ...]:
    """The values of a `Literal`, else none."""
    return typing.get_args(type_) if typing.get_origin(type_) is Literal else ()


def accepts_none(type_: Any) -> bool:
    """Whether a key may be left empty."""
    return type(None) in members(type_)


def describe(type_: Any) -> str:
    """A type in words.

    >>> describe(int | None), describe(tuple[float, float]), describe(Literal["a", "b"])
    ('an int or none', 'a tuple (float, float)', '"a" or "b"')
    """
    if len(members(type_)) > 1:
        return " or ".join(describe(t) for t in members(type_))
    if names := literal_names(type_):
        return " or ".join(f'"{n}"' for n in names)
    if typing.get_origin(type_) is tuple:
        parts = [
            "..."
            if a is Ellipsis
            else describe(a).removeprefix("an ").removeprefix("a ")
            for a in typing.get_args(type_)
        ]
        return f"a tuple ({', '.join(parts)})"
    if type_ is type(None):
        return "none"
    return {int: "an int", str: "a string", bool: "true or false"}.get(type_, "a float")


def placeholder(type_: Any) -> Any:
    """A typed empty value, so that a locked ConfigDict still knows its type."""
    concrete = next(t for t in members(type_) if t is not type(None))
    origin = typing.get_origin(concrete)
    return config_dict.placeholder(str if origin is Literal else origin or concrete)


def join(path: str, name: str) -> str:
    """A key of the section `path` in full."""
    return f"{path}.{name}" if path else name
