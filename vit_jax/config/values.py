"""Values of a config: as text on a command line, and against the type of their key."""

import ast
import math
import types
import typing
import warnings
from typing import Any, Literal

from ml_collections import config_dict

from vit_jax.errors import UserError, did_you_mean

_SCALARS = (int, float, bool, str, types.NoneType)
_NUMBERS = (int, float)
_LARGEST_INT = 2**63  # what fits into 64 bits, as NumPy, JAX and JSON readers have them
_SHOWN = 60  # characters of a value in a message
# What `ast.literal_eval` raises for text that is no value, or is nested too deeply.
_NO_LITERAL = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)


def parse(text: str, type_: Any) -> Any:
    """The value that the text on a command line means, given the type of its key.

    >>> parse("1", float), parse("1e4", int), parse("none", int | None)
    (1.0, 10000, None)
    >>> parse("14,16", tuple[int, int]), parse("false", bool), parse("7", str)
    ((14, 16), False, '7')
    >>> parse("q,k", tuple[Literal["q", "k"], ...] | None)
    ('q', 'k')
    >>> parse("1,2", Literal["a"] | tuple[float, ...]), parse("a", Literal["a"] | int)
    ((1.0, 2.0), 'a')
    """
    allowed = members(type_)
    if type(None) in allowed and text.lower() in ("none", "null", ""):
        return None
    if bool in allowed and text.lower() in ("true", "false"):
        return text.lower() == "true"
    others = [t for t in allowed if not literal_names(t) and t is not type(None)]
    names = [name for t in allowed for name in literal_names(t)]
    if str in others or not others or text in names:
        return text
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd but valid Python
            value = ast.literal_eval(text)
    except _NO_LITERAL:
        parts = [part for t in allowed for part in typing.get_args(t)]
        of_names = any(literal_names(part) for part in parts)
        return tuple(text.split(",")) if of_names else text  # coerce says what is wrong
    return fit(value, type_)[1]


def coerce(where: str, value: Any, type_: Any) -> Any:
    """The value as its type says (1 -> 1.0 for a float), or a UserError."""
    if isinstance(value, config_dict.FieldReference):
        value = value.get()
    fits, result = fit(value, type_)
    if fits:
        _refuse_extremes(where, result)
        return result
    shown = show(value)
    names = [n for t in members(type_) for n in literal_names(t)]
    if names and isinstance(value, str):
        hint = did_you_mean(value, names)
        if "valid names" in hint and any(t in _NUMBERS for t in _leaves(type_)):
            hint = f"it should be {describe(type_)}"
        raise UserError(f"config.{where} is {shown}; {hint}")
    kind = type(value).__name__
    raise UserError(
        f"config.{where} is {shown} ({kind}): it should be {describe(type_)}"
    )


def _refuse_extremes(where: str, value: Any) -> None:
    """No key takes an infinite number, or an integer of more than 64 bits."""
    if isinstance(value, tuple):
        for element in value:
            _refuse_extremes(where, element)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"config.{where} is {value}: it should be finite")
    elif isinstance(value, int) and not -_LARGEST_INT <= value < _LARGEST_INT:
        raise UserError(
            f"config.{where} is {value:.3g}: it should fit into 64 bits"
            if abs(value) < 10**300
            else f"config.{where} is too large: it should fit into 64 bits"
        )


def show(value: Any) -> str:
    """A value in a message, cut where it is long.

    >>> show("a"), show((1, 2)), len(show("a" * 1000))
    ('"a"', '(1, 2)', 65)
    """
    try:
        text = f'"{value}"' if isinstance(value, str) else f"{value!r}"
    except ValueError:  # an integer of more digits than Python prints
        text = "a number of thousands of digits"
    return text if len(text) <= _SHOWN + 5 else f"{text[:_SHOWN]} ..." + text[-1]


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
        return isinstance(value, str | int) and value in args, value
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
        return (True, float(value)) if abs(value) < 2**1023 else (True, math.inf)
    if type_ is int and type(value) is float and value.is_integer():
        return True, int(value)
    return type(value) is type_, value


def members(type_: Any) -> tuple[Any, ...]:
    """The types of a union; a type alone as a union of one."""
    union = typing.get_origin(type_) in (typing.Union, types.UnionType)
    return typing.get_args(type_) if union else (type_,)


def _leaves(type_: Any) -> tuple[Any, ...]:
    """The types that a type is made of."""
    args = [a for a in typing.get_args(type_) if a is not Ellipsis]
    if not args or literal_names(type_):
        return (type_,)
    return tuple(leaf for a in args for leaf in _leaves(a))


def literal_names(type_: Any) -> tuple[str, ...]:
    """The values of a `Literal`, else none."""
    return typing.get_args(type_) if typing.get_origin(type_) is Literal else ()


def accepts_none(type_: Any) -> bool:
    """Whether a key may be left empty."""
    return type(None) in members(type_)


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
    origins = {
        str if literal_names(t) else typing.get_origin(t) or t
        for t in members(type_)
        if t is not type(None)
    }
    return config_dict.placeholder(origins.pop() if len(origins) == 1 else object)
