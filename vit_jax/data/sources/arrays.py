"""Images that lie in memory, all of one size."""

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from vit_jax.data import holdout, splits
from vit_jax.data.crop import Crop, cut
from vit_jax.data.splits import Range
from vit_jax.errors import UserError

_FINGERPRINT_IMAGES = 64
_MANY_CLASSES = 1000  # more than this, and more than records, are no class numbers


class ArraySource:
    """Images in memory, gathered a whole batch at a time.

    Attributes:
        images: uint8 [n, h, w, c] with c = 1 (grey) or 3 (RGB).
        ranges: which records of which split these are, in order.
        implied_classes: one more than the largest class number of all splits; None
            where it cannot be a number of classes.
        See `base.Source` for the others.
    """

    in_memory = True
    sample = ""

    def __init__(
        self,
        images: Sequence[np.ndarray],
        labels: Sequence[np.ndarray],
        *,
        ranges: Sequence[Range],
        name: str,
        num_classes: int | None,
        label_names: tuple[str, ...] | None = None,
        implied_classes: int | None = None,
        notes: tuple[str, ...] = (),
    ):
        """Joins the records of `ranges`; images[i] and labels[i] are a whole split's.

        Args:
            images: uint8 [n_i, h, w] or [n_i, h, w, c].
            labels: integers [n_i] or multi-hot [n_i, k].
            ranges: what to take of each.
            name: for messages.
            num_classes: where known.
            label_names: where known.
            implied_classes: see above.
            notes: see `base.Source`.

        Raises:
            UserError: unequal lengths, or of a shape or type that is not images.
        """
        parts = []
        for i, part in enumerate(ranges):
            _check(images[i], labels[i], f"{name} {part.name}")
            image = images[i][part.start : part.stop]
            label = labels[i][part.start : part.stop]
            image = image if image.ndim == 4 else image[..., None]
            parts.append((image, label.astype(np.int32 if label.ndim == 1 else "f4")))
        if len({(image.shape[1:], label.shape[1:]) for image, label in parts}) > 1:
            raise UserError(f"{name}: the joined splits differ in size of image.")
        self.images = _join([image for image, _ in parts])
        self._labels = _join([label for _, label in parts])
        self.ranges = tuple(ranges)
        self.name = name
        self.multi_hot = self._labels.ndim == 2
        self.num_classes = self._labels.shape[1] if self.multi_hot else num_classes
        self.label_names = label_names
        self.implied_classes, self.notes = implied_classes, notes
        self.fingerprint = self._digest()

    def __len__(self) -> int:
        return len(self.images)

    def read(
        self, index: int, crop: Crop | None = None
    ) -> tuple[np.ndarray, int | np.ndarray]:
        image = cut(self.images[index], crop)
        label = self._labels[index]
        image = np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image
        return image, label if self.multi_hot else int(label)

    def labels(self) -> np.ndarray:
        return self._labels

    def describe(self, index: int) -> str:
        for part in self.ranges:
            if index < part.stop - part.start:
                return f"{self.name}, split {part.name}, record {part.start + index}"
            index -= part.stop - part.start
        raise IndexError(index)

    def _digest(self) -> str:
        digest = hashlib.sha256(repr((self.ranges, self.images.shape)).encode())
        some = np.linspace(0, len(self) - 1, _FINGERPRINT_IMAGES).astype(int)
        digest.update(self.images[some].tobytes())
        digest.update(self._labels.tobytes())
        return digest.hexdigest()[:16]


class Loaded(NamedTuple):
    """One split.

    Attributes:
        images: uint8 [n, h, w] or [n, h, w, c].
        labels: integers [n] or multi-hot [n, k].
    """

    images: np.ndarray
    labels: np.ndarray


