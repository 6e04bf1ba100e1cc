"""Points of a sweep: what to override, from a grid, at random, or from the recipe.

A point is a dict such as `{"optim.learning_rate": "1e-3", "seed": "0"}`: the text that
`--config.KEY=TEXT` would have.
"""

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from vit_jax import config as configs
from vit_jax import limits
from vit_jax.errors import UserError, did_you_mean

Point = dict[str, str]


def grid(flags: Iterable[str]) -> list[Point]:
    """All combinations; the last flag varies fastest.

    >>> grid(["config.seed=0,1", "config.ema=none"])
    [{'seed': '0', 'ema': 'none'}, {'seed': '1', 'ema': 'none'}]
    """
    axes: dict[str, list[str]] = {}
    for flag in flags:
        key, text = assignment("--grid", flag, "config.optim.learning_rate=1e-3,3e-4")
        if key in axes:
            raise UserError(f"--grid {flag}: config.{key} has a grid already")
        axes[key] = split(text)
    if (count := math.prod(map(len, axes.values()))) > limits.TRIALS:
        raise UserError(
            f"the flags --grid are of {count:,} points together: a sweep has at most "
            f"{limits.TRIALS:,}; --random takes some of them"
        )
    return [
        dict(zip(axes, values, strict=True))
        for values in itertools.product(*axes.values())
    ]


def assignment(flag: str, text: str, example: str) -> tuple[str, str]:
    """The key, without "config.", and the text of `config.KEY=TEXT`."""
    key, equals, value = text.partition("=")
    if not equals or not value:
        raise UserError(f"{flag} {text}: it should be like {flag} {example}")
    return key.removeprefix("--").removeprefix("config."), value


def split(text: str) -> list[str]:
    """The parts between commas that are in no brackets.

    >>> split("(0.5,0.5),(0.1,0.2)"), split("gap,token")
    (['(0.5,0.5)', '(0.1,0.2)'], ['gap', 'token'])
    """
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([") - (character in ")]")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


@dataclasses.dataclass(frozen=True)
class Distribution:
    """What `--sample config.KEY=KIND:...` says.

    Attributes:
      kind: `log` and `uniform` are of floats, `int` includes both ends.
      low: of the numbers.
      high: of the numbers.
      choices: texts, for `choice`.
    """

    kind: Literal["log", "uniform", "int", "choice"]
    low: float = 0.0
    high: float = 0.0
    choices: tuple[str, ...] = ()

    def at(self, u: float) -> str:
        """The value of which the share `u` in [0, 1) of the distribution is below.

        >>> Distribution("log", 1e-4, 1e-2).at(0.5), Distribution("int", 1, 6).at(0.99)
        ('0.001', '6')
        """
        if self.kind == "choice":
            return self.choices[int(u * len(self.choices))]
        if self.kind == "int":
            return str(int(self.low) + int(u * (self.high - self.low + 1)))
        if self.kind == "log":
            return as_text(self.low * math.exp(u * math.log(self.high / self.low)))
        return as_text(self.low + u * (self.high - self.low))


def as_text(value: float) -> str:
    """A sampled number in four digits, so that the name of a trial tells all of it.

    >>> as_text(0.00123456)
    '0.001235'
    """
    return repr(float(f"{value:.4g}"))


_KINDS = "log:LOW:HIGH, uniform:LOW:HIGH, int:LOW:HIGH or choice:A,B,..."


def distributions(flags: Iterable[str]) -> dict[str, Distribution]:
    """What the flags `--sample config.KEY=KIND:...` say, by key.

    Raises:
      UserError: for one that says nothing that can be sampled.
    """
    found: dict[str, Distribution] = {}
    for flag in flags:
        key, text = assignment(
            "--sample", flag, "config.optim.learning_rate=log:1e-4:1e-2"
        )
        if key in found:
            raise UserError(f"--sample {flag}: config.{key} is sampled already")
        found[key] = _distribution(flag, text)
    return found


def _distribution(flag: str, text: str) -> Distribution:
    kind, _, rest = text.partition(":")
    if kind == "choice" and rest:
        return Distribution(kind, choices=tuple(split(rest)))
    if kind not in ("log", "uniform", "int"):
        hint = did_you_mean(kind, ["log", "uniform", "int", "choice"])
        raise UserError(f"--sample {flag}: it should be {_KINDS}; {hint}")
    try:
        low, high = (float(part) for part in rest.split(":"))
    except ValueError:
        raise UserError(f"--sample {flag}: it should be {kind}:LOW:HIGH") from None
    whole = low.is_integer() and high.is_integer()
    if not (-math.inf < low < high < math.inf) or (kind == "log" and low <= 0):
        above = "0 < LOW < HIGH" if kind == "log" else "LOW < HIGH"
        raise UserError(f"--sample {flag}: {above} does not hold")
    if kind == "int" and not whole:
        raise UserError(f"--sample {flag}: the ends of an int should be whole numbers")
    return Distribution(kind, low, high)


def random(space: Mapping[str, Distribution], count: int, seed: int) -> list[Point]:
    """`count` points; point i is a function of (seed, i) and of what its keys say."""
    return [
        {key: d.at(uniform(f"{seed}/{i}/{key}")) for key, d in space.items()}
        for i in range(count)
    ]


def uniform(key: str) -> float:
    """A number in [0, 1) that is a function of the text.

    >>> uniform("0/0/seed") == uniform("0/0/seed") != uniform("0/1/seed")
    True
    """
    digest = hashlib.sha256(key.encode()).digest()
    return (int.from_bytes(digest[:8]) >> 11) / 2**53


def of_recipe(recipe: str) -> list[Point]:
    """What the function `sweep()` of the recipe yields, [] if it has none.

    Raises:
      UserError: if it yields something other than dicts.
    """
    module, points = configs.recipe_module(recipe), []
    for given in module.sweep() if hasattr(module, "sweep") else ():
        if not isinstance(given, Mapping) or not given:
            raise UserError(
                f"--config={recipe}: sweep() yields {given!r}: it should yield dicts "
                'of overrides, such as {"optim.learning_rate": 1e-3, "seed": 0}'
            )
        points.append({k.removeprefix("config."): _text(v) for k, v in given.items()})
    return points


def _text(value: Any) -> str:
    """A value of Python as `--config.KEY=` takes it."""
    return value if isinstance(value, str) else repr(value)


def product(left: Sequence[Point], right: Sequence[Point]) -> list[Point]:
    """Each of `left` with each of `right`.

    Raises:
      UserError: if both set a key.
    """
    if both := {key for point in left for key in point} & {k for p in right for k in p}:
        raise UserError(f"config.{min(both)} has values from two flags: leave out one")
    return [{**a, **b} for a in left for b in right]
