"""The mean corruption error of ImageNet-C (Hendrycks and Dietterich, 1903.12261)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vit_jax import steps
from vit_jax.data.catalog.imagenet import SEVERITIES
from vit_jax.errors import UserError
from vit_jax.evaluators import scores
from vit_jax.evaluators.base import Evaluator, Examples, Result, ResultsOf, a_batch_late
from vit_jax.program import Program
from vit_jax.state import Params

# The top-1 error of AlexNet for each of the 15 corruptions of the benchmark, mean over
# the five severities, as https://github.com/hendrycks/robustness gives it. The four
# extra corruptions are not part of the benchmark.
ALEXNET = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
TFDS_NAME = "imagenet2012_corrupted/{corruption}_{severity}"
_PATTERNS = ("name", "data_dir", "split")  # keys of the data that may name both


class Corruptions(Evaluator):
    """One entry of `config.evals` with `type="corruptions"`."""

    def __init__(
        self,
        name: str,
        mesh: Mesh,
        training_data: dict[str, Any],
        training_batch_size: int,
        *,
        type: str = "corruptions",
        every: int | None = None,
        split: str = "validation",
        batch_size: int | None = None,
        corruptions: tuple[str, ...] = tuple(ALEXNET),
        severities: tuple[int, ...] = SEVERITIES,
        relative_to_alexnet: bool = True,
        data: dict[str, Any],
    ) -> None:
        """Opens a dataset for each corruption and severity.

        Args:
          name: of the entry; results are called NAME/mean_corruption_error and so on.
          mesh: that the batches are laid out over.
          training_data: `config.data`, which holds but for what is said here.
          training_batch_size: `config.batch_size`, the default of `batch_size`.
          type: read by the table of evaluators.
          every: steps between evaluations; None is once, at the end.
          split: of the data; "{corruption}" and "{severity}" in it, in `data.name` and
            in `data.data_dir` stand for what is evaluated.
          batch_size: global.
          corruptions: by name; the 15 of the benchmark by default.
          severities: 1 is the mildest, 5 the worst.
          relative_to_alexnet: whether errors are divided by AlexNet's on ImageNet-C,
            which takes all corruptions and severities; false for other data.
          data: keys of `config.data` that differ for this evaluation. The default of
            `data.name` is TFDS's "imagenet2012_corrupted/{corruption}_{severity}".
        """
        super().__init__(name, every)
        self._where = f"config.evals.{name}"
        self._corruptions, self._severities = corruptions, severities
        self._relative = relative_to_alexnet
        self._check_choice()
        self._section = {"name": TFDS_NAME, **data}
        self._check_patterns(training_data, split)
        self._protocol = {
            "type": type,
            "corruptions": corruptions,
            "severities": severities,
            "relative_to_alexnet": relative_to_alexnet,
            "data": {**self._section, "split": split},
        }

        def examples(corruption: str, severity: int) -> Examples:
            return Examples(
                mesh,
                fill_in(training_data, corruption, severity),
                training_batch_size,
                where=self._where,
                split=fill_in({"split": split}, corruption, severity)["split"],
                batch_size=batch_size,
                data=fill_in(self._section, corruption, severity),
            )

        self._examples = self._open_all(examples)

    def _check_choice(self) -> None:
        """Refuses to choose nothing, or something twice, or what has no mCE."""
        for key, values in (
            ("corruptions", self._corruptions),
            ("severities", self._severities),
        ):
            if not values or len(set(values)) < len(values):
                raise UserError(f"{self._where}.{key} is {values}: expected some, once")
        whole = (set(self._corruptions), set(self._severities))
        if self._relative and whole != (set(ALEXNET), set(SEVERITIES)):
            raise UserError(
                f"{self._where}: AlexNet's errors are known for the {len(ALEXNET)} "
                f"corruptions of ImageNet-C over all severities {SEVERITIES}; with "
                f"others set {self._where}.relative_to_alexnet=false"
            )

    def _check_patterns(self, training_data: dict[str, Any], split: str) -> None:
        found = {**training_data, **self._section, "split": split}
        text = " ".join(str(found[key]) for key in _PATTERNS if key in found)
        missing = [p for p in ("{corruption}", "{severity}") if p not in text]
        if missing:
            raise UserError(
                f"{self._where}: neither data.name nor data.data_dir nor split says "
                f"where {' and '.join(missing)} is to be filled in; as for example "
                f'data.name="{TFDS_NAME}"'
            )

    def _open_all(
        self, examples: Callable[[str, int], Examples]
    ) -> dict[tuple[str, int], Examples]:
        opened: dict[tuple[str, int], Examples] = {}
        errors: dict[str, UserError] = {}
        for corruption in self._corruptions:
            for severity in self._severities:
                try:
                    opened[corruption, severity] = examples(corruption, severity)
                except UserError as error:
                    errors[f"{corruption} {severity}"] = error
        if errors:
            count = len(opened) + len(errors)
            missing = ", ".join(list(errors)[:8]) + (", ..." if len(errors) > 8 else "")
            first = next(iter(errors.values()))
            raise UserError(
                f"{self._where}: {len(errors)} of {count} datasets cannot be opened "
                f"({missing}). The first: {first}"
            ) from first
        return opened

    def check(
        self,
        num_classes: int,
        program: Program,
        params: Params,
        label_names: Sequence[str] | None = None,
    ) -> None:
        """Reads a batch of the first dataset; the others must be of its kind."""
        examples = list(self._examples.values())
        found = [
            each.match_classes(num_classes, label_names, whose="the model")
            for each in examples
        ]
        self.notes = sorted({note for notes in found for note in notes})
        first = examples[0]
        first.check(num_classes)
        for other in examples:
            if _kind(other) != _kind(first):
                raise UserError(
                    f"{self._where}: {other.dataset.source.name} and "
                    f"{first.dataset.source.name} differ in their classes"
                )
        step = scores.make_step(program, first.dataset)
        self._num_classes = num_classes
        self._to_compile = step, params, first.try_step(step, params)

    def all_examples(self) -> list[Examples]:
        return list(self._examples.values())

    def compile(self) -> None:
        step, params, batch = self._to_compile
        mesh = next(iter(self._examples.values())).mesh
        self._step = steps.compile_eval_step(step, mesh, params, batch)

    def result_names(self) -> list[str]:
        return [f"{self.name}/{what}" for what in _names(relative=self._relative)]

    @classmethod
    def possible_results(cls, entry: Mapping[str, Any], of: ResultsOf) -> list[str]:
        del of
        return _names(relative=entry["relative_to_alexnet"])

    def run(self, params: Params, check: Callable[[], None]) -> Result:
        errors, examples = {}, 0
        for key, dataset in self._examples.items():
            totals = self._totals(dataset, params, check)
            errors[key] = 1.0 - totals.correct / totals.examples
            examples += totals.examples
        by_corruption = {
            c: [errors[c, s] for s in self._severities] for c in self._corruptions
        }
        mean_error = float(np.mean(list(errors.values())))
        scalars = {"accuracy": 1.0 - mean_error, "mean_error": mean_error}
        record: dict[str, Any] = {
            "protocol": self._protocol,
            "errors": by_corruption,
        }
        if self._relative:
            relative = relative_to_alexnet(by_corruption)
            scalars["mean_corruption_error"] = float(np.mean(list(relative.values())))
            record |= {"corruption_errors": relative, "alexnet": ALEXNET}
        record["fingerprints"] = {
            c: [self._examples[c, s].dataset.fingerprint for s in self._severities]
            for c in self._corruptions
        }
        named = {f"{self.name}/{what}": value for what, value in scalars.items()}
        return Result({**named, f"{self.name}/examples": examples}, record)

    def _totals(
        self, examples: Examples, params: Params, check: Callable[[], None]
    ) -> scores.Totals:
        multi_hot = examples.dataset.label_classes is not None
        totals = scores.Totals(self._num_classes, multi_hot=multi_hot)
        batches = examples.batches(check)
        for rows in a_batch_late(self._step(params, batch) for batch in batches):
            totals.add(jax.device_get(dict(rows)))
        totals.check(self._where)
        return totals


def _names(*, relative: bool) -> list[str]:
    names = ["accuracy", "mean_error"]
    names += ["mean_corruption_error"] if relative else []
    return [*names, "examples"]


def fill_in(
    section: Mapping[str, Any], corruption: str, severity: int
) -> dict[str, Any]:
    """The section with the names of a corruption and of a severity in their places.

    >>> fill_in({"data_dir": "C/{corruption}", "split": "{severity}"}, "fog", 3)
    {'data_dir': 'C/fog', 'split': '3'}
    """
    filled = dict(section)
    for key in _PATTERNS:
        if isinstance(value := filled.get(key), str):
            value = value.replace("{corruption}", corruption)
            filled[key] = value.replace("{severity}", str(severity))
    return filled


def relative_to_alexnet(errors: Mapping[str, list[float]]) -> dict[str, float]:
    """CE_c = sum_s E_{s,c} / sum_s E^AlexNet_{s,c}, by corruption; their mean is mCE.

    Section 4.1 of arXiv:1903.12261, as a fraction; papers print it times 100.

    >>> round(relative_to_alexnet({"fog": [0.819324] * 5})["fog"], 9)
    1.0
    """
    return {c: float(np.mean(e)) / ALEXNET[c] for c, e in errors.items()}


def _kind(examples: Examples) -> tuple[int | None, int | None]:
    return examples.dataset.num_classes, examples.dataset.label_classes
