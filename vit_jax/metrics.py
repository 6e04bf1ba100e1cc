"""Where numbers go: metrics.jsonl, TensorBoard and the console.

A scalar's name says what it is: `train/...` (or no slash) comes from training,
`timing/...` varies with the clock, and any other prefix names an evaluation.
"""

import contextlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import tqdm
from etils import epath

from vit_jax import console
from vit_jax.errors import UserError
from vit_jax.jsonlines import JsonLines, Scalar, as_number, user_errors
from vit_jax.limits import is_number
from vit_jax.tensorboard import EventWriter


class MetricLogger:
    """Writes scalars to `metrics.jsonl`, `tensorboard/` and the console.

    Only process 0 writes; elsewhere every method does nothing.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        restored_step: int | None,
        total_steps: int,
        progress: bool | None = None,
    ):
        """Opens the writers.

        Args:
            workdir: A directory, local or in an object store; made if missing.
            restored_step: Lines of metrics.jsonl of later steps are dropped; None
                (a run from scratch) drops all.
            total_steps: Last step of the run.
            progress: A progress bar instead of plain lines; None decides by whether
                stderr is a terminal.

        Raises:
            UserError: The workdir cannot be written.
        """
        self._lines = None
        if jax.process_index() != 0:
            return
        workdir = epath.Path(workdir)
        with user_errors(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
        lines = JsonLines(workdir / "metrics.jsonl", restored_step=restored_step)
        with _tensorboard_errors():
            self._events = EventWriter(workdir / "tensorboard")
        self._lines = lines
        self._console = Console(
            total_steps=total_steps,
            start_step=restored_step or 0,
            progress=sys.stderr.isatty() if progress is None else progress,
        )

    def write(
        self,
        step: int,
        scalars: Mapping[str, Scalar],
        *,
        shown: Mapping[str, Scalar] | None = None,
    ) -> None:
        """One line of metrics.jsonl, points in TensorBoard, and what a person reads.

        Give all scalars of a step in one call: each call writes a line of its own.

        Args:
            step: That they are of.
            scalars: By name.
            shown: What the console shows instead of those of the same names.
        """
        if self._lines is None:
            return
        numbers = {name: as_number(value) for name, value in scalars.items()}
        self._lines.write(step, numbers)
        with _tensorboard_errors():
            self._events.scalars(step, numbers)
        instead = {n: as_number(x) for n, x in (shown or {}).items() if n in numbers}
        self._console.write(step, numbers | instead)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Texts (Markdown) for TensorBoard."""
        if self._lines is not None:
            with _tensorboard_errors():
                self._events.texts(step, texts)

    def write_config(self, step: int, config: Mapping[str, Any]) -> None:
        """The config for TensorBoard's TEXT tab, and its leaves for HPARAMS."""
        if self._lines is None:
            return
        text = json.dumps(config, indent=2, sort_keys=True)
        with _tensorboard_errors():
            self._events.texts(step, {"config": f"```json\n{text}\n```"})
            self._events.hparams(flat(config))

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Pictures for TensorBoard: uint8 [h, w, 3] by name."""
        if self._lines is not None:
            with _tensorboard_errors():
                self._events.images(step, images)

    def print(self, message: str) -> None:
        """A line on the console, above the progress bar if there is one."""
        if self._lines is not None:
            self._console.print(message)

    def flush(self) -> None:
        """Returns when what was written is durable.

        Called before the checkpoint of a step is committed, so that no checkpoint
        lacks its lines.
        """
        if self._lines is not None:
            self._lines.flush()
            with _tensorboard_errors():
                self._events.flush()

    def close(self) -> None:
        """Flushes and closes everything; a second call does nothing."""
        if self._lines is None:
            return
        self._console.close()
        lines, self._lines = self._lines, None
        lines.close()
        with _tensorboard_errors():
            self._events.close()


@contextlib.contextmanager
def _tensorboard_errors() -> Iterator[None]:
    """Turns the system's errors into one of the user."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"Cannot write TensorBoard's files: {error.strerror or error}. Checkpoints "
            "are whole: make room and run the same command again"
        ) from error


class Console:
    """A progress bar on a terminal, plain lines elsewhere."""

    def __init__(self, *, total_steps: int, start_step: int, progress: bool):
        self._total_steps = total_steps
        self._bar = None
        if progress:
            self._bar = tqdm.tqdm(
                total=total_steps,
                initial=start_step,
                unit="step",
                dynamic_ncols=True,
                bar_format="{percentage:3.0f}% |{bar}| {n}/{total}{postfix}",
            )

    def write(self, step: int, scalars: Mapping[str, float | int]) -> None:
        """One line (or the bar) for training, and a line for each evaluation."""
        train, evals = split_by_source(scalars)
        line = training_line(train)
        if self._bar is not None:
            if line:
                self._bar.set_postfix_str(line, refresh=False)
                console.lines.info(f"{self._at(step)} {line}")
            self._bar.update(step - self._bar.n)
            self._bar.refresh()
        elif line:
            self.print(f"{self._at(step)} {line}")
        for name, values in evals.items():
            self.print(f"{self._at(step)} {name}: {format_scalars(values)}")

    def print(self, message: str) -> None:
        if self._bar is None:
            print(message, flush=True)
        else:
            self._bar.write(message)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _at(self, step: int) -> str:
        return f"step {step}/{self._total_steps} ({100 * step // self._total_steps}%)"


