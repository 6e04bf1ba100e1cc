"""Split expressions, `train`, `train[:99%]`, `train[5000:]+test`, as in TFDS.

The grammar and the rounding are those of tensorflow_datasets (its documentation,
"Splits and slicing"): percentages round to the closest record, negative numbers count
from the end, `+` joins. Unlike TFDS, shards cannot be named, and a boundary past the
end is cut to the end with no error only where TFDS does the same.
"""

import re
from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

from vit_jax.errors import UserError, did_you_mean

Purpose = Literal["train", "test", "validation"]

# What people call their splits, in any case; the first are TFDS's names.
_CALLED: dict[Purpose, tuple[str, ...]] = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("validation", "val", "valid", "dev"),
}
_PART = re.compile(r"(?P<name>[\w-]+)(\[(?P<from>[^:\]]*):(?P<to>[^:\]]*)\])?")
_BOUNDARY = re.compile(r"(?P<value>-?\d[\d_]*(\.\d+)?)(?P<percent>%?)")


class Range(NamedTuple):
    """Records start .. stop-1 of one split."""

    name: str
    start: int
    stop: int


def purpose(name: str) -> Purpose | None:
    """What a split is for, by its name.

    >>> purpose("Training"), purpose("val"), purpose("fold1")
    ('train', 'validation', None)
    """
    for what, names in _CALLED.items():
        if name.lower() in names:
            return what
    return None


def find(name: str, existing: Collection[str]) -> str | None:
    """The split that `name` means: itself, or one that is called by another word.

    Where "test" is asked for and there is none, it is the validation split.

    >>> find("train", ["Train", "Test"]), find("test", ["train", "val"])
    ('Train', 'val')
    >>> find("val", ["train", "test"])
    """
    if name in existing:
        return name
    what = purpose(name)
    if what is None:
        return None
    for kind in (what, "validation") if what == "test" else (what,):
        for word in _CALLED[kind]:
            found = sorted(n for n in existing if n.lower() == word)
            if found:
                return found[0]
    return None


def split_names(split: str) -> list[str]:
    """The splits that an expression names.

    >>> split_names("train[:50%]+test")
    ['train', 'test']
    """
    return [_match(part, split)["name"] for part in split.split("+")]


def resolve(
    split: str,
    sizes: Mapping[str, int],
    *,
    where: str,
    named: Mapping[str, str] | None = None,
) -> list[Range]:
    """The records that a split expression means.

    Args:
        split: the expression.
        sizes: number of records of each split that exists.
        where: what the splits belong to, for error messages.
        named: more splits, by expressions of those that exist; they go first.

    Raises:
        UserError: bad syntax, a split that does not exist, or nothing left of one.

    >>> resolve("train[:99%]", {"train": 8000}, where="mnist")
    [Range(name='train', start=0, stop=7920)]
    >>> resolve("val", {"train": 99}, where="mnist", named={"val": "train[90:]"})
    [Range(name='train', start=90, stop=99)]
    """
    if not named:
        return [_resolve_part(part, split, sizes, where) for part in split.split("+")]
    means = {
        name: resolve(named[name], sizes, where=where)
        for name in split_names(split)
        if name in named
    }
    every = {**sizes, **dict.fromkeys(named, 0)}
    every |= {name: sum(r.stop - r.start for r in means[name]) for name in means}
    ranges: list[Range] = []
    for part in resolve(split, every, where=where):
        ranges += _cut(means[part.name], part) if part.name in means else [part]
    return ranges


def _cut(ranges: list[Range], part: Range) -> list[Range]:
    """Records part.start .. part.stop-1 of these ranges, one after the other."""
    result, first = [], 0
    for r in ranges:
        start = r.start + max(part.start - first, 0)
        stop = min(r.stop, r.start + part.stop - first)
        first += r.stop - r.start
        if start < stop:
            result.append(Range(r.name, start, stop))
    return result


def _match(part: str, split: str) -> re.Match[str]:
    match = _PART.fullmatch(part.strip())
    if match is None:
        raise UserError(
            f'split "{split}" is not understood; expected for example train, '
            "train[:99%], train[5000:], test[10%:20%] or train+test."
        )
    return match


def _resolve_part(part: str, split: str, sizes: Mapping[str, int], where: str) -> Range:
    match = _match(part, split)
    name = match["name"]
    if name not in sizes:
        raise UserError(
            f'{where} has no split "{name}"; {did_you_mean(name, sizes)} '
            f"(it has: {', '.join(sizes) or 'none'})."
        )
    size = sizes[name]
    start, stop = 0, size
    if match["from"] is not None:
        if not (match["from"].strip() or match["to"].strip()):
            raise UserError(f'split "{split}": a slice needs a start or an end.')
        start = _boundary(match["from"], split, size, default=0)
        stop = _boundary(match["to"], split, size, default=size)
    if start >= stop:
        raise UserError(
            f'split "{split}" of {where} is empty: "{name}" has {size} records, and '
            f"this asks for {start} up to (not including) {stop}."
        )
    return Range(name, start, stop)


def _boundary(text: str, split: str, size: int, *, default: int) -> int:
    if not text.strip():
        return default
    match = _BOUNDARY.fullmatch(text.strip())
    if match is None or ("." in match["value"] and not match["percent"]):
        raise UserError(
            f'split "{split}": "{text}" is not understood; expected a number of '
            "records such as 5000 or -100, or a percentage such as 10%."
        )
    if match["percent"]:
        value = round(float(match["value"]) * size / 100.0)
    else:
        value = int(match["value"])
    if abs(value) > size:
        raise UserError(
            f'split "{split}": {text.strip()} is past the end; it has {size} records.'
        )
    return value + size if value < 0 else value
