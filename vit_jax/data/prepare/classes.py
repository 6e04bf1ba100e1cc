"""From the parts of all sources to splits of numbered, sorted records."""

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from vit_jax.data import sampler
from vit_jax.data.prepare.items import Items, Labels, join
from vit_jax.data.prepare.sources import Part
from vit_jax.errors import UserError

_SPLIT = re.compile(r"[A-Za-z][\w-]*")
_NAMED = 10  # at most so many classes are named in a message


@dataclasses.dataclass(frozen=True)
class Splits:
    """What is to be written.

    Attributes:
        items: of each split, in the order of its records.
        classes: names, in the order of their numbers.
        multi_label: whether a record has any number of classes, not one.
    """

    items: dict[str, Items]
    classes: tuple[str, ...]
    multi_label: bool


def number(parts: Sequence[Part], given: tuple[str, ...] | None) -> Splits:
    """Joins the parts of each split, numbers the classes, shuffles the records.

    Args:
        parts: of all sources.
        given: the names of the classes; None: those that the sources say in order;
            else the sorted names of the classes in "train", or of all splits where
            there is no "train".

    Raises:
        UserError: a class that there is not, or two images of one name.
    """
    classes = _classes(parts, given)
    check_names("class", classes)
    if twice := [name for name, n in Counter(classes).items() if n > 1]:
        raise UserError(
            f"the class {twice[0]!r} is named twice; give the classes with "
            "--classes=FILE, each once."
        )
    for split in dict.fromkeys(part.split for part in parts):
        if not _SPLIT.fullmatch(split):
            raise UserError(
                f"{split!r} cannot be the name of a split: expected letters, digits, "
                '"-" and "_", after a letter, as in SPLIT=PATH.'
            )
    index = {name: i for i, name in enumerate(classes)}
    groups: dict[str, list[Items]] = {}
    for split, items in parts:
        labels = _numbered(items, index, split)
        groups.setdefault(split, []).append(dataclasses.replace(items, labels=labels))
    splits = {s: _in_order(join(groups[s]), s) for s in sorted(groups)}
    labels = [part.items.labels for part in parts]
    multi_label = any(of.several or of.counts().max(initial=0) > 1 for of in labels)
    for split, items in splits.items() if not multi_label else ():
        if without := np.flatnonzero(items.labels.counts() == 0).tolist():
            raise UserError(
                f"split {split}: {len(without)} images have no label, such as "
                f"{items.name(without[0])}; give each one, or leave them out."
            )
    return Splits(splits, classes, multi_label)


def check_names(what: str, names: Iterable[str]) -> None:
    """Refuses names that the files of a dataset cannot hold, one a line in UTF-8.

    Raises:
        UserError: empty, with a line break, or not UTF-8 on disk.
    """
    for name in names:
        wrong = "is empty" if not name.strip() else ""
        if len(name.splitlines()) > 1 or name != name.strip("\r\n"):
            wrong = "has a line break"
        try:
            name.encode()
        except UnicodeEncodeError:
            wrong = "is not UTF-8"
        if wrong:
            raise UserError(
                f"the name of the {what} {os.fsencode(name)!r} {wrong}: rename it "
                "(folders: convmv -f latin1 -t utf-8 renames a whole tree)."
                if wrong == "is not UTF-8"
                else f"the name of the {what} {name!r} {wrong}: rename it."
            )


def _classes(parts: Sequence[Part], given: tuple[str, ...] | None) -> tuple[str, ...]:
    labels = [part.items.labels for part in parts]
    if given is not None:
        return given
    if any(of.ordered for of in labels):
        names = {of.names for of in labels}
        if len(names) > 1:
            raise UserError(
                "the sources name different classes, or in different orders; give all "
                "of them with --classes=FILE."
            )
        return labels[0].names or ()
    if all(of.names is None for of in labels):
        largest = max(int(of.values.max(initial=0)) for of in labels)
        return tuple(str(i) for i in range(largest + 1))
    # Where there is a split "train", what it has not cannot be learned.
    known = [p for p in parts if p.split == "train"] or parts
    return tuple(sorted({n for p in known for n in p.items.labels.names or ()}))


def _numbered(items: Items, index: Mapping[str, int], split: str) -> Labels:
    labels = items.labels
    if labels.names is None:
        bad = (labels.values < 0) | (labels.values >= len(index))
        if bad.any():
            label = int(labels.values[bad][0])
            raise UserError(
                f"{items.containers[0]}, split {split}: label {label} is out of range "
                f"0..{len(index) - 1} ({int(bad.sum())} of {len(bad)} labels are); "
                "leave out what has no labels, or give all classes with --classes=FILE."
            )
        return labels
    used = {labels.names[i] for i in np.unique(labels.values).tolist()}
    if unknown := sorted(used - set(index)):
        raise UserError(
            f"split {split} has {len(unknown)} classes that the split train, or the "
            f"file of --classes, has not: {', '.join(unknown[:_NAMED])}."
        )
    table = np.array([index.get(name, -1) for name in labels.names], np.int32)
    values = table[labels.values] if len(table) else labels.values
    return labels._replace(values=values, names=tuple(index))


def _in_order(items: Items, split: str) -> Items:
    """Sorted by name, then shuffled: the order depends on names alone."""
    by_name = np.argsort(items.names, kind="stable")
    names = items.names[by_name]
    same = np.flatnonzero(names[1:] == names[:-1])
    if len(same):
        first, second = by_name[same[0] : same[0] + 2].tolist()
        raise UserError(
            f"split {split} has two images called {items.name(first)}: in "
            f"{items.where(first)} and in {items.where(second)}; rename one, or leave "
            "out a source."
        )
    return items.take(sampler.fixed_order(items.names))