def open_arrays(
    split: str,
    existing: Sequence[str],
    load: Callable[[str], Loaded],
    *,
    name: str,
    held_out: float,
    labels: Sequence[np.ndarray],
    label_names: tuple[str, ...] | None = None,
) -> ArraySource:
    """The records of a split, in the order in which they lie, and so are slices.

    Args:
        split: see `splits`; also by another name, such as val for validation.
        existing: the splits; none where all records lie together.
        load: reads one of them, or "".
        name: for messages.
        held_out: see `holdout`; 0 is nothing.
        labels: of all splits: they say how many classes there are.
        label_names: where known.

    Raises:
        UserError: there is no such split, or see `ArraySource`.
    """
    holdout.check_effect(held_out, existing, name)
    loaded, notes = dict[str, Loaded](), list[str]()
    wanted = splits.split_names(split)
    places = {n: holdout.place(n, existing, held_out) for n in wanted}
    holdout.check_distinct(places, name)
    for wanted_name, place in places.items():
        if place is None:
            continue
        part = load(place.split)
        notes += holdout.note(name, wanted_name, place)
        if place.held is not None and len(part.images) == len(part.labels):
            names = [b"%d" % i for i in range(len(part.labels))]
            held = holdout.choose(part.labels, names, held_out)
            notes.append(f"{name}: {holdout.describe(held, held_out)}")
            rows = held == place.held
            part = Loaded(part.images[rows], part.labels[rows])
        loaded[wanted_name] = part
    sizes = dict.fromkeys(existing or ("train", "test"), 0)
    sizes |= {n: len(part.images) for n, part in loaded.items()}
    try:
        ranges = splits.resolve(split, sizes, where=name)
    except UserError as e:
        hint = "" if held_out else holdout.advice(wanted, existing)
        raise UserError(f"{e}{hint}") from e
    return ArraySource(
        [loaded[r.name].images for r in ranges],
        [loaded[r.name].labels for r in ranges],
        ranges=ranges,
        name=name,
        num_classes=None if label_names is None else len(label_names),
        label_names=label_names,
        implied_classes=_implied_classes(labels),
        notes=tuple(dict.fromkeys(notes)),
    )


def _implied_classes(labels: Sequence[np.ndarray]) -> int | None:
    if any(array.ndim != 1 or array.dtype.kind not in "iu" for array in labels):
        return None
    classes = 1 + max((int(array.max()) for array in labels if len(array)), default=-1)
    # Years, say, or numbers of articles: nobody wants a head of 2,026 classes.
    few = classes <= max(_MANY_CLASSES, sum(map(len, labels)))
    return classes if classes > 0 and few else None


def _join(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _check(images: np.ndarray, labels: np.ndarray, where: str) -> None:
    shape = images.shape
    is_image = len(shape) == 3 or (len(shape) == 4 and shape[-1] in (1, 3))
    if images.dtype != np.uint8 or not is_image or 0 in shape[1:]:
        raise UserError(
            f"{where}: images are {images.dtype} {list(shape)}; expected uint8 "
            "[n, height, width], or [n, height, width, channels] with 1 or 3 channels."
        )
    integers = labels.ndim == 1 and labels.dtype.kind in "iu"
    multi_hot = labels.ndim == 2 and labels.dtype.kind in "biuf"
    if not (integers or multi_hot):
        raise UserError(
            f"{where}: labels are {labels.dtype} {list(labels.shape)}; expected "
            "integers [n], or multi-hot [n, classes]."
        )
    if len(images) != len(labels):
        raise UserError(
            f"{where}: {len(images)} images but {len(labels)} labels; one for each "
            "is needed."
        )
    if integers:
        _check_class_numbers(labels, where)


def _check_class_numbers(labels: np.ndarray, where: str) -> None:
    bounds = np.iinfo(np.int32)
    bad = np.flatnonzero((labels < bounds.min) | (labels > bounds.max))
    if len(bad):
        raise UserError(
            f"{where}, record {bad[0]}: label {labels[bad[0]]} is no class number "
            f"({len(bad)} of {len(labels)} labels have more than 32 bits); correct the "
            "labels."
        )


def labels_are_sets(labels: np.ndarray) -> np.ndarray:
    """Whether all values of label vectors [..., k] are in [0, 1]; NaN is not.

    >>> labels_are_sets(np.array([[0.0, 1.0], [0.5, -3.0], [0.5, np.nan]])).tolist()
    [True, False, False]
    """
    return np.asarray(((labels >= 0) & (labels <= 1)).all(axis=-1))
