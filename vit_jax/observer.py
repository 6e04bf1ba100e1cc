"""What a run tells of its steps, without making the device wait for the host."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath

from vit_jax.bad_examples import BadExamples
from vit_jax.errors import NonFiniteLossError
from vit_jax.metrics import MetricLogger
from vit_jax.timing import StepTimer

Scalars = dict[str, Any]


# What `Observer` logs of training, as train/..., besides times: what a step returns
# (accuracy where labels are class numbers), and how far it is.
TRAIN_SCALARS = (
    "loss",
    "accuracy",
    "learning_rate",
    "grad_norm",
    "update_norm",
    "param_norm",
    "bad_examples",
    "examples_seen",
    "epoch",
)


class Observer:
    """Reads the scalars of each step one step late, and writes them when due."""

    def __init__(
        self,
        logger: MetricLogger,
        timer: StepTimer,
        bad_examples: BadExamples,
        *,
        batch_size: int,
        num_examples: int,
        log_every: int,
        total_steps: int,
    ) -> None:
        self.logger, self.timer, self.bad_examples = logger, timer, bad_examples
        self._batch_size, self._num_examples = batch_size, num_examples
        self._log_every, self._total_steps = log_every, total_steps
        self._newest: tuple[int, Mapping[str, jax.Array]] | None = None
        self._means = Means(("loss", "accuracy"))

    def push(self, step: int, scalars: Mapping[str, jax.Array]) -> None:
        """Takes the scalars of a step just dispatched; reads those of the one before.

        By then the device has the next step to do, so it does not wait.

        Raises:
          NonFiniteLossError: if the step before went wrong.
        """
        if self._newest is not None:
            before, line = self._newest[0], self.drain()
            if line:
                self.write(before, line)
        self._newest = (step, scalars)

    def write(self, step: int, line: Scalars) -> None:
        """Writes a line; a person is shown means over the steps since the last one."""
        self.logger.write(step, line, shown=self._means.take())

    def drain(self) -> Scalars:
        """The scalars of the newest step, waiting for it; {} if no line is due.

        Raises:
          NonFiniteLossError: if the step went wrong.
          UserError: if it brought too many bad examples.
        """
        assert self._newest is not None
        step, on_device = self._newest
        self._newest = None
        values = {name: v.item() for name, v in jax.device_get(dict(on_device)).items()}
        finite = values.pop("finite")
        self._means.add(values)
        line = {f"train/{name}": value for name, value in values.items()}
        shown, bad = step * self._batch_size, values["bad_examples"]
        seen = shown - bad
        self.bad_examples.update(bad, shown)
        line |= {"train/examples_seen": seen, "train/epoch": seen / self._num_examples}
        if not finite:
            self.write(step, line)
            raise NonFiniteLossError(
                f"step {step}: the loss is {values['loss']:.4g} with gradient norm "
                f"{values['grad_norm']:.4g} and update norm {values['update_norm']:.4g}"
            )
        if step % self._log_every and step not in (1, self._total_steps):
            return {}
        return line | self.timer.report(step)

    def flush(self) -> None:
        """Returns when what was written is durable."""
        self.logger.flush()
        self.bad_examples.flush()

    def close(self) -> None:
        self.logger.close()
        self.bad_examples.close()


class Means:
    """Means of some scalars over the steps since they were last asked for.

    One batch says little: its loss depends on which images are in it, and how they are
    mixed. These means are for the console alone, since after a resume they are of
    fewer steps; metrics.jsonl has what each step itself had.

    >>> means = Means(("loss", "accuracy"))
    >>> means.add({"loss": 1.0, "learning_rate": 0.1}), means.add({"loss": 4.0})
    (None, None)
    >>> means.take(), means.take()
    ({'train/loss': 2.5}, {})
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._sums: dict[str, float] = {}
        self._steps = 0

    def add(self, values: Mapping[str, float]) -> None:
        """Takes the scalars of one step."""
        self._steps += 1
        for name in self._names:
            if name in values:
                before = self._sums[name] if name in self._sums else 0.0
                self._sums[name] = before + values[name]

    def take(self) -> Scalars:
        """The means so far, by the names of metrics.jsonl; begins again."""
        means = {f"train/{name}": x / self._steps for name, x in self._sums.items()}
        self._sums, self._steps = {}, 0
        return means


class Tracer:
    """A trace of some steps for the profiler of TensorBoard or XProf."""

    def __init__(self, workdir: epath.Path, steps: tuple[int, int] | None) -> None:
        self._directory = workdir / "tensorboard"
        self._first, self._last = steps or (0, 0)
        self._running = False

    def before(self, step: int) -> None:
        if self._first <= step <= self._last and not self._running:
            jax.profiler.start_trace(str(self._directory))
            self._running = True

    def after(self, step: int, state: Any) -> None:
        """Ends the trace once the device has finished its last step."""
        if self._running and step >= self._last:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
