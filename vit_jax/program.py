"""What is compiled: the model, the optimiser and the steps, laid out over a mesh.

A program knows the shapes of its data but reads none, and its mesh may be of devices
that this machine does not have. Training and planning make it in the same way, so that
what is planned is what runs.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import jax

from vit_jax import layouts, models, sharding, state, steps
from vit_jax import optim as optimizers
from vit_jax.errors import UserError
from vit_jax.objectives import (
    Classification,
    Distilled,
    Mixing,
    Objective,
    Teacher,
    losses,
)


class DataShape(Protocol):
    """What a program has to know of its training data; a `data.Dataset` has it."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        ...

    @property
    def label_classes(self) -> int | None:
        """k of labels that are vectors [b, k]; None for class numbers [b]."""
        ...

    @property
    def mean(self) -> tuple[float, float, float]: ...

    @property
    def std(self) -> tuple[float, float, float]: ...


class Program:
    """The steps of a run as pure functions, and the abstract state they work on.

    Attributes:
      layout: how many devices each axis of the mesh takes.
      mesh: that everything is laid out over.
      model: the Linen module.
      tx: the optimiser, and `schedule`, its learning rate as a function of the step.
      initialize: a function without arguments that computes the state at step 0.
      abstract_state: its shapes, types and shardings.
      abstract_batch: those of a global batch.
      objective: what is learned.
      eval_loss: the loss of evaluations.
    """

    def __init__(
        self,
        data: DataShape,
        devices: Sequence[Any],
        teacher: Teacher | None = None,
        *,
        seed: int,
        batch_size: int,
        total_steps: int,
        num_classes: int,
        accumulation_steps: int,
        mixup: float,
        cutmix: float = 0.0,
        mixup_prob: float | None = None,
        mixup_switch_prob: float | None = None,
        ema: float | None,
        model: dict[str, Any],
        loss: dict[str, Any],
        optim: dict[str, Any],
        mesh: dict[str, Any],
    ) -> None:
        """Builds the parts; the keywords are explained in `vit_jax.run.Run`.

        Args:
          data: the shape of the training data.
          devices: to lay everything out over; they need not be here.
          teacher: that the model learns from, see `vit_jax.objectives`.

        Raises:
          UserError: if a value is out of its range or two do not go together.
        """
        self.batch_size, self.num_classes = batch_size, num_classes
        keys: dict[str, Any] = {**model, "num_classes": num_classes}
        plain = models.create(**keys)
        needs = layouts.Needs(
            devices=len(devices),
            slices=layouts.count_slices(devices),
            batch_size=batch_size,
            accumulation_steps=accumulation_steps,
            model=models.shared_dims(plain),
        )
        self.layout = layouts.resolve(layouts.Layout(**mesh), needs)
        self.mesh = layouts.make_mesh(self.layout, devices)
        device, attend = self.mesh.devices.flat[0], None
        if isinstance(plain, models.VisionTransformer):
            attend = models.choose_attention(
                plain.attention,
                device.platform,
                device.device_kind,
                getattr(device, "compute_capability", None),  # of GPUs
            )
        if attend is not None:
            shared_out = sharding.over_heads(self.mesh, attend.run)
            attend = dataclasses.replace(attend, run=shared_out)
        self.model = models.place(
            plain,
            constrain=sharding.residual_constraint(self.mesh),
            attend=attend,
            classify=sharding.shared_classifier(self.mesh),
            platform=device.platform,
        )
        # The plain one initialises: a single image cannot be shared out.
        shapes = state.abstract_params(plain, data.image_shape)
        self.tx, self.schedule = optimizers.make(shapes, total_steps, **optim)
        frozen_by = ("lr_multipliers", "train_only")
        freezing = {key: optim[key] for key in frozen_by if key in optim}
        train_loss = losses.make(**loss)
        weights = train_loss.class_weights
        if weights is not None and len(weights) != num_classes:
            raise UserError(
                f"config.loss.class_weights has {len(weights)} numbers, and the head "
                f"{num_classes} classes: give one for each"
            )
        labels = Classification(
            apply=self.model.apply,
            loss=train_loss,
            mixing=Mixing(
                mixup=mixup,
                cutmix=cutmix,
                mixup_prob=mixup_prob,
                mixup_switch_prob=mixup_switch_prob,
            ),
            num_classes=num_classes,
            mean=data.mean,
            std=data.std,
        )
        self.objective: Objective = labels
        if teacher is not None:
            two_heads = getattr(plain, "distilled", False)
            self.objective = Distilled(
                labels=labels, teacher=teacher, two_heads=two_heads
            )
        self.initialize = state.make_initializer(
            plain,
            self.tx,
            data.image_shape,
            ema=ema is not None,
            seed=seed,
            of_objective=self.objective.init,
        )
        self.abstract_state = state.abstract_state(
            self.initialize, self.mesh, zero1=self.layout.zero1
        )
        self.abstract_batch = steps.abstract_batch(
            self.mesh, batch_size, data.image_shape, label_classes=data.label_classes
        )
        self.train_step = steps.make_train_step(
            self.objective,
            self.tx,
            self.schedule,
            seed=seed,
            accumulation_steps=accumulation_steps,
            ema=ema,
            frozen=optimizers.frozen_paths(shapes, **freezing),
        )
        # Without smoothing and weights: it can be compared with other people's.
        plain_loss = {"label_smoothing": 0.0, "class_weights": None}
        self.eval_loss = losses.make(**{**loss, **plain_loss})

    def trace_train_step(self) -> jax.stages.Traced:
        """The training step as JAX sees it."""
        arguments: list[Any] = [self.abstract_state, self.abstract_batch]
        if self.objective.constants is not None:
            constants = self.objective.constants
            arguments.append(sharding.abstract_everywhere(self.mesh, constants))
        return steps.trace_train_step(self.train_step, self.mesh, *arguments)

    def lower_train_step(self) -> jax.stages.Lowered:
        """The training step as the compiler is given it."""
        return self.trace_train_step().lower()

    def compile_train_step(self) -> jax.stages.Compiled:
        return steps.compile_train_step(self.lower_train_step(), self.mesh)
