"""Classes of data and of models, matched by their names.

Class number 3 of one dataset may be number 1 of another: where both sides have names,
the names decide.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

_WORDNET = re.compile(r"n\d{8}")
_NUMBERED = re.compile(r"\D*(\d+)")
_SHOWN = 10


class Match(NamedTuple):
    """Where the classes of one side are on the other.

    Attributes:
      by: "name", or "number" where there are no two lists of names to compare.
      places: for each class its number on the other side, -1 for an unknown name;
        None by number.
      why: the classes are matched by number; "" by name.
    """

    by: Literal["name", "number"]
    places: tuple[int, ...] | None
    why: str = ""

    @property
    def unknown(self) -> tuple[int, ...]:
        """The classes that the other side does not know."""
        return tuple(i for i, place in enumerate(self.places or ()) if place < 0)

    @property
    def same(self) -> bool:
        """Whether every class has the same number on both sides."""
        return self.places is None or self.places == tuple(range(len(self.places)))


def match(names: Sequence[str] | None, others: Sequence[str] | None) -> Match:
    """Where each of `names` is among `others`.

    Upper and lower case, spaces and punctuation make no difference, unless classes
    differ in them alone. Lists such as "0", "1", ... or "LABEL_0", "LABEL_1", ... are
    taken for no names where they do not fit. WordNet ids of ImageNet ("n01440764")
    cannot be compared with words: if the words are in an order of their own, they are
    taken to be ImageNet's; if they are sorted, as folders are, they are unknown.

    >>> match(("dog", "cat"), ("Cat", "cow", "dog")).places
    (2, 0)
    >>> match(("dog", "owl"), ("cat", "dog")).unknown
    (1,)
    >>> match(("dog", "cat"), ("LABEL_0", "LABEL_1")).by
    'number'
    """
    if names is None or others is None:
        both = names is None and others is None
        side = "neither side has" if both else "only one side has"
        return Match("number", None, f"{side} names of classes")
    places = _places(names, others)
    if min(places, default=0) >= 0:
        return Match("name", places)
    numbered = _are_numbers(names) or _are_numbers(others)
    if numbered or _are_two_lists_of_imagenet(names, others):
        why = f'"{names[0]}" and "{others[0]}" cannot be compared'
        return Match("number", None, why)
    return Match("name", places)


def listed(names: Sequence[str]) -> str:
    """The first names, in quotes.

    >>> listed(["a", "b"])
    '"a", "b"'
    """
    more = len(names) - _SHOWN
    shown = ", ".join(f'"{name}"' for name in names[:_SHOWN])
    return f"{shown} and {more} more" if more > 0 else shown


def _places(names: Sequence[str], others: Sequence[str]) -> tuple[int, ...]:
    key = (
        _plain if _tells_apart(_plain, names) and _tells_apart(_plain, others) else str
    )
    found: dict[str, list[int]] = {}
    for place, name in enumerate(others):
        found.setdefault(key(name), []).append(place)
    counts = Counter(key(name) for name in names)
    seen: Counter[str] = Counter()
    places = []
    for name in map(key, names):
        # A name of two classes, such as ImageNet's cranes: the first is the first.
        there = found[name] if name in found else []
        places.append(there[seen[name]] if len(there) == counts[name] else -1)
        seen[name] += 1
    return tuple(places)


def _plain(name: str) -> str:
    """Letters and digits alone.

    >>> _plain("T-Shirt / top")
    'tshirttop'
    """
    name = unicodedata.normalize("NFC", name).casefold()
    return "".join(c for c in name if c.isalnum() or unicodedata.combining(c))


def _tells_apart(key: Callable[[str], str], names: Sequence[str]) -> bool:
    plain = {key(name) for name in names}
    return "" not in plain and len(plain) == len(set(names))


def _are_numbers(names: Sequence[str]) -> bool:
    found = [_NUMBERED.fullmatch(name) for name in names]
    return all(m is not None and int(m[1]) == i for i, m in enumerate(found))


def _are_two_lists_of_imagenet(names: Sequence[str], others: Sequence[str]) -> bool:
    """WordNet ids and as many words, which are not in the order of folders."""
    are_ids = [all(_WORDNET.fullmatch(n) for n in side) for side in (names, others)]
    if are_ids[0] == are_ids[1] or len(names) != len(others):
        return False
    words = list(others if are_ids[0] else names)
    return words != sorted(words)
