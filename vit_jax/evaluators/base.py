"""What all evaluators share: a name and a schedule, their examples, their results."""

import abc
import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from vit_jax import (
    bad_examples,
    checks,
    class_names,
    distributed,
    sharding,
    steps,
    waiting,
)
from vit_jax import data as datasets
from vit_jax.checkpoints import position_embeddings
from vit_jax.data import sections
from vit_jax.errors import UserError
from vit_jax.program import Program
from vit_jax.state import Params

T = TypeVar("T")

# Draws uint8 [h, w, 3] under a title; None if there is nothing to show.
Draw = Callable[[str], np.ndarray | None]

# Keys of `config.data` that change no result.
_WITHOUT_EFFECT = ("train", "mixture", "num_workers", "num_threads")


@dataclasses.dataclass(frozen=True)
class Result:
    """What an evaluation found.

    Attributes:
      scalars: NAME/accuracy and the like, for the metric writers.
      record: for a JSON file: the protocol, the data's fingerprint, and whatever is
        not a scalar; values are plain or NumPy arrays.
      pictures: by name; they are drawn where they are written.
      last_pictures: those that a run has of its last step alone, since they read images
        again.
    """

    scalars: dict[str, float | int]
    record: dict[str, Any]
    pictures: dict[str, Draw] = dataclasses.field(default_factory=dict)
    last_pictures: dict[str, Draw] = dataclasses.field(default_factory=dict)


class ResultsOf(NamedTuple):
    """What the names of an evaluation's results depend on, beside its own keys.

    Attributes:
      num_classes: of the head, None if the data will say.
      loss: `config.loss.name`.
      skips: whether bad examples of the evaluation's data are left out.
    """

    num_classes: int | None
    loss: str
    skips: bool


class Evaluator(abc.ABC):
    """One entry of `config.evals`.

    The keyword-only parameters of a subclass are the keys of the entry. Besides its
    own they are `type`, `every`, `split`, `batch_size` and `data`. All processes call
    the methods in the same order, and get the same results.

    Attributes:
      notes: what the person who runs it should know, once `check` has been called.
    """

    def __init__(self, name: str, every: int | None) -> None:
        """Refuses names and schedules that cannot be.

        Args:
          name: of the entry; results are called NAME/accuracy and the like.
          every: steps between evaluations; None is once, at the end.
        """
        if every is not None and every < 1:
            raise UserError(
                f"config.evals.{name}.every is {every}: it should be at least 1"
            )
        if name in ("train", "timing") or "/" in name:
            raise UserError(
                f'config.evals has an entry "{name}": its results would be mixed up '
                "with other lines of metrics.jsonl; choose another name"
            )
        self.name, self.every = name, every
        self.notes: list[str] = []

    def due(self, step: int, total_steps: int) -> bool:
        return step == total_steps or (
            self.every is not None and step % self.every == 0
        )

    @abc.abstractmethod
    def check(
        self,
        num_classes: int,
        program: Program,
        params: Params,
        label_names: Sequence[str] | None = None,
    ) -> None:
        """Refuses data that cannot be read or does not fit the model.

        Args:
          num_classes: of the model's head.
          program: its model, and how it takes images.
          params: abstract, with shardings.
          label_names: of the model's classes, where they are known; there may be
            fewer than `num_classes`.

        Raises:
          UserError: before anything is compiled.
        """

    @abc.abstractmethod
    def all_examples(self) -> "list[Examples]":
        """All that it reads."""

    @abc.abstractmethod
    def compile(self) -> None:
        """Compiles what `check` has tried."""

    @abc.abstractmethod
    def result_names(self) -> list[str]:
        """The names of the scalars that `run` returns, once `check` has been called."""

    @classmethod
    @abc.abstractmethod
    def possible_results(cls, entry: Mapping[str, Any], of: ResultsOf) -> list[str]:
        """Names of scalars, without NAME/, that an entry may have; opens no data.

        Args:
          entry: of `config.evals`, complete.
          of: what else the names depend on.
        """

    @abc.abstractmethod
    def run(self, params: Params, check: Callable[[], None]) -> Result:
        """Evaluates.

        Args:
          params: of the model, laid out as those that `check` was given.
          check: called once a batch; what it raises ends the evaluation.
        """


def apply_at_any_size(program: Program) -> Callable[..., Any]:
    """The model's `apply`, for images of other sizes than those of training too.

    Position embeddings are then resampled, as for fine-tuning (arXiv:2010.11929,
    section 3.2).

    Args:
      program: of the model.
    """
    trained = program.abstract_batch["image"].shape[1:3]

    def apply(variables: Any, images: jax.Array, **keywords: Any) -> Any:
        size = images.shape[1], images.shape[2]
        if size != trained:
            params = position_embeddings.at_size(
                variables["params"], program.model, trained, size
            )
            variables = {**variables, "params": params}
        return program.model.apply(variables, images, **keywords)

    return apply


def a_batch_late(results: Iterable[T]) -> Iterator[T]:
    """The same, each once the next has been started, so that no device waits.

    >>> list(a_batch_late(iter("abc")))
    ['a', 'b', 'c']
    """
    results = iter(results)
    for before in results:
        for result in results:
            yield before
            before = result
        yield before


