"""A fake cloud: what is to happen in it, and what did."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

FAKES = Path(__file__).parent / "fakes"


class Cloud:
    """Directories, scenario and record of the fake tools.

    The scenario's keys:
      workers: hosts of a slice.
      waits: looks at a request before it becomes active.
      refusals: what the first `create` commands are refused with.
      failures: with what the first requests fail in the queue.
      preempt_at: for each request, the step at which it is taken away.
      evict_at: in a cluster, the steps at which pod 1 is evicted.
      hangs: the requests after whose loss connections stay open; others fail with 255.
      lost_workers: for each run, the worker that cannot be reached; None if all can.
      codes: exit codes of the first starts; the next trains to the end.
      code_after: steps that they make before.
      step_seconds: how long a step of the fake trainer takes.
      forbidden: the verbs that a cluster refuses.
      true_main: whether workers run the true vit_jax.main.
    """

    def __init__(self, root: Path) -> None:
        self.root = root / "cloud"
        self.workdir = root / "work dir's"  # has to be quoted everywhere
        bins = [self.root / "bin", self.root / "worker-bin"]
        for directory in bins:
            directory.mkdir(parents=True)
        for tool in ("gcloud", "kubectl", "docker"):
            write_program(bins[0] / tool, f'{FAKES}/{tool}.py "$@"')
        write_program(bins[1] / "python3.11", f'{FAKES}/python.py "$0" "$@"')
        state = {"commands": [], "requests": {}, "runs": [], "objects": {}, "pods": {}}
        state["keys"] = []  # of each start of a process: its number, and its key
        counts = ("asked", "created", "deleted", "installed", "starts", "attempts")
        self._write("state", state | dict.fromkeys(counts, 0))
        self._write("scenario", _QUIET | {"workdir": str(self.workdir)})

    def environment(self) -> dict[str, str]:
        """What a launcher has to be started with."""
        path = f"{self.root / 'bin'}:{os.environ['PATH']}"
        return {"FAKE_CLOUD": str(self.root), "PATH": path}

    def will(self, **changes: Any) -> None:
        """Sets keys of the scenario."""
        scenario = json.loads((self.root / "scenario.json").read_text())
        assert changes.keys() <= scenario.keys()
        self._write("scenario", scenario | changes)

    def __getitem__(self, key: str) -> Any:
        """What has happened, by the key of the tools' common state."""
        return json.loads((self.root / "state.json").read_text())[key]

    def steps(self) -> list[int]:
        """The checkpoints in the workdir."""
        return sorted(int(p.name) for p in (self.workdir / "checkpoints").iterdir())

    def finished(self) -> list[str]:
        """The command line of the run that came to its end."""
        return json.loads((self.workdir / "finished").read_text())

    def close(self) -> None:
        """Ends whatever still runs in it."""
        marker = f"FAKE_CLOUD={self.root}".encode()
        for process in Path("/proc").glob("[0-9]*"):
            if int(process.name) == os.getpid():
                continue
            try:
                if marker in (process / "environ").read_bytes().split(b"\0"):
                    os.kill(int(process.name), signal.SIGKILL)
            except OSError:  # not ours, or gone
                continue

    def _write(self, name: str, content: Any) -> None:
        (self.root / f"{name}.json").write_text(json.dumps(content))


_QUIET = {
    "workers": 1,
    "waits": 0,
    "refusals": [],
    "failures": [],
    "preempt_at": [],
    "evict_at": [],
    "hangs": [],
    "lost_workers": [],
    "codes": [],
    "code_after": 3,
    "step_seconds": 0.02,
    "forbidden": [],
    "true_main": False,
}


def write_program(path: Path, call: str) -> None:
    """An executable that runs a script; -S starts Python in half the time."""
    path.write_text(f"#!/bin/sh\nexec '{sys.executable}' -S {call}\n")
    path.chmod(0o755)
