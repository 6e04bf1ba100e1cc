"""Several datasets as one, each with its share of the examples."""

import hashlib
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple, NoReturn

import numpy as np

from vit_jax import class_names, limits
from vit_jax.data.crop import Crop
from vit_jax.data.sources.base import Source, open_source
from vit_jax.data.sources.renumbered import RenumberedSource
from vit_jax.errors import UserError

_MAX_DENOMINATOR = 1_000_000  # of a weight; 0.3 is 3/10


class Part(NamedTuple):
    """One dataset of a mixture."""

    source: Source
    weight: float


class MixtureSource:
    """The records of all parts, one part after the other. See `base.Source`.

    Attributes:
        sizes: records of each part, in the order of the parts' names.
        shares: of the examples that each part gives; their sum is 1.
    """

    def __init__(self, parts: Mapping[str, Part]):
        """Joins the parts; where they have names of classes, these decide.

        Classes have the numbers that the part with the most of them gives them.

        Raises:
            UserError: if their labels are not of one kind, or of other classes.
        """
        names = sorted(parts)
        opened = {name: parts[name].source for name in names}
        self._sources, renumbered, told = _with_one_numbering(opened)
        self.sizes = [len(source) for source in self._sources]
        self.shares = _shares({name: parts[name].weight for name in names})
        self._ends = np.cumsum(self.sizes)
        first = self._sources[0]
        self.name = " + ".join(source.name for source in self._sources)
        self.num_classes, self.multi_hot = first.num_classes, first.multi_hot
        known = [s.label_names for s in self._sources if s.label_names is not None]
        self.label_names = known[0] if known else None
        self.in_memory = all(source.in_memory for source in self._sources)
        own = [note for source in self._sources for note in source.notes]
        self.notes = (*own, *told)
        described: list[Any] = [(s.fingerprint, str(w)) for s, w in self._pairs()]
        if renumbered:
            described.append(sorted(renumbered.items()))
        self.fingerprint = hashlib.sha256(repr(described).encode()).hexdigest()[:16]
        self.sample = ",".join(source.sample for source in self._sources)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(
        self, index: int, crop: Crop | None = None
    ) -> tuple[np.ndarray, int | np.ndarray]:
        source, record = self._find(index)
        return source.read(record, crop)

    def describe(self, index: int) -> str:
        source, record = self._find(index)
        return source.describe(record)

    def labels(self) -> np.ndarray | None:
        labels = [source.labels() for source in self._sources]
        known = [part for part in labels if part is not None]
        return np.concatenate(known) if len(known) == len(labels) else None

    def _pairs(self) -> list[tuple[Source, Fraction]]:
        return list(zip(self._sources, self.shares, strict=True))

    def _find(self, index: int) -> tuple[Source, int]:
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self._sources[part], index - int(self._ends[part]) + self.sizes[part]


def open_mixture(
    parts: Mapping[str, dict[str, Any]],
    *,
    data_dir: str | None,
    split: str,
    max_pixels: int = limits.IMAGE_PIXELS,
) -> MixtureSource:
    """Opens every part.

    Args:
        parts: {name: keyword arguments of `open_part`}.
        data_dir: of the parts that name none.
        split: of the parts that name none.
        max_pixels: of an image, see `decode`.
    """
    if not parts:
        raise UserError(
            'config.data.name="mixture" needs parts: set for example '
            "config.data.mixture.a.name and config.data.mixture.b.name in the recipe."
        )
    return MixtureSource(
        {
            name: open_part(data_dir, split, max_pixels, **section)
            for name, section in parts.items()
        }
    )


def open_part(
    default_data_dir: str | None,
    default_split: str,
    max_pixels: int = limits.IMAGE_PIXELS,
    *,
    name: str,
    weight: float = 1.0,
    data_dir: str | None = None,
    split: str | None = None,
    image_key: str | None = None,
    label_key: str | None = None,
    holdout: float | None = None,
) -> Part:
    """Opens one dataset of a mixture.

    Args:
        default_data_dir: `config.data.data_dir`.
        default_split: `config.data.split`.
        max_pixels: `config.data.max_pixels`.
        name: of the dataset, as in `config.data.name`.
        weight: its share of the examples, relative to the other parts' weights.
        data_dir: where it lies; default: as `config.data.data_dir`.
        split: of it; default: as `config.data.split`.
        image_key: see `vit_jax.data.make`.
        label_key: likewise.
        holdout: likewise; what is held out of a part is not trained on.
    """
    source = open_source(
        name=name,
        data_dir=default_data_dir if data_dir is None else data_dir,
        split=default_split if split is None else split,
        image_key=image_key,
        label_key=label_key,
        held_out=holdout,
        max_pixels=max_pixels,
    )
    return Part(source, weight)


