"""A dataset as training and evaluation see it."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from vit_jax.data import pipeline
from vit_jax.data.builder import BatchBuilder
from vit_jax.data.sources import Source
from vit_jax.data.sources.arrays import ArraySource
from vit_jax.data.sources.mixture import MixtureSource
from vit_jax.data.sources.renumbered import RenumberedSource
from vit_jax.data.transforms import EvalTransform, TrainTransform
from vit_jax.errors import BadExample, UserError

_LABELS_CHECKED = 256
_SUM_TOLERANCE = 1e-2  # of distributions, which may have been rounded
_BAD_ALLOWED, _BAD_SHARE_ALLOWED = 100, 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """The records of a split, as batches. Made by `vit_jax.data.make`.

    A batch is {"image": uint8 [b, h, w, 3], "label": int32 [b] or float32 [b, k],
    "mask": bool [b]}, NumPy arrays. b is `batch_size`, or len(rows) where `rows` says
    which rows of the global batch this process is to build; row i is the same, bit
    for bit, whichever others are built with it, on any number of threads and workers.

    Attributes:
        source: the records.
        image_size: (height, width) of the batches.
        mean: of normalised images' channels, in [0, 1]; only carried, not applied.
        std: likewise.
        num_workers: processes that build batches; 0 is this process alone.
        num_threads: threads that read images, in each process.
        train: the transform of `train_batches`.
        eval: the transform of `eval_batches`.
        skip_bad: whether a bad example is left out; otherwise it raises BadExample.
        max_bad_examples: how many may be left out; None: see `bad_examples_allowed`.
    """

    source: Source
    image_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    num_workers: int
    num_threads: int
    train: TrainTransform
    eval: EvalTransform
    skip_bad: bool = False
    max_bad_examples: int | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, 3)."""
        return (*self.image_size, 3)

    @property
    def num_examples(self) -> int:
        return len(self.source)

    @property
    def num_classes(self) -> int | None:
        """Number of classes where the source or all of its labels say so, else None."""
        if self.source.num_classes is None and isinstance(self.source, ArraySource):
            return self.source.implied_classes
        return self.source.num_classes

    @property
    def label_classes(self) -> int | None:
        """Length of labels that are vectors [k]; None where they are class numbers."""
        return self.source.num_classes if self.source.multi_hot else None

    @property
    def label_names(self) -> tuple[str, ...] | None:
        return self.source.label_names

    @property
    def fingerprint(self) -> str:
        """Digest of what the records are: the same wherever they lie."""
        return self.source.fingerprint

    @property
    def sample(self) -> str:
        """Digest of the sizes of some files: whether they are the same still."""
        return self.source.sample

    def renumbered(
        self, places: Sequence[int], *, num_classes: int, label_names: Sequence[str]
    ) -> "Dataset":
        """The same records with other class numbers: class i becomes `places[i]`.

        Args:
            places: one for each class.
            num_classes: of the new numbers; more than the data has may exist.
            label_names: of the new numbers.
        """
        source = RenumberedSource(
            self.source, places, num_classes=num_classes, label_names=label_names
        )
        return dataclasses.replace(self, source=source)

    def train_batches(
        self,
        *,
        batch_size: int,
        seed: int,
        start_step: int,
        total_steps: int,
        rows: np.ndarray | None = None,
        num_classes: int | None = None,
    ) -> pipeline.BatchIterator:
        """Batches of steps start_step .. total_steps-1; a function of (seed, step).

        Global example number n = step * batch_size + row is in epoch n // N: every N
        of them show each record once, and a batch may hold the end of one epoch and
        the start of the next. In a mixture each part has epochs of its own. With
        `num_classes`, class numbers out of its range make an example bad. A bad one
        raises, or where the dataset skips them keeps its row with mask False and is
        told in the iterator's `skipped`.

        Returns:
            An iterator with `close()`. Batches are built ahead from the first `next`.
        """
        build = self._builder(self.train, batch_size, rows, seed, num_classes)
        return self._iterate(build, start_step, total_steps)

    def eval_batches(
        self,
        *,
        batch_size: int,
        rows: np.ndarray | None = None,
        num_classes: int | None = None,
    ) -> pipeline.BatchIterator:
        """ceil(N / batch_size) batches: every record once, in the source's order.

        The last batch is filled up with images and labels of 0 whose mask is False, and
        so are the rows of bad examples, as in `train_batches`: of N examples, N minus
        the rows with mask True are bad.
        """
        build = self._builder(self.eval, batch_size, rows, None, num_classes)
        return self._iterate(build, 0, -(-self.num_examples // batch_size))

    def bad_examples_allowed(self, seen: int) -> int:
        """How many of `seen` examples may be left out."""
        if self.max_bad_examples is not None:
            return self.max_bad_examples
        return max(_BAD_ALLOWED, int(seen * _BAD_SHARE_ALLOWED))

    def check(
        self,
        *,
        num_classes: int,
        train: bool,
        batch_size: int,
        one_class: bool = False,
    ) -> None:
        """Reads a batch and the labels, so that what is wrong is said before training.

        Args:
            num_classes: of the model's head.
            train: whether `train_batches` will be read, or `eval_batches`.
            batch_size: of the global batch; at most 256 images are read.
            one_class: whether label vectors must be distributions over the classes.

        Raises:
            UserError: an image does not decode, a label is out of range, or the head
                has too few classes. Where bad examples are skipped: all are bad.
                With `one_class`, a label vector does not sum to 1.
        """
        known = self.source.num_classes
        if not train and isinstance(self.source, MixtureSource):
            raise UserError(
                'config.data.name="mixture" is for training: an evaluation needs '
                "config.evals.NAME.data.name, one dataset"
            )
        if known is not None and self.source.multi_hot and known != num_classes:
            raise UserError(
                f"{self.source.name} has labels over {known} classes, the model's head "
                f"has {num_classes}; set config.model.num_classes={known}."
            )
        if known is not None and known > num_classes:
            other = "" if train else ", or evaluate on data of the head's classes"
            raise UserError(
                f"{self.source.name} has {known} classes, the model's head only "
                f"{num_classes}; set config.model.num_classes={known}{other}."
            )
        self._check_labels(num_classes)
        rows = np.arange(min(batch_size, self.num_examples, _LABELS_CHECKED))
        transform, seed = (self.train, 0) if train else (self.eval, None)
        built = self._builder(transform, batch_size, rows, seed, num_classes)(0)
        if len(built.bad) == len(rows):
            raise UserError(
                f"{self.source.name}: none of the first {len(rows)} examples can be "
                f"used: {built.bad[0][1]}"
            )
        if one_class and self.source.multi_hot:
            vectors = self.source.labels()
            if vectors is None:
                vectors = built.batch["label"][built.batch["mask"]]
            self._check_sums(vectors)

    def _check_sums(self, vectors: np.ndarray) -> None:
        sums = vectors.sum(axis=-1, dtype=np.float64)
        bad = np.flatnonzero(abs(sums - 1) > _SUM_TOLERANCE)
        if len(bad):
            raise UserError(
                f"{self.source.name}: {len(bad)} of {len(sums)} labels looked at do "
                f"not sum to 1, such as {sums[bad[0]]:g}: an image has several classes "
                'or none, and config.loss.name="softmax_xent" is for images that have '
                "one; set config.loss.name=sigmoid_xent"
            )

    def _check_labels(self, num_classes: int) -> None:
        if self.source.multi_hot:
            return
        labels = self.source.labels()
        if labels is None:
            count = min(self.num_examples, _LABELS_CHECKED)
            records = np.linspace(0, self.num_examples - 1, count).astype(np.int64)
            labels = np.array([self._label(int(i)) for i in records])
        else:
            records = np.arange(len(labels))
        bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
        if len(bad) > (self.bad_examples_allowed(len(labels)) if self.skip_bad else 0):
            label, record = labels[bad[0]], int(records[bad[0]])
            raise UserError(
                f"{self.source.describe(record)}: label {label} is out of range "
                f"0..{num_classes - 1} ({len(bad)} of {len(labels)} labels looked at "
                "are); correct the labels, choose another split, or set "
                "config.model.num_classes."
            )

    def _label(self, record: int) -> int | np.ndarray:
        try:
            return self.source.read(record)[1]
        except BadExample:
            if not self.skip_bad:
                raise
            return 0

    def _builder(
        self,
        transform: TrainTransform | EvalTransform,
        batch_size: int,
        rows: np.ndarray | None,
        seed: int | None,
        num_classes: int | None,
    ) -> BatchBuilder:
        return BatchBuilder(
            source=self.source,
            transform=transform,
            image_size=self.image_size,
            batch_size=batch_size,
            rows=np.arange(batch_size) if rows is None else np.asarray(rows, np.int64),
            seed=seed,
            num_threads=self.num_threads,
            num_classes=num_classes,
            skip_bad=self.skip_bad,
        )

    def _iterate(
        self, builder: BatchBuilder, start: int, stop: int
    ) -> pipeline.BatchIterator:
        return pipeline.BatchIterator(builder, start, stop, self.num_workers)
