"""The mistakes that a model is surest of: which images, and a picture of them.

They are collected from what an evaluation asks of each example anyway; images are read
again only where the picture is drawn.
"""

import heapq
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vit_jax.data import Dataset, contact_sheet
from vit_jax.errors import UserError

MOST = 30  # mistakes that are kept
_COLUMNS = 6
_SIDE, _MARGIN = 180, 8  # of an image, at least, and of the picture, pixels


class Mistake(NamedTuple):
    """An image whose predicted class is not (one of) its label(s).

    Attributes:
      probability: that the model gives the class that it predicts.
      minus_record: -1 times the number of the record: of equally sure mistakes the
        first of the split are kept, on any mesh.
      prediction: the class.
      label: the true class; None where there may be several.
    """

    probability: float
    minus_record: int
    prediction: int
    label: int | None

    @property
    def record(self) -> int:
        return -self.minus_record


class Mistakes:
    """The surest ones of a pass over a split, in the order of its batches."""

    def __init__(self) -> None:
        self._kept: list[Mistake] = []  # a heap, the least sure first
        self._rows = 0

    def add(self, rows: Mapping[str, np.ndarray]) -> None:
        """Takes what `scores.make_step` gave for a batch, all of its rows."""
        wrong = np.flatnonzero(rows["counted"] & ~rows["correct"])
        surest = np.argsort(-rows["confidence"][wrong], kind="stable")[:MOST]
        for row in wrong[surest].tolist():
            label = int(rows["label"][row]) if "label" in rows else None
            mistake = Mistake(
                float(rows["confidence"][row]),
                -(self._rows + row),
                int(rows["prediction"][row]),
                label,
            )
            if len(self._kept) < MOST:
                heapq.heappush(self._kept, mistake)
            else:
                heapq.heappushpop(self._kept, mistake)
        self._rows += len(rows["counted"])

    def found(self) -> list[Mistake]:
        """The surest first."""
        return sorted(self._kept, key=lambda m: m[:2], reverse=True)


def describe(
    found: Sequence[Mistake], dataset: Dataset, names: Sequence[str] | None
) -> list[dict[str, Any]]:
    """For the record of an evaluation: which images, and what was said of them.

    Args:
      found: the mistakes.
      dataset: that was evaluated.
      names: of the classes; by default their numbers.
    """
    return [
        {
            "image": dataset.source.describe(mistake.record),
            "label": None if mistake.label is None else _name(mistake.label, names),
            "prediction": _name(mistake.prediction, names),
            "probability": mistake.probability,
        }
        for mistake in found
    ]


def draw(
    found: Sequence[Mistake],
    dataset: Dataset,
    names: Sequence[str] | None,
    title: str,
) -> np.ndarray | None:
    """The images as the model sees them, each with its true and its predicted class.

    Args:
      found: the mistakes.
      dataset: that was evaluated; an image that can no longer be read is left out.
      names: of the classes; by default their numbers.
      title: a line above them.

    Returns:
      uint8 [h, w, 3]; None if there is no image.
    """
    images, captions = [], []
    for mistake in found:
        try:
            image, label = dataset.source.read(mistake.record)
        except UserError:
            continue
        images.append(dataset.eval(image, dataset.image_size))
        true = (
            contact_sheet.caption(label, dataset.label_names)
            if mistake.label is None
            else _name(mistake.label, names)
        )
        said = f"{mistake.probability:.1%} {_name(mistake.prediction, names)}"
        captions.append(f"{said}\ntrue: {true}")
    if not images:
        return None
    strip = contact_sheet.Strip(
        f"{title}. The mistakes it is surest of: probability and predicted class",
        np.stack(images),
        captions,
        smallest=_SIDE,
        columns=_COLUMNS,
    )
    margin = ((_MARGIN, _MARGIN), (_MARGIN, _MARGIN), (0, 0))
    return np.pad(contact_sheet.draw([strip]), margin, constant_values=255)


def _name(number: int, names: Sequence[str] | None) -> str:
    return str(number) if names is None or number >= len(names) else names[number]
