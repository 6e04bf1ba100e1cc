"""A run: every part that a config names, built and checked against the others.

The keyword-only parameters of `Run` are the top-level keys of a config, and each
section is splatted into the function that owns it. Past this file there are only
values and objects; nobody reads a config.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Sequence
from typing import Any, Literal

import jax
import numpy as np
from etils import epath

from vit_jax import (
    checks,
    devices,
    distributed,
    host_memory,
    preemption,
    progress,
    sharding,
    steps,
    waiting,
    workdirs,
)
from vit_jax import data as datasets
from vit_jax.checkpoints.teacher import read_teacher
from vit_jax.data import Dataset, class_counts, remarks, sections
from vit_jax.data.shapes import DataShape
from vit_jax.errors import Preempted, UserError
from vit_jax.evaluators import EVALUATORS, Classification, Evaluator, Result
from vit_jax.lookahead import Batches
from vit_jax.objectives import Distillation, Mixing, Teacher, losses
from vit_jax.program import Program
from vit_jax.state import TrainState
from vit_jax.timing import StepTimer
from vit_jax.votes import OutOfData, Votes


class Run:
    """The parts of a run. Making one touches the devices and reads the data's index."""

    def __init__(
        self,
        evaluated: DataShape | None = None,
        *,
        seed: int = 0,
        batch_size: int,
        total_steps: int | None = None,
        total_epochs: float | None = None,
        accumulation_steps: int = 1,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mixup_prob: float | None = None,
        mixup_switch_prob: float | None = None,
        ema: float | None = None,
        log_every: int = 50,
        profile: tuple[int, int] | None = None,
        resume: str | None = None,
        init_from: str | None = None,
        init_weights: str | None = None,
        init_head: Literal["auto", "keep", "new"] = "auto",
        init_posemb: Literal["linear", "cubic"] = "linear",
        compilation_cache: str | None = "~/.cache/vit_jax",
        peer_timeout: float = 60.0,
        stall_timeout: float = 1800.0,
        model: dict[str, Any],
        data: dict[str, Any],
        loss: dict[str, Any],
        distill: dict[str, Any],
        optim: dict[str, Any],
        mesh: dict[str, Any],
        checkpoint: dict[str, Any],
        evals: dict[str, Any],
    ) -> None:
        """Builds the parts.

        Args:
          evaluated: what the weights were trained on, if they are to be evaluated and
            nothing else: the training data is then not opened, and need not be here.
          seed: all randomness is a function of it and of the step.
          batch_size: global.
          total_steps: this or `total_epochs`, exactly one.
          total_epochs: steps are ceil(epochs * examples / batch_size).
          accumulation_steps: micro-batches whose gradients make one update.
          mixup: alpha of the Beta distribution that mixes pairs of images; 0 is off.
          cutmix: that of the area of a box cut out of another image; 0 is off.
          mixup_prob: probability that a batch is mixed at all; default 1.
          mixup_switch_prob: with both, that it is by CutMix; default 0.5.
          ema: decay of the average of the parameters that evaluation uses; None is off.
          log_every: steps between lines in metrics.jsonl.
          profile: (first, last) step of a trace for TensorBoard's profiler.
          resume: a workdir whose full state a fresh workdir starts from.
          init_from: a workdir whose weights a fresh workdir starts from, or a
            checkpoint of another library: all that `vit_jax.load` reads.
          init_weights: which weights, if it is a training checkpoint of `torch.save`
            with several: see `weights` of `vit_jax.load`.
          init_head: of `init_from`: "keep" the head, start a "new" one, or "auto": keep
            it if it has as many classes.
          init_posemb: how their position embeddings are resampled for another
            resolution; see `checkpoints.position_embeddings.resample`.
          compilation_cache: a folder that keeps compiled programs; None is off.
          peer_timeout: of several processes, one that is silent for so many seconds
            is lost, and ends the run. `distributed.joined` has read it by now.
          stall_timeout: likewise one that lives, but makes no progress for so many
            seconds while others wait for it.
          model: see `models.create`; the other sections: see their owners in
            `vit_jax.config.owners`.

        Raises:
          UserError: if a value is out of its range or two do not go together.
        """
        checks.check_ranges(
            seed, batch_size, accumulation_steps, ema, log_every, profile
        )
        Mixing(
            mixup=mixup,
            cutmix=cutmix,
            mixup_prob=mixup_prob,
            mixup_switch_prob=mixup_switch_prob,
        )  # checks them before anything is read
        meet(compilation_cache)
        self.seed, self.batch_size, self.log_every = seed, batch_size, log_every
        self.profile, self.resume, self.init_from = profile, resume, init_from
        self.init_weights = init_weights
        self.init_head: Literal["auto", "keep", "new"] = init_head
        self.init_posemb: Literal["linear", "cubic"] = init_posemb
        self.model_fields = model
        self.checkpoint = checkpoint

        if data["mixture"] and data["name"] != "mixture":
            raise UserError(
                f'config.data.mixture has no effect with config.data.name="'
                f'{data["name"]}": set config.data.name="mixture", or remove the parts'
            )
        data = sections.with_holdout(data, evals)
        self._dataset = datasets.make(**data) if evaluated is None else None
        self.shape = evaluated or self.dataset
        height, width, _ = self.shape.image_shape
        share = batch_size / jax.process_count()
        checks.check_memory(
            f"a batch of {batch_size:,} images of {height} x {width} pixels",
            3 * share * height * width,
            "lower config.batch_size",
        )
        given = model["num_classes"]
        if evaluated is None:
            dataset = self.dataset
            # What labels alone imply is for the check of the labels to refuse or skip.
            known = dataset if given is None else dataset.source
            self.num_classes = checks.head_width(given, known.num_classes)
            self.total_steps = checks.resolve_steps(
                total_steps, total_epochs, dataset.num_examples, batch_size
            )
            self.stream = {
                "seed": seed,
                "batch_size": batch_size,
                "data": dataset.fingerprint,
                "sample": dataset.sample,
            }
        else:
            trained = evaluated.num_classes or 0
            # Another width than that of the weights is for their reader to refuse.
            self.num_classes = given if given and trained else trained
            self.total_steps = checks.LARGEST_STEP  # of a schedule that nothing asks
        if profile is not None and profile[1] > self.total_steps:
            raise UserError(
                f"config.profile is {profile}, past the end: {self.total_steps} steps"
            )
        loss = self._with_class_weights(loss)
        self.program = Program(
            self.shape,
            jax.devices(),
            self._read_teacher(Distillation(**distill), model["dtype"]),
            seed=seed,
            batch_size=batch_size,
            total_steps=self.total_steps,
            num_classes=self.num_classes,
            accumulation_steps=accumulation_steps,
            mixup=mixup,
            cutmix=cutmix,
            mixup_prob=mixup_prob,
            mixup_switch_prob=mixup_switch_prob,
            ema=ema,
            model=model,
            loss=loss,
            optim=optim,
            mesh=mesh,
        )
        self.mesh = self.program.mesh
        self.abstract_state = self.program.abstract_state
        checks.check_memory(
            "the state of the model and its optimiser",
            checks.state_bytes(self.abstract_state),
            "choose a smaller model, or more devices with config.mesh.fsdp",
        )
        self.batch_sharding = sharding.batch_sharding(self.mesh)
        self.rows = sharding.process_rows(self.batch_sharding, batch_size)
        self.votes = Votes()
        self.evaluators: list[Evaluator] = [
            EVALUATORS[entry["type"]](name, self.mesh, data, batch_size, **entry)
            for name, entry in evals.items()
        ]

    @property
    def dataset(self) -> Dataset:
        """The training data, which a run that only evaluates has not opened."""
        assert self._dataset is not None
        return self._dataset

    def notes(self) -> list[str]:
        """What a user should know of the data before it begins: how it was found."""
        sets = [] if self._dataset is None else [self._dataset]
        in_data = sets[0].num_classes if sets else None
        sets += [x.dataset for e in self.evaluators for x in e.all_examples()]
        notes = [note for dataset in sets for note in dataset.source.notes]
        notes += checks.wider_head(self.num_classes, in_data)
        if self.class_counts is not None and self.class_weights is not None:
            least, most = min(self.class_weights), max(self.class_weights)
            notes.append(
                f"classes weigh {least:.4g} to {most:.4g} in the loss, by their number "
                "of training images: class_weights.json"
            )
        notes += [f"{e.name}: {note}" for e in self.evaluators for note in e.notes]
        return list(dict.fromkeys(notes))

    def warnings(self) -> list[str]:
        """What is most likely not as the user wants it: see `data.remarks`."""
        found = remarks.of_training(self.dataset)
        for evaluator in self.evaluators:
            if isinstance(evaluator, Classification):
                for examples in evaluator.all_examples():
                    found += remarks.of_evaluation(
                        evaluator.name, examples.dataset, self.dataset
                    )
        return found

    def check_data(self) -> None:
        """Reads a batch of all that training and the evaluations will read."""
        self.dataset.check(
            num_classes=self.num_classes,
            train=True,
            batch_size=self.batch_size,
            one_class=self.program.eval_loss.name == "softmax_xent",
        )
        self.check_evaluators(self.dataset.label_names)

    def check_evaluators(self, label_names: Sequence[str] | None) -> None:
        """Reads a batch of what the evaluations will read.

        Args:
          label_names: of the classes of the model that will be evaluated.
        """
        for evaluator in self.evaluators:
            preemption.check()
            evaluator.check(
                self.num_classes,
                self.program,
                self.abstract_state.params,
                label_names,
            )

    def _with_class_weights(self, loss: dict[str, Any]) -> dict[str, Any]:
        """`config.loss` with numbers for "balanced"; evaluations weigh no classes."""
        self.class_counts: np.ndarray | None = None
        weights = loss["class_weights"]
        if self._dataset is None:
            weights = None
        elif weights == "balanced":
            self.class_counts = class_counts.count(self._dataset, self.num_classes)
            examples = self._dataset.num_examples
            if not self._dataset.source.multi_hot:
                examples = int(self.class_counts.sum())
            weights = losses.balanced_weights(self.class_counts, examples)
        self.class_weights: tuple[float, ...] | None = weights
        return {**loss, "class_weights": weights}

    def _read_teacher(self, distillation: Distillation, dtype: str) -> Teacher | None:
        if distillation.teacher is None or self._dataset is None:  # it does not train
            return None
        path = workdirs.absolute(distillation.teacher)
        teacher, said = read_teacher(
            distillation,
            path,
            num_classes=self.num_classes,
            label_names=self.dataset.label_names,
            image_size=self.dataset.image_size,
            dtype=dtype,
            progress=progress.of_reading(path),
        )
        if distributed.is_first():
            print(f"The teacher is {path}.", *said, sep="\n  ", flush=True)
        return teacher

    def compile_train_step(self) -> Any:
        """The compiled step, a function (state, batch) -> (state, scalars)."""
        step = self.program.compile_train_step()
        constants = self.program.objective.constants
        if constants is None:
            return step
        there = sharding.put_everywhere(self.mesh, constants)
        return lambda state, batch: step(state, batch, there)

    def compile_evaluators(self) -> None:
        for evaluator in self.evaluators:
            evaluator.compile()

    def batches(
        self, start_step: int, found: list[datasets.Skipped] | None = None
    ) -> Batches:
        """Global batches on the devices, for the steps after `start_step`.

        What this process had to skip in them is added to `found`.

        A signal ends them early if the next one is not there.
        """

        def put(read: tuple[datasets.Batch, list[datasets.Skipped]]) -> steps.Batch:
            batch, skipped = read
            if found is not None:
                found.extend(skipped)
            return sharding.put_batch(batch, self.batch_sharding, self.batch_size)

        return Batches(self._read(start_step), put, ahead=not distributed.alone())

    def _read(
        self, start_step: int
    ) -> Generator[tuple[datasets.Batch, list[datasets.Skipped]], None, None]:
        """Batches in the memory of the host, and what was skipped in each."""
        batches = self.dataset.train_batches(
            batch_size=self.batch_size,
            seed=self.seed,
            start_step=start_step,
            total_steps=self.total_steps,
            rows=self.rows,
            num_classes=self.num_classes,
        )
        with contextlib.closing(waiting.batches(batches)) as read:
            while True:
                try:
                    batch = next(read, None)
                except Preempted:
                    return
                except Exception:  # raised again unless a signal explains it
                    if preemption.requested() and distributed.alone():
                        return
                    raise
                if batch is None:
                    return
                skipped = list(batches.skipped)
                batches.skipped.clear()
                yield batch, skipped

    def pauses_at(self, step: int) -> bool:
        """Whether something besides training is due after this step."""
        return step == self.total_steps or any(
            evaluator.due(step, self.total_steps) for evaluator in self.evaluators
        )

    def result_names(self) -> list[str]:
        """What `evaluate` may return, which `config.checkpoint.best` chooses from."""
        names = [n for evaluator in self.evaluators for n in evaluator.result_names()]
        if self.abstract_state.ema_params is not None:
            names += [name.replace("/", "/raw/", 1) for name in names]
        return names

    def check(self, save: Callable[[], None] | None = None) -> None:
        """Called once a batch of an evaluation, to heed signals.

        Args:
          save: called if a save is asked for, on all processes alike.

        Raises:
          OutOfData: if one of several processes has no more batches to train on, on
            all alike.
          Preempted: if a signal to stop has arrived, on all processes alike.
        """
        vote = self.votes.ask()
        if vote.lost:
            raise OutOfData
        if vote.stop:
            raise Preempted
        if vote.save and save is not None:
            save()

    def evaluate(
        self, state: TrainState, step: int, check: Callable[[], None]
    ) -> dict[str, Result]:
        """Results of the evaluations that are due, by name.

        Where there is an average of the parameters, they are of it, and the scalars
        NAME/raw/... of the parameters themselves.

        Args:
          state: of the run.
          step: that it is of.
          check: called once a batch; what it raises ends the evaluation.
        """
        results: dict[str, Result] = {}
        for evaluator in self.evaluators:
            if evaluator.due(step, self.total_steps):
                result = evaluator.run(state.best_params, check)
                if state.ema_params is not None:
                    raw = evaluator.run(state.params, check).scalars
                    raw = {k.replace("/", "/raw/", 1): v for k, v in raw.items()}
                    scalars = result.scalars | raw
                    result = dataclasses.replace(result, scalars=scalars)
                results[evaluator.name] = result
        return results

    def timer(self, start_step: int, elapsed_s: float) -> StepTimer:
        """See `StepTimer`."""
        return StepTimer(
            batch_size=self.batch_size,
            total_steps=self.total_steps,
            start_step=start_step,
            num_devices=self.mesh.size,
            elapsed_s=elapsed_s,
        )


def meet(compilation_cache: str | None) -> None:
    """Finds the devices: all processes meet here, before bad input can end one of them.

    Args:
      compilation_cache: see `Run`.
    """
    use_compilation_cache(compilation_cache)
    host_memory.keep_freed_memory()
    devices.find()


def use_compilation_cache(folder: str | None) -> None:
    """Keeps compiled programs on disk; JAX_COMPILATION_CACHE_DIR, if set, wins."""
    if folder is None:
        jax.config.update("jax_enable_compilation_cache", False)
    elif jax.config.values["jax_compilation_cache_dir"] is None:
        path = epath.Path(folder).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(path))
