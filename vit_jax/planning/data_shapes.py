"""The shape of a config's training data, without the data."""

from typing import Any

from vit_jax.data import catalog, shapes
from vit_jax.data.shapes import DataShape
from vit_jax.errors import UserError


def of_config(data: dict[str, Any], num_examples: int | None = None) -> DataShape:
    """The shape of `config.data`.

    Args:
      data: the section, complete.
      num_examples: of the training split, for data that the catalog does not have.

    Raises:
      UserError: if the split is not one of a dataset that the catalog has.
    """
    known, num_classes = of_sets(data)
    num_examples = known if num_examples is None else num_examples
    if num_examples is not None and num_examples < 1:
        raise UserError(f"--num_examples={num_examples}: it should be at least 1")
    return shapes.of_section(data, num_classes=num_classes, num_examples=num_examples)


def of_sets(data: dict[str, Any]) -> tuple[int | None, int | None]:
    """Published examples and classes of `config.data`, or of all parts of its mixture.

    Each is None if it is not known of every part.
    """
    sets = data["mixture"].values() if data["name"] == "mixture" else [data]
    counts, classes = [], set()
    for part in sets:
        entry = catalog.find(part["name"])
        if entry is None:
            return None, None
        split = data["split"] if part["split"] is None else part["split"]
        counts.append(entry.count(split, where=part["name"]))
        classes.add(entry.num_classes)
    return sum(counts), classes.pop() if len(classes) == 1 else None
