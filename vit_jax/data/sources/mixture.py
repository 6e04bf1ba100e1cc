"""Several datasets as one, each with its share of the examples."""

import hashlib
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from vit_jax.data.crop import Crop
from vit_jax.data.sources.base import Source, open_source
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
        """Joins the parts.

        Raises:
            UserError: if their labels are not of one kind and number of classes.
        """
        names = sorted(parts)
        self._sources = [parts[name].source for name in names]
        self.sizes = [len(source) for source in self._sources]
        self.shares = _shares({name: parts[name].weight for name in names})
        self._ends = np.cumsum(self.sizes)
        _check_labels(dict(zip(names, self._sources, strict=True)))
        first = self._sources[0]
        self.name = " + ".join(source.name for source in self._sources)
        self.num_classes, self.multi_hot = first.num_classes, first.multi_hot
        known = [s.label_names for s in self._sources if s.label_names is not None]
        self.label_names = known[0] if known else None
        self.in_memory = all(source.in_memory for source in self._sources)
        self.notes = tuple(note for source in self._sources for note in source.notes)
        described = [(s.fingerprint, str(w)) for s, w in self._pairs()]
        self.fingerprint = hashlib.sha256(repr(described).encode()).hexdigest()[:16]

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
    parts: Mapping[str, dict[str, Any]], *, data_dir: str | None, split: str
) -> MixtureSource:
    """Opens every part.

    Args:
        parts: {name: keyword arguments of `open_part`}.
        data_dir: of the parts that name none.
        split: of the parts that name none.
    """
    if not parts:
        raise UserError(
            'config.data.name="mixture" needs parts: set for example '
            "config.data.mixture.a.name and config.data.mixture.b.name in the recipe."
        )
    return MixtureSource(
        {name: open_part(data_dir, split, **section) for name, section in parts.items()}
    )


def open_part(
    default_data_dir: str | None,
    default_split: str,
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


def _check_labels(sources: Mapping[str, Source]) -> None:
    """All parts must number the same classes, and in the same way."""
    (first, one), *others = sources.items()
    for name, other in others:
        if (one.num_classes, one.multi_hot) != (other.num_classes, other.multi_hot):
            raise UserError(
                f"config.data.mixture: {first} ({one.name}) has {_labels(one)}, {name} "
                f"({other.name}) has {_labels(other)}; all parts must have the same"
            )
        if None not in (one.label_names, other.label_names) and (
            one.label_names != other.label_names
        ):
            raise UserError(
                f"config.data.mixture: {first} ({one.name}) and {name} ({other.name}) "
                "give their classes other names, or number them in another order; "
                "make their labels.txt alike if they mean the same"
            )


def _labels(source: Source) -> str:
    kind = "vectors" if source.multi_hot else "class numbers"
    known = source.num_classes is not None
    return f"{kind} of {source.num_classes if known else 'unknown'} classes"
