"""What the fake tools share: one JSON file in $FAKE_CLOUD, locked while it is used."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CLOUD = Path(os.environ["FAKE_CLOUD"])


@contextlib.contextmanager
def locked() -> Iterator[dict[str, Any]]:
    """The state; what is changed in it is kept."""
    with (CLOUD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        state = json.loads((CLOUD / "state.json").read_text())
        try:
            yield state
        finally:  # a refusal ends the process
            new = CLOUD / "state.json.new"  # tests read without the lock
            new.write_text(json.dumps(state, indent=1))
            new.replace(CLOUD / "state.json")


def scenario() -> dict[str, Any]:
    """What the test wants to happen."""
    return json.loads((CLOUD / "scenario.json").read_text())
