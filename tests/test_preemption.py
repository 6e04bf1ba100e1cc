"""Signals to a run: it saves and stops, or saves and goes on, and no bit changes."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import cli
from vit_jax.checkpoints import Checkpoints
from vit_jax.evaluators import Classification
from vit_jax.observer import Observer

pytestmark = pytest.mark.slow
ARGS = (
    f"--config={cli.EVERYTHING}",
    "--config.total_steps=14",
    "--config.checkpoint.keep=20",
)
AT = 4  # the step at which the signal comes; checkpoints are due every 7


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("whole")
    cli.call(*ARGS, f"--workdir={workdir}")
    return workdir


def assert_same_run(workdir: Path, whole: Path) -> None:
    assert cli.metric_lines(workdir) == cli.metric_lines(whole)
    cli.assert_same_bits(cli.saved_arrays(workdir, 14), cli.saved_arrays(whole, 14))


def at_step(
    step: int, act: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls `act` once this step has been dispatched."""
    push = Observer.push

    def pushing(self: Observer, number: int, scalars: dict) -> None:
        push(self, number, scalars)
        if number == step:
            act()

    monkeypatch.setattr(Observer, "push", pushing)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGHUP,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_it_saves_and_stops(
    number: signal.Signals,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        at_step(AT, lambda: send(number), patch)
        output = cli.call(*ARGS, f"--workdir={tmp_path}", expect=75)
    assert f"is saved at step {AT}" in output
    assert signal.getsignal(number) == before
    assert cli.saved_steps(tmp_path) == [AT]
    cli.call(*ARGS, f"--workdir={tmp_path}")
    assert_same_run(tmp_path, whole)


@pytest.fixture
def nohup() -> Iterator[None]:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("nohup")
def test_sigusr1_saves_and_goes_on(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation in which it comes is owed until it is done; then it is not."""
    saves: list[tuple[int, bool]] = []
    save, run = Checkpoints.save, Classification.run

    def saving(self: Checkpoints, state) -> None:
        saves.append((self.position.step, self.position.pending is not None))
        save(self, state)

    def running(self: Classification, params, check):
        if not any(step == 10 for step, _ in saves):
            send(signal.SIGUSR1)
        return run(self, params, check)

    at_step(AT, lambda: (send(signal.SIGUSR1), send(signal.SIGHUP)), monkeypatch)
    monkeypatch.setattr(Checkpoints, "save", saving)
    monkeypatch.setattr(Classification, "run", running)
    cli.call(*ARGS, f"--workdir={tmp_path}")
    assert saves == [(AT, False), (7, False), (10, True), (10, False), (14, False)]
    assert_same_run(tmp_path, whole)
