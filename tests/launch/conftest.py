"""Fake gcloud, kubectl and docker, put first in PATH."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import cli
from tests.launch.cloud import Cloud

# Programs of their own, not modules of the tests.
collect_ignore_glob = ["fakes/*"]


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """A cloud of one's own; launchers run in this process, from the checkout's root."""
    made = Cloud(tmp_path)
    monkeypatch.chdir(cli.ROOT)
    for name, value in made.environment().items():
        monkeypatch.setenv(name, value)
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)}
    yield made
    for number, handler in handlers.items():
        signal.signal(number, handler)
    made.close()
