"""A directory of checkpoints that is moved away in mid-run is told at once."""

import logging
import time
from pathlib import Path

import pytest

from tests import cli
from vit_jax.checkpoints import Checkpoints
from vit_jax.checkpoints.disk import tell_once
from vit_jax.observer import Observer

ARGS = (
    f"--config={cli.EVERYTHING}",
    "--config.total_steps=12",
    "--config.checkpoint.every=6",
    "--config.checkpoint.best=none",
    "--config.evals.test=none",
)


@pytest.mark.parametrize("there", ["nothing", "another"])
def test_during_a_save(
    there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No half checkpoint gets its name, and the run does not go on to the next save."""
    directory = tmp_path / "checkpoints"
    save, push = Checkpoints.save, Observer.push
    runs: list[Checkpoints] = []

    def saving(self: Checkpoints, state) -> None:
        runs.append(self)
        save(self, state)

    def moving(self: Checkpoints) -> None:  # while Orbax's thread writes
        directory.rename(tmp_path / "away")
        if there == "another":  # as TensorStore makes it again
            (directory / "6.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
        write_manifest(self)

    def pushing(self: Observer, step: int, scalars: dict) -> None:
        push(self, step, scalars)
        while step == 8 and runs[0]._manager.is_saving_in_progress():
            time.sleep(0.01)

    write_manifest = Checkpoints._write_manifest
    monkeypatch.setattr(Checkpoints, "save", saving)
    monkeypatch.setattr(Checkpoints, "_write_manifest", moving)
    monkeypatch.setattr(Observer, "push", pushing)
    output = cli.call(*ARGS, f"--workdir={tmp_path}", expect=2)
    assert "Traceback" not in output
    assert output.count("checkpoints was moved, removed or replaced") == 1
    assert cli.saved_steps(tmp_path) == []
    assert len(cli.metric_lines(tmp_path)) in (7, 8)


@pytest.mark.slow
def test_of_one_of_two_processes(tmp_path: Path) -> None:
    """The other waits for it, in a thread of Orbax, and would for ever."""
    args = (*ARGS, "--config.total_steps=40", f"--workdir={tmp_path}")
    processes = cli.start_many(2, *args)
    directory = tmp_path / "checkpoints"
    while not list(directory.glob("*.orbax-checkpoint-tmp*")):
        assert all(p.poll() is None for p in processes), cli.ends(processes)
        time.sleep(0.001)
    directory.rename(tmp_path / "away")
    codes, outputs = cli.ends(processes)
    assert codes == [2, 76], outputs
    assert "was moved, removed or replaced" in outputs[0]
    assert not any("Traceback" in output for output in outputs)


def test_what_python_says_of_the_same_error_is_left_out() -> None:
    """Of each array that was under way it logs a traceback, after the message."""
    tell_once()
    asyncio = logging.getLogger("asyncio")
    path = "/a/checkpoints/28.orbax-checkpoint-tmp/rest"
    told = {
        f'NOT_FOUND: Error writing "step/0" in OCDBT database at local file {path}': 0,
        "Task was destroyed but it is pending!": 1,
    }
    for text, expected in told.items():
        record = asyncio.makeRecord("asyncio", logging.ERROR, "", 0, text, (), None)
        assert bool(asyncio.filter(record)) == expected
