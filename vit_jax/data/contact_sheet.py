"""A picture of what the model will see: transformed images with their labels."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from vit_jax import lettering
from vit_jax.data.dataset import Dataset

_LARGEST = 224  # side of an image in the picture, pixels
_MARGIN = 4
_LINE = 18  # height of a line of text
_TEXT = 10  # and of its capital letters


class Strip(NamedTuple):
    """Images under one title.

    Attributes:
        title: a line.
        images: uint8 [n, h, w, 3].
        captions: one for each image, of one line or several.
        smallest: side of an image in the picture, pixels.
        columns: images beside each other.
    """

    title: str
    images: np.ndarray
    captions: Sequence[str]
    smallest: int = 96
    columns: int = 8


def of_training(
    title: str, dataset: Dataset, *, batch_size: int, seed: int, count: int
) -> Strip:
    """The first images of step 0, with all that is drawn at random on the host."""
    rows = np.arange(min(count, batch_size))
    batches = dataset.train_batches(
        batch_size=batch_size, seed=seed, start_step=0, total_steps=1, rows=rows
    )
    batch = next(batches)
    batches.close()
    captions = [caption(label, dataset.label_names) for label in batch["label"]]
    return Strip(title, batch["image"], captions)


def of_evaluation(title: str, dataset: Dataset, *, count: int) -> Strip:
    """Images from all over the split, since its order may be that of the classes."""
    n = dataset.num_examples
    records = np.linspace(0, n - 1, min(count, n)).astype(np.int64).tolist()
    pairs = [dataset.source.read(record) for record in records]
    images = [dataset.eval(image, dataset.image_size) for image, _ in pairs]
    captions = [caption(label, dataset.label_names) for _, label in pairs]
    return Strip(title, np.stack(images), captions)


def caption(label: int | np.ndarray, names: Sequence[str] | None) -> str:
    """The names of a label's classes, or their numbers.

    >>> caption(np.int32(1), ["cat", "dog"]), caption(np.array([0.0, 1.0]), None)
    ('dog', '1')
    """
    vector = np.ndim(label) > 0
    classes = np.flatnonzero(label).tolist() if vector else [int(label)]
    known = (
        names if names is not None and max(classes, default=0) < len(names) else None
    )
    texts = [known[i] if known else str(i) for i in classes]
    return ", ".join(texts) or "no class"


def draw(strips: Sequence[Strip]) -> np.ndarray:
    """All strips below each other, uint8 [h, w, 3], RGB."""
    parts = [_draw(strip) for strip in strips]
    width = max(part.shape[1] for part in parts)
    padding = [((0, _MARGIN), (0, width - part.shape[1]), (0, 0)) for part in parts]
    padded = [
        np.pad(part, p, constant_values=255)
        for part, p in zip(parts, padding, strict=True)
    ]
    return np.concatenate(padded)


def _draw(strip: Strip) -> np.ndarray:
    side = max(strip.images.shape[1:3])
    scale = max(1, math.ceil(strip.smallest / side))
    scale = _LARGEST / side if side > _LARGEST else scale
    height, width = (round(s * scale) for s in strip.images.shape[1:3])
    columns = min(len(strip.images), strip.columns)
    rows = -(-len(strip.images) // columns)
    lines = max(caption.count("\n") + 1 for caption in strip.captions)
    cell = height + lines * _LINE + _MARGIN, width + _MARGIN
    room = max(columns * cell[1], lettering.width(strip.title, _TEXT) + _MARGIN)
    canvas = np.full((_LINE + _MARGIN + rows * cell[0], room, 3), 255, np.uint8)
    _text(canvas, strip.title, 0, 0, room)
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    for i, image in enumerate(strip.images):
        top = _LINE + _MARGIN + i // columns * cell[0]
        left = i % columns * cell[1]
        shown = cv2.resize(image, (width, height), interpolation=how)
        canvas[top : top + height, left : left + width] = shown
        for n, line in enumerate(strip.captions[i].split("\n")):
            _text(canvas, line, top + height + n * _LINE, left, width)
    return canvas


def _text(canvas: np.ndarray, text: str, top: int, left: int, room: int) -> None:
    """A line of text, cut to its room in pixels."""
    text = lettering.fitted(text, _TEXT, room)
    place = left, top + (_LINE + _TEXT) // 2
    lettering.write(canvas, text, place, _TEXT)
