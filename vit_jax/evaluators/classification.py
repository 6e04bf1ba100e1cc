"""Accuracy, loss and calibration over a split; every example counts exactly once."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from vit_jax import steps
from vit_jax.data import catalog
from vit_jax.errors import UserError
from vit_jax.evaluators import confusion, mistakes, multilabel, scores
from vit_jax.evaluators.base import (
    Draw,
    Evaluator,
    Examples,
    Result,
    ResultsOf,
    a_batch_late,
)
from vit_jax.program import Program
from vit_jax.state import Params

# With more classes than this a record holds no matrix of them.
_CLASSES_IN_RECORD = 100


class Classification(Evaluator):
    """One entry of `config.evals` with `type="classification"`."""

    def __init__(
        self,
        name: str,
        mesh: Mesh,
        training_data: dict[str, Any],
        training_batch_size: int,
        *,
        type: str = "classification",
        every: int | None = None,
        split: str = "test",
        batch_size: int | None = None,
        classes: tuple[int, ...] | None = None,
        data: dict[str, Any],
    ) -> None:
        """Opens the data.

        Args:
          name: of the entry; results are called NAME/accuracy, NAME/loss.
          mesh: that the batches are laid out over.
          training_data: `config.data`, which holds but for what is said here.
          training_batch_size: `config.batch_size`, the default of `batch_size`.
          type: read by the table of evaluators.
          every: steps between evaluations; None is once, at the end.
          split: of the data.
          batch_size: global.
          classes: the model chooses between these alone. None: between those that the
            dataset shows, which are 200 for ImageNet-A and -R, as their authors do;
            of other datasets all.
          data: keys of `config.data` that differ for this evaluation.
        """
        super().__init__(name, every)
        self._where = f"config.evals.{name}"
        self.examples = Examples(
            mesh,
            training_data,
            training_batch_size,
            where=self._where,
            split=split,
            batch_size=batch_size,
            data=data,
        )
        entry = catalog.find(self.examples.name)
        present = None if entry is None else entry.classes_present
        self._classes = present if classes is None else classes
        self._protocol = {"type": type, "classes": self._classes}

    def check(
        self,
        num_classes: int,
        program: Program,
        params: Params,
        label_names: Sequence[str] | None = None,
    ) -> None:
        self._check_classes(num_classes)
        self.notes = self.examples.match_classes(
            num_classes, label_names, whose="the model"
        )
        self.examples.check(num_classes)
        self._num_classes = num_classes if self._classes is None else len(self._classes)
        dataset, k = self.examples.dataset, self._num_classes
        self._multi_label = (
            dataset.label_classes is not None
            and program.eval_loss.name == "sigmoid_xent"
        )
        # Average precision is of all logits, as long as they are not too many.
        self._rank = dataset.num_examples * k <= multilabel.MOST_LOGITS
        if self._multi_label:
            step = multilabel.make_step(
                program, dataset, classes=self._classes, rank=self._rank
            )
        else:
            step = scores.make_step(program, dataset, classes=self._classes)
        self._to_compile = step, params, self.examples.try_step(step, params)

    def all_examples(self) -> list[Examples]:
        return [self.examples]

    def _check_classes(self, num_classes: int) -> None:
        if self._classes is None:
            return
        numbers = set(self._classes)
        if len(numbers) < max(len(self._classes), 2) or not numbers <= set(
            range(num_classes)
        ):
            raise UserError(
                f"{self._where}.classes should be two or more different classes, of "
                f"the model's 0..{num_classes - 1}; it has {len(self._classes)}, from "
                f"{min(numbers, default=None)} to {max(numbers, default=None)}"
            )

    def compile(self) -> None:
        step, params, batch = self._to_compile
        self._step = steps.compile_eval_step(step, self.examples.mesh, params, batch)

    def result_names(self) -> list[str]:
        names = scores.scalar_names(self._num_classes)
        if self._multi_label:
            names = multilabel.scalar_names(rank=self._rank)
        return [f"{self.name}/{what}" for what in names]

    @classmethod
    def possible_results(cls, entry: Mapping[str, Any], of: ResultsOf) -> list[str]:
        classes = entry["classes"]
        k = of.num_classes if classes is None else len(classes)
        names = scores.scalar_names(scores.TOP + 1 if k is None else k)
        if of.loss == "sigmoid_xent":  # of data with several labels an image
            several = multilabel.scalar_names(rank=True)
            names += [name for name in several if name not in names]
        return [*names, "bad_examples"] if of.skips else names

    def run(self, params: Params, check: Callable[[], None]) -> Result:
        dataset = self.examples.dataset
        totals, worst = self._totals(), mistakes.Mistakes()
        batches = self.examples.batches(check)
        for on_device in a_batch_late(self._step(params, batch) for batch in batches):
            rows = jax.device_get(dict(on_device))
            totals.add(rows)
            if not self._multi_label:
                worst.add(rows)
        totals.check(self._where)
        scalars = {f"{self.name}/{k}": v for k, v in totals.scalars().items()}
        if dataset.skip_bad:
            scalars[f"{self.name}/bad_examples"] = self.examples.bad_examples
        record = {
            "protocol": self._protocol,
            **self.examples.describe(),
            "left_out": dataset.num_examples - totals.examples,
            **totals.record(),
        }
        names = self._class_names()
        if names is not None:
            record["per_class"] = {"class": names, **record["per_class"]}
            if len(names) <= scores.CONFUSION_CLASSES:
                record["class_names"] = names
        pictures: dict[str, Draw] = {}
        if totals.confusion is not None:
            counts = totals.confusion
            if self._num_classes <= _CLASSES_IN_RECORD:
                record["confusion"] = counts
            pictures["confusion"] = functools.partial(confusion.draw, counts, names)
        if self._multi_label:
            return Result(scalars, record, pictures)
        found = worst.found()
        record["surest_mistakes"] = mistakes.describe(found, dataset, names)
        draw = functools.partial(mistakes.draw, found, dataset, names)
        return Result(scalars, record, pictures, {"mistakes": draw} if found else {})

    def _totals(self) -> scores.Totals | multilabel.Totals:
        if self._multi_label:
            return multilabel.Totals(self._num_classes, rank=self._rank)
        multi_hot = self.examples.dataset.label_classes is not None
        return scores.Totals(self._num_classes, multi_hot=multi_hot)

    def _class_names(self) -> list[str] | None:
        """Of the classes that are told apart; numbers where the data knows no name."""
        names = self.examples.dataset.label_names
        classes = self._classes or range(self._num_classes)
        if names is None:
            return None if self._classes is None else [str(i) for i in classes]
        return [names[i] if i < len(names) else str(i) for i in classes]
