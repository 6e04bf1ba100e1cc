"""Learning-rate schedules: from the number of updates made to the learning rate.

A schedule is warm-up x decay, and for the open-ended ones a final cool-down. `step`
counts finished updates, so the first update of a run with warm-up has rate 0, and
`end_learning_rate` is reached after the last one, at `total_steps`.
"""

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from vit_jax.errors import UserError

Schedule = Callable[[jax.typing.ArrayLike], jax.Array]
ScheduleName = Literal["cosine", "linear", "rsqrt", "constant"]


def make(
    total_steps: int,
    *,
    schedule: ScheduleName = "cosine",
    learning_rate: float = 1e-3,
    warmup_steps: int = 0,
    timescale: int | None = None,
    cooldown_steps: int | None = None,
    end_learning_rate: float = 0.0,
) -> Schedule:
    """Returns the schedule; it may be called with a Python int or a traced one.

    Args:
        total_steps: Number of updates of the whole run.
        schedule: Shape of the decay after the warm-up.
        learning_rate: The peak.
        warmup_steps: Linear warm-up from 0; update number `warmup_steps` (from 0) is
            the first at the peak.
        timescale: Only "rsqrt": after this many steps of decay the rate is
            peak / sqrt(2). 10,000 unless given.
        cooldown_steps: Only "rsqrt" and "constant": the last steps, over which the
            rate falls linearly to `end_learning_rate`. None unless given.
        end_learning_rate: The rate at `total_steps`.

    Source: `create_learning_rate_schedule` of big_vision, which has no
    `end_learning_rate` for "cosine" and "rsqrt" (0 there); the reciprocal square root
    with cool-down is section 3.5 of "Scaling Vision Transformers" (2106.04560).

    Raises:
        UserError: Numbers that do not fit each other, or a key that is not read.

    >>> f = make(100, schedule="linear", learning_rate=0.5, warmup_steps=20)
    >>> [float(f(step)) for step in (0, 10, 20, 60, 100)]
    [0.0, 0.25, 0.5, 0.25, 0.0]
    """
    _check_range(
        total_steps=total_steps,
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        timescale=timescale,
        cooldown_steps=cooldown_steps,
        end_learning_rate=end_learning_rate,
    )
    _check_read(schedule, timescale, cooldown_steps, end_learning_rate)
    cooldown = cooldown_steps or 0
    if warmup_steps >= total_steps or warmup_steps + cooldown > total_steps:
        raise UserError(
            f"The schedule does not fit the run: warmup_steps={warmup_steps:,}"
            + (f" + cooldown_steps={cooldown:,}" if cooldown else "")
            + f", but total_steps={total_steps:,}. Lower them or train for longer."
        )

    peak, end = learning_rate, end_learning_rate
    decay_steps = total_steps - warmup_steps

    def learning_rate_at(step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(step)
        # Integers are subtracted before the division: what is left of the run is then
        # exact in float32 to its last step, which 1 - progress is not.
        left = jnp.clip((total_steps - step) / decay_steps, 0.0, 1.0)
        if schedule == "cosine":
            # sin^2(pi/2 (1 - progress)) = (1 + cos(pi progress)) / 2
            rate = end + (peak - end) * jnp.sin(0.5 * math.pi * left) ** 2
        elif schedule == "linear":
            rate = end + (peak - end) * left
        elif schedule == "rsqrt":
            decayed = jnp.maximum(step - warmup_steps, 0)
            rate = peak / jnp.sqrt(1 + decayed / (timescale or 10_000))
        else:
            rate = jnp.full(step.shape, peak)
        if warmup_steps:
            rate *= jnp.minimum(1.0, step / warmup_steps)
        if cooldown:
            rate = end + (rate - end) * jnp.clip(
                (total_steps - step) / cooldown, 0.0, 1.0
            )
        return rate.astype(jnp.float32)

    return learning_rate_at


def _check_range(**values: float | None) -> None:
    at_least_one = ("total_steps", "timescale")
    for name, value in values.items():
        low = 1 if name in at_least_one else 0
        if value is not None and not (low <= value < math.inf):
            raise UserError(f"{name} must be at least {low}, but it is {value}.")


def _check_read(
    schedule: str, timescale: int | None, cooldown: int | None, end: float
) -> None:
    decays_to_end = schedule in ("cosine", "linear")
    if schedule not in ("cosine", "linear", "rsqrt", "constant"):
        raise UserError(
            f'schedule="{schedule}" is unknown; it is one of cosine, linear, rsqrt, '
            "constant."
        )
    if timescale is not None and schedule != "rsqrt":
        raise UserError(
            f'timescale={timescale} is read only by schedule="rsqrt", but '
            f'schedule="{schedule}". Remove it or change the schedule.'
        )
    if cooldown is not None and decays_to_end:
        raise UserError(
            f'cooldown_steps={cooldown} is read only by schedule="rsqrt" and '
            f'"constant"; "{schedule}" already decays to end_learning_rate.'
        )
    if end and not decays_to_end and not cooldown:
        raise UserError(
            f'end_learning_rate={end:g} is never reached by schedule="{schedule}" '
            "without cooldown_steps. Set cooldown_steps, or remove end_learning_rate."
        )
