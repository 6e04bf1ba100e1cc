"""Accuracy and loss over a split; every example counts exactly once."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vit_jax import bad_examples, distributed, sharding, steps
from vit_jax import data as datasets
from vit_jax.errors import UserError
from vit_jax.state import Params


class Classification:
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
          data: keys of `config.data` that differ for this evaluation.
        """
        for key, value in (("every", every), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise UserError(
                    f"config.evals.{name}.{key} is {value}: it should be at least 1"
                )
        if name in ("train", "timing") or "/" in name:
            raise UserError(
                f'config.evals has an entry "{name}": its results would be mixed up '
                "with other lines of metrics.jsonl; choose another name"
            )
        for key in ("split", "train"):
            if key in data:
                raise UserError(
                    f"config.evals.{name}.data.{key} has no effect: an evaluation has "
                    f"config.evals.{name}.split and config.evals.{name}.data.eval"
                )
        self.name, self.every = name, every
        self.batch_size = batch_size or training_batch_size
        key = f"evals.{name}.batch_size" if batch_size else "batch_size"
        sharding.check_batch_size(mesh, self.batch_size, key=key)
        section: dict[str, Any] = {**training_data, **data, "split": split}
        if "eval" in data:
            section["eval"] = {**training_data["eval"], **data["eval"]}
        self.dataset = datasets.make(**section)
        self._mesh = mesh
        self._sharding = sharding.batch_sharding(mesh)
        self._rows = sharding.process_rows(self._sharding, self.batch_size)

    def check(
        self, num_classes: int, make_eval_step: Callable[..., Any], params: Params
    ) -> None:
        """Refuses data that cannot be read or does not fit the model.

        Args:
          num_classes: of the head.
          make_eval_step: makes the step for a mean and a standard deviation.
          params: abstract, with shardings; kept for `compile`.
        """
        self.dataset.check(
            num_classes=num_classes, train=False, batch_size=self.batch_size
        )
        batch = steps.abstract_batch(
            self._mesh,
            self.batch_size,
            self.dataset.image_shape,
            label_classes=self.dataset.label_classes,
        )
        eval_step = make_eval_step(mean=self.dataset.mean, std=self.dataset.std)
        try:
            jax.eval_shape(eval_step, params, batch)
        except UserError as error:
            raise UserError(f"config.evals.{self.name}: {error}") from error
        self._num_classes = num_classes
        self._to_compile = eval_step, params, batch

    def due(self, step: int, total_steps: int) -> bool:
        return step == total_steps or (
            self.every is not None and step % self.every == 0
        )

    def compile(self) -> None:
        """Compiles the step that `check` has tried."""
        eval_step, params, batch = self._to_compile
        self._step = steps.compile_eval_step(eval_step, self._mesh, params, batch)

    def result_names(self) -> list[str]:
        """The keys of what `run` returns."""
        return [f"{self.name}/{what}" for what in ("accuracy", "loss", "examples")]

    def run(self, params: Params, check: Callable[[], None]) -> dict[str, float | int]:
        """Accuracy, mean loss, and number of examples; of bad ones if they are skipped.

        Args:
          params: of the model, laid out as those that `compile` was given.
          check: called once a batch; what it raises ends the evaluation.
        """
        totals = {"correct": 0, "loss": 0.0, "examples": 0}
        pending: dict[str, jax.Array] | None = None
        batches = self.dataset.eval_batches(
            batch_size=self.batch_size, rows=self._rows, num_classes=self._num_classes
        )
        with contextlib.closing(batches):
            for batch in batches:
                distributed.progress()
                check()
                on_device = sharding.put_batch(batch, self._sharding, self.batch_size)
                sums = self._step(params, on_device)
                if pending is not None:  # read a batch late: the device does not wait
                    add(totals, pending)
                pending = sums
        if pending is not None:
            add(totals, pending)
        count = totals["examples"]
        left_out = bad_examples.of_evaluation(self.name, self.dataset, batches.skipped)
        bad = {f"{self.name}/bad_examples": left_out} if self.dataset.skip_bad else {}
        return {
            f"{self.name}/accuracy": totals["correct"] / count,
            f"{self.name}/loss": totals["loss"] / count,
            f"{self.name}/examples": int(count),
            **bad,
        }


def add(totals: dict[str, Any], sums: dict[str, jax.Array]) -> None:
    """Adds sums from the device to Python numbers: exact ints, float64 losses."""
    for name, value in jax.device_get(sums).items():
        totals[name] += np.asarray(value).item()
