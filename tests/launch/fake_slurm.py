"""A Slurm of one machine, in a folder: what sbatch has taken is run by `run_queue`."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.launch import programs

# What happens to a job while its first start runs; see `FakeSlurm.run_queue`.
Event = Callable[["Start"], None]


class Start:
    """One start of a job: the batch shell, srun and the tasks, in one session."""

    def __init__(self, script: Path, environment: dict[str, str], log: Path) -> None:
        with log.open("ab") as output:
            self.shell = subprocess.Popen(
                ["bash", str(script)],
                env=os.environ | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def signal_tasks(self) -> None:
        """What `--signal=TERM@120` does: srun's tasks get it, the shell does not."""
        self._signal_children(signal.SIGTERM)

    def cancel(self) -> None:
        """What scancel does."""
        self.shell.send_signal(signal.SIGTERM)
        self._signal_children(signal.SIGTERM)

    def lose_node(self) -> None:
        """Everything is gone at once."""
        os.killpg(self.shell.pid, signal.SIGKILL)

    def _signal_children(self, number: int) -> None:
        pid = self.shell.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for child in children:
            os.kill(int(child), number)


class FakeSlurm:
    """The folder that the fake sbatch, srun and scontrol write to."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        for name in ("sbatch", "srun", "scontrol"):
            programs.install(folder / "bin", name, name)
        monkeypatch.setenv("PATH", str(folder / "bin"), prepend=os.pathsep)
        monkeypatch.setenv("FAKE_SLURM", str(folder))

    def jobs(self) -> list[dict[str, Any]]:
        return [json.loads(p.read_text()) for p in sorted(self.folder.glob("job.*"))]

    def run_queue(
        self, when: Callable[[], bool] | None = None, event: Event | None = None
    ) -> list[int]:
        """Runs all jobs to their end.

        Args:
          when: once this is true in the first start of the first job,
          event: happens to it.

        Returns:
          The exit code of the last start of each job.
        """
        codes: list[int] = []
        for job in self.jobs():
            array = job["options"].get("--array", "0-0").partition("%")[0]
            first, last = map(int, array.split("-"))
            for index in range(first, last + 1):
                given = {}
                if "--array" in job["options"]:
                    given = {"SLURM_ARRAY_TASK_ID": str(index)}
                codes.append(self._run(job, 100 + len(codes), given, when, event))
                when = event = None
        return codes

    def _run(
        self,
        job: dict[str, Any],
        number: int,
        given: dict[str, str],
        when: Callable[[], bool] | None,
        event: Event | None,
    ) -> int:
        """One job or member of an array, started again as long as it is requeued."""
        options = job["options"]
        tasks = int(options["--nodes"]) * int(options["--ntasks-per-node"])
        given |= {"SLURM_JOB_ID": str(number), "SLURM_NTASKS": str(tasks)}
        given |= {"SLURM_JOB_NODELIST": "node1"}
        script = self.folder / f"script.{number}"
        script.write_text(job["script"])
        log = Path(options["--output"].replace("%%", "%"))
        requeue = self.folder / f"requeue.{number}"
        for restarts in range(20):
            if restarts:
                given |= {"SLURM_RESTART_COUNT": str(restarts)}
            start = Start(script, given, log)
            while start.shell.poll() is None:
                if when is not None and event is not None and when():
                    event(start)
                    when = None
                time.sleep(0.005)
            node_is_lost = start.shell.returncode == -signal.SIGKILL
            if not requeue.exists() and not (node_is_lost and "--requeue" in options):
                return start.shell.returncode
            requeue.unlink(missing_ok=True)
        raise AssertionError("it is requeued for ever")