def flat(config: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """The leaves of a config by their whole names; what is no scalar as text.

    >>> flat({"seed": 0, "model": {"patch_size": (4, 4), "pool": None}})
    {'seed': 0, 'model.patch_size': '(4, 4)', 'model.pool': 'None'}
    """
    leaves: dict[str, Any] = {}
    for name, value in config.items():
        where = f"{path}.{name}" if path else name
        if isinstance(value, Mapping):
            leaves |= flat(value, where)
        else:
            scalar = isinstance(value, bool | int | float | str)
            leaves[where] = value if scalar else str(value)
    return leaves


def split_by_source(
    scalars: Mapping[str, float],
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Scalars of training (`train/` removed), and those of each evaluation.

    >>> split_by_source({"train/loss": 2, "timing/eta_s": 9, "test/accuracy": 0.5})
    ({'loss': 2, 'timing/eta_s': 9}, {'test': {'accuracy': 0.5}})
    """
    train: dict[str, float] = {}
    evals: dict[str, dict[str, float]] = {}
    for name, value in scalars.items():
        name = name.removeprefix("train/")
        source, _, rest = name.partition("/")
        if rest and source != "timing":
            evals.setdefault(source, {})[rest] = value
        else:
            train[name] = value
    return train, evals


def training_line(scalars: Mapping[str, float]) -> str:
    """What a person wants to see of a training step.

    >>> training_line({"loss": 1.25, "accuracy": 0.5, "learning_rate": 1e-3,
    ...                "grad_norm": 0.7, "timing/images_per_s": 1234.2,
    ...                "timing/eta_s": 62.4})
    'loss 1.2500 accuracy 0.5000 lr 1.00e-03 1,234 img/s eta 0:01:02'
    """
    shown = {
        "loss": lambda x: f"loss {fixed(x)}",
        "accuracy": lambda x: f"accuracy {fixed(x)}",
        "learning_rate": lambda x: f"lr {x:.2e}",
        "timing/images_per_s": lambda x: (
            f"{x:,.0f} img/s" if x >= 10 else f"{x:.2g} img/s"
        ),
        "timing/eta_s": lambda x: f"eta {format_seconds(x)}",
    }
    return " ".join(show(scalars[k]) for k, show in shown.items() if k in scalars)


def format_scalars(scalars: Mapping[str, float | str]) -> str:
    """Names and values on one line; values may be strings of metrics.jsonl.

    >>> format_scalars({"loss": 0.31234567, "accuracy": "NaN", "examples": 2000})
    'accuracy nan examples 2,000 loss 0.3123'
    >>> format_scalars({"10shot": 0.7967, "1shot": 0.5, "5shot": 0.8})
    '1shot 0.5000 5shot 0.8000 10shot 0.7967'
    """
    return " ".join(
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {fixed(value)}"
        for name, value in sorted(scalars.items(), key=lambda item: by_number(item[0]))
    )


def fixed(value: float | str) -> str:
    """A number with four digits after the point, so that those of a column line up.

    Numbers too small or too large for that have four digits that count.

    >>> [fixed(x) for x in (0.8, 0.79666, 0, 12.5, 1234.56, 0.00012, "NaN")]
    ['0.8000', '0.7967', '0.0000', '12.5000', '1235', '0.0001200', 'nan']
    """
    number = float(value)
    if number and not 1e-3 <= abs(number) < 1e3:
        return f"{number:#.4g}".rstrip(".")
    return f"{number:.4f}"


def by_number(name: str) -> list[tuple[bool, int, str]]:
    """A key to sort names by, in which the numbers in them count as numbers.

    >>> sorted(["10shot", "accuracy", "1shot", "5shot"], key=by_number)
    ['1shot', '5shot', '10shot', 'accuracy']
    """
    parts = re.findall(r"\d+|\D+", name)
    numbers = [int(part) if is_number(part) else None for part in parts]
    return [(n is None, n or 0, part) for n, part in zip(numbers, parts, strict=True)]


def format_seconds(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> format_seconds(3661.2), format_seconds(90061)
    ('1:01:01', '25:01:01')
    """
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}"


def print_summary(
    *,
    step: int,
    results: Mapping[str, Mapping[str, float | str]],
    seconds: float,
    places: Mapping[str, str],
    next_command: str,
) -> None:
    """Prints the last words of a run, on process 0.

    Args:
        step: The last step.
        results: Scalars of each evaluation.
        seconds: How long the run took.
        places: Where things are, by what they are.
        next_command: What to type next.

    >>> print_summary(step=100, results={"test": {"accuracy": 0.9}}, seconds=62,
    ...               places={"checkpoints": "/tmp/a/checkpoints"},
    ...               next_command="tensorboard --logdir /tmp/a")
    Finished at step 100 after 0:01:02.
      test         accuracy 0.9000
      checkpoints  /tmp/a/checkpoints
      try next     tensorboard --logdir /tmp/a
    """
    if jax.process_index() != 0:
        return
    rows = {name: format_scalars(values) for name, values in results.items()}
    rows |= {**places, "try next": next_command}
    width = max(map(len, rows))
    print(f"Finished at step {step} after {format_seconds(seconds)}.")
    for name, text in rows.items():
        print(f"  {name:<{width}}  {text}")


def parameter_overview(params: Any) -> str:
    """A table of the parameters' names, shapes, types and sizes, and their total.

    Takes arrays or ShapeDtypeStructs.

    >>> import jax.numpy as jnp
    >>> table = parameter_overview({"head": {"kernel": jnp.zeros((2, 3))}})
    >>> table.splitlines()[-1]
    'Total: 6 -- 24 bytes'
    """
    from clu import parameter_overview as clu_overview

    return clu_overview.get_parameter_overview(params, include_stats=False)
