"""A save whose clock jumps, or that takes long, is no error."""

import time
import types
from pathlib import Path

import pytest
from orbax.checkpoint._src.futures import future

from tests import cli


class Leaping(types.SimpleNamespace):
    """A clock that jumps by an hour whenever it is read."""

    read = 0

    def time(self) -> float:
        self.read += 1
        return time.time() + 3600 * self.read


def test_a_clock_that_jumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Leaping(sleep=time.sleep)
    monkeypatch.setattr(future, "time", clock)
    short = "--config.total_steps=3", "--config.optim.warmup_steps=1"
    cli.call(f"--config={cli.EVERYTHING}", f"--workdir={tmp_path}", *short)
    assert clock.read > 1
    assert cli.saved_steps(tmp_path) == [3]
