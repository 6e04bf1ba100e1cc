"""The datasets that have a name here: what is published of them, and their labels.

`config.data.name` may be any of `ENTRIES`, which then gives the default keys, splits
and labels. docs/datasets.md is made of this table: python -m vit_jax.data.catalog.
"""

from vit_jax.data.catalog import common, imagenet, vtab
from vit_jax.data.catalog.entry import Derived, Entry, Features
from vit_jax.errors import UserError, did_you_mean

__all__ = ["ENTRIES", "Derived", "Entry", "Features", "find", "stored_name", "table"]

ENTRIES: dict[str, Entry] = {**common.ENTRIES, **imagenet.ENTRIES, **vtab.ENTRIES}


def find(name: str) -> Entry | None:
    """The entry of a dataset; None if it has none.

    Args:
        name: NAME, or NAME/CONFIG for a dataset that has several; a version, :1.2.3, is
            no part of the name.

    Raises:
        UserError: for a task of VTAB that there is not.

    >>> find("imagenet_v2/topimages:3.0.0").stored
    {'test': 10000}
    """
    name = name.partition(":")[0]
    if name in ENTRIES:
        return ENTRIES[name]
    dataset, _, config = name.partition("/")
    if dataset == "vtab":
        tasks = [entry for entry in ENTRIES if entry.startswith("vtab/")]
        raise UserError(f'config.data.name="{name}": {did_you_mean(name, tasks)}')
    entry = ENTRIES[dataset] if dataset in ENTRIES else None
    return entry if entry is not None and config in entry.configs else None


def stored_name(name: str) -> str:
    """The dataset on disk that holds what has this name here.

    >>> stored_name("vtab/sun397:4.0.0"), stored_name("imagenet_v2/topimages")
    ('sun397/tfds:4.0.0', 'imagenet_v2/topimages')
    """
    entry, (plain, colon, version) = find(name), name.partition(":")
    if entry is None or plain not in ENTRIES:
        return name
    return f"{entry.stored_as}{colon}{version}"


def table() -> str:
    """All entries as a table in Markdown."""
    rows = ["| name | classes | records | access | source of the figures |"]
    rows.append("|---|---|---|---|---|")
    for name, entry in ENTRIES.items():
        shown = f"`{name}`"
        if entry.configs:
            few = entry.configs if len(entry.configs) < 5 else (*entry.configs[:1], "…")
            shown += " / " + ", ".join(f"`{c}`" if c != "…" else c for c in few)
        if entry.group is not None:
            shown += f", {entry.group}"
        classes = f"{entry.num_classes:,}"
        if entry.multi_label:
            classes += ", several or none an image"
        if entry.classes_present is not None:
            classes += f", {len(entry.classes_present)} of them present"
        counts = entry.counts().items()
        records = ", ".join(f"{split} {count:,}" for split, count in counts)
        cells = (shown, classes, records, entry.access, entry.source)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"