def _shares(weights: Mapping[str, float]) -> list[Fraction]:
    """The weights as exact fractions of 1: what a person meant by 0.3 is 3/10."""
    exact = {
        name: Fraction(weight).limit_denominator(_MAX_DENOMINATOR)
        for name, weight in weights.items()
        if 0 < weight < float("inf")
    }
    total = sum(exact.values())
    for name, weight in weights.items():
        if name not in exact or exact[name] * _MAX_DENOMINATOR < total:
            raise UserError(
                f"config.data.mixture.{name}.weight is {weight}: it should be a "
                f"number above 0, and a {_MAX_DENOMINATOR:,}th of all weights together "
                "or more; change it, or remove the part"
            )
    return [weight / total for weight in exact.values()]


def _with_one_numbering(
    sources: Mapping[str, Source],
) -> tuple[list[Source], dict[str, tuple[int, ...]], list[str]]:
    """The parts with the same class numbers.

    Returns:
        The parts; of those whose numbers are others now, these; and what to tell.

    Raises:
        UserError: if their labels are not of one kind, or of other classes.
    """
    leading = _leading(sources)
    one, found = sources[leading], list[Source]()
    renumbered, told = dict[str, tuple[int, ...]](), list[str]()
    for name, source in sources.items():
        where = f"config.data.mixture: the classes of {name}"
        matched = class_names.match(source.label_names, one.label_names)
        if matched.places is None or source.multi_hot != one.multi_hot:
            _check_labels(leading, one, name, source)
            if name != leading:
                told.append(
                    f"{where} are taken for those of {leading} by number "
                    f"({matched.why})"
                )
        elif matched.unknown:
            _refuse(leading, one, name, source, matched.unknown)
        elif not matched.same or source.num_classes != one.num_classes:
            assert one.num_classes is not None and one.label_names is not None
            renumbered[name] = matched.places
            told.append(
                f"{where} have other numbers in {leading}: they are matched by name"
            )
            source = RenumberedSource(
                source,
                matched.places,
                num_classes=one.num_classes,
                label_names=one.label_names,
            )
        found.append(source)
    return found, renumbered, told


def _leading(sources: Mapping[str, Source]) -> str:
    """The part whose class numbers all have: of those with names the largest."""

    def rank(name: str) -> tuple[bool, int]:
        source = sources[name]
        return source.label_names is not None, source.num_classes or 0

    return max(sources, key=rank)  # of equals the first


def _check_labels(first: str, one: Source, name: str, other: Source) -> None:
    """Without names, parts must number equally many classes, and in the same way."""
    if (one.num_classes, one.multi_hot) != (other.num_classes, other.multi_hot):
        raise UserError(
            f"config.data.mixture: {first} ({one.name}) has {_labels(one)}, {name} "
            f"({other.name}) has {_labels(other)}; all parts must have the same"
        )


def _refuse(
    first: str, one: Source, name: str, other: Source, unknown: Sequence[int]
) -> NoReturn:
    assert one.label_names is not None and other.label_names is not None
    theirs = class_names.listed([other.label_names[i] for i in unknown])
    raise UserError(
        f"config.data.mixture: {name} ({other.name}) has classes that {first} "
        f"({one.name}) does not know: {theirs}; it knows "
        f"{class_names.listed(one.label_names)}. Give the same classes the same names; "
        "a class that only some parts have must be in the one with the most classes"
    )


def _labels(source: Source) -> str:
    kind = "vectors" if source.multi_hot else "class numbers"
    known = source.num_classes is not None
    return f"{kind} of {source.num_classes if known else 'unknown'} classes"
