"""What was found while the records were written."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vit_jax.data.prepare.classes import Splits
from vit_jax.data.prepare.shards import DIGEST

_LISTED = 20  # in a message; the file has all


class Duplicate(NamedTuple):
    """An image with the same bytes as one that comes before it."""

    split: str
    row: int
    first_split: str
    first_row: int


def duplicates(
    splits: Splits, images: Mapping[str, np.ndarray], bad: Mapping[str, np.ndarray]
) -> list[Duplicate]:
    """All but the first of the images that have the same bytes.

    "train" comes after the other splits, which are evaluated and should stay whole;
    within a split the first is the one whose name sorts first.

    Args:
        splits: the images.
        images: digests of each split's, uint8 [n, DIGEST].
        bad: which do not decode, bool [n].
    """
    order = sorted(splits.items, key=lambda split: (split == "train", split))
    sizes = [len(splits.items[split]) for split in order]
    digests = np.concatenate([images[split] for split in order])
    halves = np.ascontiguousarray(digests).view(np.uint64).reshape(-1, DIGEST // 8)
    split_of = np.repeat(np.arange(len(order)), sizes)
    row_of = np.concatenate([np.arange(n) for n in sizes])
    good = np.flatnonzero(~np.concatenate([bad[split] for split in order]))
    good = good[np.lexsort(halves[good].T)]
    same = (halves[good[1:]] == halves[good[:-1]]).all(axis=1)
    found = []
    for group in _runs(good, same):
        places = [(int(split_of[i]), int(row_of[i])) for i in group]
        first, *rest = sorted(
            places, key=lambda p: (p[0], splits.items[order[p[0]]].name(p[1]))
        )
        found += [
            Duplicate(order[s], row, order[first[0]], first[1]) for s, row in rest
        ]
    return found


def _runs(values: np.ndarray, same: np.ndarray) -> list[list[int]]:
    """Neighbours of which each is the same as the next."""
    edges = np.flatnonzero(np.diff(same.astype(np.int8), prepend=0, append=0))
    pairs = zip(edges[0::2].tolist(), edges[1::2].tolist(), strict=True)
    return [values[start : stop + 1].tolist() for start, stop in pairs]


def duplicate_line(splits: Splits, found: Duplicate) -> dict[str, Any]:
    """A line of duplicates.jsonl."""
    items, first = splits.items[found.split], splits.items[found.first_split]
    labels = items.labels.row(found.row), first.labels.row(found.first_row)
    what = f"the same bytes as {first.name(found.first_row)} of {found.first_split}"
    return {
        "path": items.name(found.row),
        "split": found.split,
        "what": what + ("" if labels[0] == labels[1] else ", with another label"),
        "where": items.where(found.row),
        "first": first.name(found.first_row),
        "first_split": found.first_split,
    }


def summary_of_duplicates(
    lines: Sequence[Mapping[str, Any]], *, dropped: bool
) -> list[str]:
    """For the person who reads the terminal."""
    if not lines:
        return ["No duplicates."]
    done = "left out" if dropped else "kept: --drop_duplicates leaves them out"
    relabelled = sum("another label" in line["what"] for line in lines)
    found = [
        f"{len(lines)} duplicates ({done}); {relabelled} of them with another label."
    ]
    across: dict[tuple[str, str], int] = {}
    for line in lines:
        if line["split"] != line["first_split"]:
            pair = line["split"], line["first_split"]
            across[pair] = across.get(pair, 0) + 1
    for (split, first), n in sorted(across.items()):
        found.append(
            f"Left out of {split}: {n} images that are in {first} too."
            if dropped
            else f"LEAKAGE: {n} images of {split} ARE in {first} too."
        )
    return found


def listed(lines: Sequence[Mapping[str, Any]]) -> str:
    """The first lines of a report, for a message."""
    shown = [f"  {x['split']}: {x['path']} {x['what']}" for x in lines[:_LISTED]]
    if len(lines) > _LISTED:
        shown.append(f"  and {len(lines) - _LISTED} more")
    return "\n".join(shown)
