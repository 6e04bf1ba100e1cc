"""The schedules against their formulas in NumPy float64, at every step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import schedules
from vit_jax.errors import UserError

TOTAL, WARMUP, COOLDOWN, TIMESCALE, PEAK, END = 1000, 100, 200, 150, 3e-3, 1e-5
STEPS = np.arange(TOTAL + 1)
RAMP = np.minimum(1, STEPS / WARMUP)
PROGRESS = np.clip((STEPS - WARMUP) / (TOTAL - WARMUP), 0, 1)
FALL = np.minimum(1, (TOTAL - STEPS) / COOLDOWN)
RSQRT = PEAK * RAMP / np.sqrt(1 + np.maximum(STEPS - WARMUP, 0) / TIMESCALE)
COSINE = 0.5 * (1 + np.cos(np.pi * PROGRESS))

CASES = {
    "cosine": ({}, PEAK * RAMP * COSINE),
    "cosine to end": (
        {"end_learning_rate": END},
        RAMP * (END + (PEAK - END) * COSINE),
    ),
    "linear": ({}, PEAK * RAMP * (1 - PROGRESS)),
    "linear to end": (
        {"end_learning_rate": END},
        RAMP * (END + (PEAK - END) * (1 - PROGRESS)),
    ),
    "rsqrt": ({"timescale": TIMESCALE}, RSQRT),
    "rsqrt by default": (
        {},
        RSQRT * 0 + PEAK * RAMP / np.sqrt(1 + np.maximum(STEPS - WARMUP, 0) / 10_000),
    ),
    "rsqrt cooled": (
        {"timescale": TIMESCALE, "cooldown_steps": COOLDOWN},
        RSQRT * FALL,
    ),
    "rsqrt cooled to end": (
        {
            "timescale": TIMESCALE,
            "cooldown_steps": COOLDOWN,
            "end_learning_rate": END,
        },
        END * (1 - FALL) + RSQRT * FALL,
    ),
    "constant": ({}, PEAK * RAMP),
    "constant cooled": ({"cooldown_steps": COOLDOWN}, PEAK * RAMP * FALL),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("compiled", [False, True])
def test_equals_the_formula_at_every_step(case: str, compiled: bool) -> None:
    keys, expected = CASES[case]
    schedule = schedules.make(
        TOTAL,
        schedule=case.split()[0],  # pyright: ignore[reportArgumentType]
        learning_rate=PEAK,
        warmup_steps=WARMUP,
        **keys,
    )
    evaluate = jax.jit(schedule) if compiled else schedule
    actual = evaluate(jnp.arange(TOTAL + 1))
    assert actual.dtype == jnp.float32
    # cos near its minimum is a difference of nearly equal numbers in the formula too.
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-15)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_ends_exactly_and_stays_there(schedule: schedules.ScheduleName) -> None:
    f = schedules.make(
        90_001,
        schedule=schedule,
        learning_rate=PEAK,
        warmup_steps=10_000,
        end_learning_rate=END,
    )
    assert f(0) == 0
    assert f(10_000) == np.float32(PEAK)
    assert f(90_000) > np.float32(END)
    assert f(90_001) == f(100_000) == np.float32(END)


@pytest.mark.parametrize("name", ["cosine", "linear", "rsqrt", "constant"])
def test_without_warmup_the_first_step_is_the_peak(
    name: schedules.ScheduleName,
) -> None:
    f = schedules.make(1, schedule=name, learning_rate=0.5)
    assert float(f(0)) == 0.5


@pytest.mark.crosscheck
def test_equals_optax() -> None:
    import optax

    ours = schedules.make(TOTAL, learning_rate=PEAK, warmup_steps=WARMUP)
    theirs = optax.warmup_cosine_decay_schedule(0.0, PEAK, WARMUP, TOTAL)
    np.testing.assert_allclose(ours(STEPS), theirs(STEPS), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"warmup_steps": 1000}, "warmup_steps=1,000, but total_steps=1,000"),
        (
            {"schedule": "rsqrt", "warmup_steps": 900, "cooldown_steps": 101},
            r"warmup_steps=900 \+ cooldown_steps=101, but total_steps=1,000",
        ),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0, but it is -1"),
        ({"learning_rate": -0.1}, "learning_rate must be at least 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be at least 0"),
        ({"schedule": "rsqrt", "timescale": 0}, "timescale must be at least 1"),
        ({"schedule": "cos"}, "cosine, linear, rsqrt, constant"),
        ({"schedule": "cosine", "timescale": 5}, 'read only by schedule="rsqrt"'),
        ({"schedule": "linear", "cooldown_steps": 5}, "already decays"),
        ({"schedule": "rsqrt", "end_learning_rate": 1e-5}, "never reached"),
        (
            {"schedule": "constant", "end_learning_rate": 1e-5, "cooldown_steps": 0},
            "never reached",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(keys: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        schedules.make(TOTAL, **keys)


def test_no_steps_are_refused() -> None:
    with pytest.raises(UserError, match="total_steps must be at least 1"):
        schedules.make(0)
