"""The timer with a clock that the test moves."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from etils import epath

from vit_jax.timing import RunClock, StepTimer, device_memory_gib

GIB = 1024**3


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make(clock: Clock, *, start_step: int = 0, elapsed_s: float = 0.0) -> StepTimer:
    return StepTimer(
        batch_size=32,
        total_steps=start_step + 21,
        start_step=start_step,
        num_devices=4,
        elapsed_s=elapsed_s,
        clock=clock,
    )


def run(
    clock: Clock, timer: StepTimer, steps: int, *, step_s: float, wait_s: float
) -> None:
    for _ in range(steps):
        with timer.waiting():
            clock.now += wait_s
        clock.now += step_s


@pytest.mark.parametrize("start_step", [0, 500])
def test_reports_what_the_clock_says(start_step: int) -> None:
    clock = Clock()
    timer = make(clock, start_step=start_step)
    run(clock, timer, 1, step_s=100.0, wait_s=5.0)  # compiles
    run(clock, timer, 10, step_s=0.3, wait_s=0.1)
    assert timer.report(start_step + 11) == pytest.approx(
        {
            "timing/elapsed_s": 109.0,
            "timing/step_s": 0.4,
            "timing/images_per_s": 80.0,
            "timing/images_per_s_per_device": 20.0,
            "timing/data_wait_share": 0.25,
            "timing/eta_s": 4.0,
        }
    )


def test_a_report_covers_what_came_after_the_last() -> None:
    clock = Clock()
    timer = make(clock)
    run(clock, timer, 6, step_s=1.0, wait_s=1.0)
    timer.report(6)
    run(clock, timer, 5, step_s=0.5, wait_s=0.0)
    report = timer.report(11)
    assert report["timing/step_s"] == pytest.approx(0.5)
    assert report["timing/data_wait_share"] == 0


def test_pauses_are_no_steps_but_the_end_is_later_for_them() -> None:
    clock = Clock()
    timer = make(clock)
    run(clock, timer, 1, step_s=9.0, wait_s=0.0)
    run(clock, timer, 5, step_s=1.0, wait_s=0.0)
    with timer.pause():
        clock.now += 10.0
    run(clock, timer, 5, step_s=1.0, wait_s=0.0)
    report = timer.report(11)
    assert report["timing/step_s"] == pytest.approx(1.0)
    assert report["timing/eta_s"] == pytest.approx(20.0)  # ten steps took 20 s


def test_a_pause_before_the_first_step_is_forgotten() -> None:
    clock = Clock()
    timer = make(clock)
    with timer.pause():
        clock.now += 50.0
    run(clock, timer, 11, step_s=1.0, wait_s=0.0)
    assert timer.report(11)["timing/step_s"] == pytest.approx(1.0)


def test_of_the_first_step_alone_nothing_is_said() -> None:
    clock = Clock()
    timer = make(clock)
    assert timer.report(0) == {"timing/elapsed_s": 0.0}
    run(clock, timer, 1, step_s=60.0, wait_s=0.0)
    assert timer.report(1) == {"timing/elapsed_s": 60.0}
    run(clock, timer, 1, step_s=2.0, wait_s=0.0)
    assert timer.report(2)["timing/step_s"] == pytest.approx(2.0)
    assert "timing/step_s" not in timer.report(2)


def test_a_run_is_as_old_as_all_its_starts(tmp_path: Path) -> None:
    clock = Clock()
    assert RunClock(epath.Path(tmp_path), clock).seconds() == 0
    lines = [{"step": 1, "timing/elapsed_s": 40.0}, {"step": 2, "test/loss": 1.0}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 3, "timing/ela')
    again = RunClock(epath.Path(tmp_path), clock)
    clock.now += 7.0
    assert again.seconds() == 47.0
    timer = make(clock, elapsed_s=again.seconds())
    clock.now += 3.0
    assert timer.report(0) == {"timing/elapsed_s": 50.0}


def test_reporting_the_first_step_starts_the_clock() -> None:
    """Read one step late, as the loop does: the device is through with the first."""
    clock = Clock()
    timer = make(clock)
    run(clock, timer, 2, step_s=60.0, wait_s=10.0)
    timer.report(1)
    run(clock, timer, 5, step_s=2.0, wait_s=0.0)
    report = timer.report(6)
    assert report["timing/step_s"] == pytest.approx(2.0)
    assert report["timing/data_wait_share"] == 0
    assert report["timing/eta_s"] == pytest.approx(30.0)


def test_a_wait_that_fails_is_no_wait() -> None:
    timer = make(Clock())
    with pytest.raises(StopIteration), timer.waiting():
        raise StopIteration
    with pytest.raises(KeyError), timer.pause():
        raise KeyError


def test_all_keys_say_that_they_vary() -> None:
    clock = Clock()
    timer = make(clock)
    run(clock, timer, 3, step_s=1.0, wait_s=0.0)
    assert all(key.startswith("timing/") for key in timer.report(3))


def test_memory_is_the_largest_peak_where_the_backend_tells_it() -> None:
    def device(stats: dict | None) -> SimpleNamespace:
        return SimpleNamespace(memory_stats=lambda: stats)

    told = [device({"peak_bytes_in_use": n * GIB}) for n in (1, 3, 2)]
    assert device_memory_gib(told) == 3.0
    assert device_memory_gib([device(None), device({}), *told[:1]]) == 1.0
    assert device_memory_gib([device(None)]) is None