class Examples:
    """The records of an evaluation, as global batches on the devices."""

    def __init__(
        self,
        mesh: Mesh,
        training_data: dict[str, Any],
        training_batch_size: int,
        *,
        where: str,
        split: str,
        batch_size: int | None,
        data: dict[str, Any],
    ) -> None:
        """Opens the data.

        Args:
          mesh: that the batches are laid out over.
          training_data: `config.data`, which holds but for what is said here.
          training_batch_size: `config.batch_size`, the default of `batch_size`.
          where: the entry, as "config.evals.NAME".
          split: of the data.
          batch_size: global.
          data: keys of `config.data` that differ for this evaluation.
        """
        if batch_size is not None and not 1 <= batch_size <= checks.LARGEST_COUNT:
            raise UserError(
                f"{where}.batch_size is {batch_size}: it should be at least 1, and at "
                f"most {checks.LARGEST_COUNT:,}"
            )
        for key in ("split", "train"):
            if key in data:
                raise UserError(
                    f"{where}.data.{key} has no effect: an evaluation has "
                    f"{where}.split and {where}.data.eval"
                )
        key = f"{where.removeprefix('config.')}.batch_size"
        self.batch_size = batch_size or training_batch_size
        sharding.check_batch_size(
            mesh, self.batch_size, key=key if batch_size else "batch_size"
        )
        section = sections.of_evaluation(training_data, data, split)
        self.name: str = section["name"]
        self.dataset = datasets.make(**section)
        self.mesh = mesh
        self._section, self._where = section, where
        self._sharding = sharding.batch_sharding(mesh)
        self._rows = sharding.process_rows(self._sharding, self.batch_size)
        self._num_classes: int | None = None
        self._matched: str | None = None
        self.bad_examples = 0  # of the last pass

    def match_classes(
        self, num_classes: int, label_names: Sequence[str] | None, *, whose: str
    ) -> list[str]:
        """Gives the data's classes the numbers that those of these names have.

        Args:
          num_classes: that there are on the other side.
          label_names: of them, if they are known.
          whose: they are, for messages.

        Returns:
          What should be told.

        Raises:
          UserError: if the data have a class that is not among them.
        """
        data = self.dataset
        found = class_names.match(data.label_names, label_names)
        self._matched = found.by
        if found.places is None:
            known = data.num_classes
            fewer = known is not None and known != num_classes
            if data.label_names is None and label_names is None and not fewer:
                return []
            there = "an unknown number of" if known is None else str(known)
            return [
                f"classes are matched by number ({found.why}): the data have {there}, "
                f"{whose} {num_classes}"
            ]
        assert data.label_names is not None and label_names is not None
        if found.unknown:
            unknown = [data.label_names[i] for i in found.unknown]
            raise UserError(
                f"{self._where}: {data.source.name} has classes that {whose} does not "
                f"know: {class_names.listed(unknown)}; it knows "
                f"{class_names.listed(label_names)}. Give the classes of the data the "
                "same names, or leave the others out"
            )
        if found.same:
            return []
        self.dataset = data.renumbered(
            found.places, num_classes=num_classes, label_names=label_names
        )
        return [
            f"its {len(found.places)} classes have other numbers in {whose}: they are "
            "matched by name"
        ]

    def check(self, num_classes: int | None) -> None:
        """Reads a batch and the labels.

        Args:
          num_classes: of the head that the labels must fit; None if they need not.

        Raises:
          UserError: an image does not decode, a label is out of range, or there is
            no head.
        """
        if num_classes == 0:
            raise UserError(
                f"{self._where}: the weights have no head, so they know no classes; "
                "evaluate their features: type=knn, fewshot or linear_probe"
            )
        self._num_classes = num_classes
        if num_classes is None:
            known = self.dataset.num_classes
            num_classes = np.iinfo(np.int32).max if known is None else known
        self.dataset.check(
            num_classes=num_classes, train=False, batch_size=self.batch_size
        )

    def try_step(
        self, step: Callable[..., Any], *arguments: Any
    ) -> dict[str, jax.ShapeDtypeStruct]:
        """Traces `step(*arguments, batch)`, so that what does not fit is said early.

        Returns:
          The abstract batch.
        """
        batch = self.abstract_batch()
        try:
            jax.eval_shape(step, *arguments, batch)
        except UserError as error:
            raise UserError(f"{self._where}: {error}") from error
        return batch

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """A batch as `ShapeDtypeStruct`s with shardings."""
        return steps.abstract_batch(
            self.mesh,
            self.batch_size,
            self.dataset.image_shape,
            label_classes=self.dataset.label_classes,
        )

    def batches(self, check: Callable[[], None]) -> Iterator[steps.Batch]:
        """Every record once, in order; the last batch is filled up and masked.

        Args:
          check: called once a batch.
        """
        batches = self.dataset.eval_batches(
            batch_size=self.batch_size, rows=self._rows, num_classes=self._num_classes
        )
        with contextlib.closing(waiting.batches(batches)) as read:
            for batch in read:
                distributed.progress()
                check()
                yield sharding.put_batch(batch, self._sharding, self.batch_size)
        name = self._where.removeprefix("config.evals.")
        self.bad_examples = bad_examples.of_evaluation(
            name, self.dataset, batches.skipped
        )

    def describe(self) -> dict[str, Any]:
        """For the record of a result: which data this is, and how it is shown."""
        data = {k: v for k, v in self._section.items() if k not in _WITHOUT_EFFECT}
        return {
            "examples": self.dataset.num_examples,
            "bad_examples": self.bad_examples,
            "classes_matched_by": self._matched,
            "fingerprint": self.dataset.fingerprint,
            "data": data,
        }
