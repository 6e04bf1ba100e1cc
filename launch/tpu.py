"""python -m vit_jax.launch.tpu --name=... --accelerator_type=v5litepod-16 [flags]

Runs vit_jax.main on TPU VMs of Google Cloud: waits in the queue for the slices, ships
this vit_jax, runs on all workers, shows their logs, and starts again what crashed or
was preempted. In the end the slices are deleted, unless --keep is given.
"""

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from vit_jax.authentication import new_key
from vit_jax.errors import Preempted, UserError
from vit_jax.launch import accelerators, checkout, command, job
from vit_jax.launch.queued_resources import QueuedResource, Request

_LOST_CONNECTION = 255  # the exit code of ssh itself
_SHIP_TRIES = 3
_KEY_FILE = "vit_jax_run_key"  # in the homes of the workers; worker.sh reads it


def flags_parser() -> job.Parser:
    """The flags that this launcher adds to those of vit_jax.main."""
    parser = job.Parser("tpu", __doc__)
    add = parser.add_argument
    add("--name", help="of the queued resource and of its nodes")
    add("--project", help="project that pays")
    add("--zone", help="such as europe-west4-b")
    add("--accelerator_type", help="such as v5litepod-16, v4-32, v5p-128, v6e-16")
    add("--slices", type=int, default=1, help="number of slices")
    add("--spot", action="store_true", help="spot capacity, asked for again when lost")
    add("--runtime_version", help="TPU software version; default: by the type")
    add("--keep", action="store_true", help="keep the slices, and pay for them")
    add("--max_restarts", type=int, default=5, help="in a row without a new checkpoint")
    add("--poll", type=float, default=30, help="seconds between looks at the state")
    further = "flag of gcloud compute tpus"
    add(
        "--create_flag",
        action="append",
        default=[],
        help=f"further {further} queued-resources create; repeatable",
    )
    add(
        "--ssh_flag",
        action="append",
        default=[],
        help=f"further {further} tpu-vm ssh and scp, such as --internal-ip; repeatable",
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit code of the run.

    Raises:
      UserError: for bad flags, when there is no quota, or when gcloud refuses.
    """
    run, flags = job.parse(flags_parser(), argv)
    request = request_of(flags)
    if run.stored and "://" not in run.workdir:
        raise UserError(
            f"--config is not given, and --workdir={run.workdir} is on a disk of the "
            "workers, not on this machine's: give --config, as when the run began"
        )
    archive, digest = checkout.pack(None if run.stored else run.config)
    code_directory = f"vit_jax_code/{digest}"
    if flags.dry_run:
        for step in all_commands(run, request, code_directory):
            print(job.shell(step))
        return 0
    if left := checkout.untracked_files():
        print(f"not shipped, since git does not track them: {', '.join(left)}")
    resource = QueuedResource(request, flags.poll)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / f"vit_jax_{digest}.tar.gz"
        path.write_bytes(archive)
        key_file = str(Path(directory) / _KEY_FILE)
        workers = Workers(request, str(path), code_directory, key_file)
        launcher = Launcher(run, resource, workers, flags)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as `nohup` asks
            signal.signal(signal.SIGHUP, signal.default_int_handler)
        try:
            return launcher.run()
        except KeyboardInterrupt:
            return Preempted.exit_code
        finally:
            if resource.held:
                tidy(resource, keep=flags.keep)


def request_of(flags: argparse.Namespace) -> Request:
    """The slices that the flags ask for.

    Raises:
      UserError: for what is missing or wrong.
    """
    needed = ("name", "project", "zone", "accelerator_type")
    if missing := [f"--{name}" for name in needed if not getattr(flags, name)]:
        raise UserError(f"{', '.join(missing)} must be given; --help says more")
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,56}[a-z0-9])?", flags.name):
        raise UserError(
            f'--name="{flags.name}": small letters, digits and "-", beginning with a '
            "letter"
        )
    accelerators.check_slices(flags.slices)
    tpu = accelerators.of_accelerator_type(flags.accelerator_type)
    return Request(
        name=flags.name,
        project=flags.project,
        zone=flags.zone,
        accelerator_type=flags.accelerator_type,
        runtime_version=flags.runtime_version or tpu.runtime,
        slices=flags.slices,
        spot=flags.spot,
        create_flags=flags.create_flag,
        ssh_flags=flags.ssh_flag,
    )


def all_commands(
    run: job.Job, request: Request, code_directory: str
) -> Iterator[list[str]]:
    """What an undisturbed run does, in its order."""
    archive = f"vit_jax_{Path(code_directory).name}.tar.gz"
    yield request.create()
    yield request.describe()
    workers = Workers(request, archive, code_directory, _KEY_FILE)
    for node in request.nodes:
        yield from (workers.copy(node), workers.copy_key(node), workers.install(node))
        yield workers.run(node, "ID", run)
    yield request.delete()


def tidy(resource: QueuedResource, *, keep: bool) -> None:
    """Deletes the slices, or says how; whatever happens, nobody pays unknowingly."""
    delete = job.shell(resource.request.delete())
    if keep:
        print(
            f"{resource.request.name} is kept, and paid for. To delete it:\n  {delete}"
        )
        return
    print(f"{resource.request.name}: deleting", flush=True)
    try:
        resource.delete()
    except BaseException:
        print(f"NOT DELETED, it may still be paid for. To delete it:\n  {delete}")
        raise
    print(f"{resource.request.name}: deleted", flush=True)


class Workers:
    """The commands that are given to all workers of a slice."""

    def __init__(
        self, request: Request, archive: str, code_directory: str, key_file: str
    ) -> None:
        """Prepares; nothing is run here.

        Args:
          request: of the slices.
          archive: path of the code.
          code_directory: where it is unpacked, named by its contents.
          key_file: path where `new_key` writes.
        """
        self._request = request
        self._archive = archive
        self._directory = code_directory
        self._key_file = Path(key_file)

    def new_key(self) -> None:
        """Draws the key by which the processes of a run know each other."""
        self._key_file.unlink(missing_ok=True)
        created = os.open(self._key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(created, "w") as file:
            file.write(new_key())

    def copy(self, node: str) -> list[str]:
        """Copies the archive."""
        return self._request.scp(node, self._archive, Path(self._archive).name)

    def copy_key(self, node: str) -> list[str]:
        """Copies the key; scp keeps its mode, and no command line shows a content."""
        return self._request.scp(node, str(self._key_file), _KEY_FILE)

    def install(self, node: str) -> list[str]:
        """Unpacks it, and makes the environment if that has not been done."""
        name = shlex.quote(Path(self._archive).name)
        steps = (
            f"mkdir -p {self._directory}",
            f"tar -xzf {name} -C {self._directory}",
            f"sh {self._directory}/launch/worker.sh install",
        )
        return self._request.ssh(node, " && ".join(steps))

    def run(self, node: str, attempt: str, run: job.Job) -> list[str]:
        """Starts a run, or follows it if it has begun; exits with its code."""
        call = ["run", attempt, *run.command(".venv/bin/python")]
        return self._request.ssh(node, self._script(call))

    def stop(self, node: str, attempt: str) -> list[str]:
        """Lets a run save and end."""
        return self._request.ssh(node, self._script(["stop", attempt]))

    def list_checkpoints(self, node: str, workdir: str) -> list[str]:
        """Lists them on the first worker, for a workdir that only workers see."""
        script = f"ls {shlex.quote(workdir)}/checkpoints"
        return self._request.ssh(node, script, worker="0")

    def _script(self, call: list[str]) -> str:
        return shlex.join(["sh", f"{self._directory}/launch/worker.sh", *call])


class Launcher:
    """Runs a job to its end, over as many slices and starts as it takes."""

    def __init__(
        self,
        run: job.Job,
        resource: QueuedResource,
        workers: Workers,
        flags: argparse.Namespace,
    ) -> None:
        self._run = run
        self._resource = resource
        self._nodes = resource.request.nodes
        self._workers = workers
        self._poll: float = flags.poll
        self._limit: int = flags.max_restarts
        self._first = time.time_ns()  # workers know each start by a number of its own

    def run(self) -> int:
        """Returns the exit code of the last start.

        Raises:
          UserError: see QueuedResource.obtain; or if the code cannot be installed.
          KeyboardInterrupt: after Ctrl-C, when the run has saved and ended.
        """
        self._resource.obtain()
        restarts = job.Restarts(
            self._newest_step, limit=self._limit, first_wait=self._poll
        )
        while (code := self._until_lost(restarts)) is None:
            print(f"{self._resource.request.name}: lost", flush=True)
            self._resource.delete()
            self._resource.obtain()
        return code

    def _until_lost(self, restarts: job.Restarts) -> int | None:
        """Runs on the slices that are there; None if they are taken away."""
        if not self._ship():
            return None
        unreachable = 0
        while True:
            attempt = f"{self._first}-{restarts.count}-{unreachable}"
            code = self._attend(
                [self._workers.run(node, attempt, self._run) for node in self._nodes],
                on_stop=[self._workers.stop(node, attempt) for node in self._nodes],
            )
            unreachable = unreachable + 1 if code == _LOST_CONNECTION else 0
            if code is None or unreachable > 1:
                return None
            wait = restarts.after(code)
            if wait is None:
                return code
            print(f"exit code {code}: starting again in {wait:g} s", flush=True)
            time.sleep(wait)

    def _ship(self) -> bool:
        """Brings the code and a key to all workers; False if they are taken away.

        Raises:
          UserError: if that fails again and again.
        """
        to_worker = self._workers
        to_worker.new_key()  # of these slices; others may have had the one before
        for _ in range(_SHIP_TRIES):
            code: int | None = 0
            for step in (to_worker.copy, to_worker.copy_key, to_worker.install):
                code = self._attend([step(node) for node in self._nodes])
                if code != 0:
                    break
            if code is None or code == 0:
                return code == 0
            time.sleep(self._poll)
        raise UserError(
            f"the code could not be installed on {self._resource.request.name}; what "
            "gcloud and pip printed above says why"
        )

    def _attend(
        self,
        commands: Sequence[list[str]],
        on_stop: Sequence[list[str]] = (),
    ) -> int | None:
        """Runs one command for each slice, side by side.

        Returns:
          The first exit code that is not 0, else 0; None if the slices are lost.
        """
        processes = [command.start(c) for c in commands]
        try:
            return self._watch(processes)
        except KeyboardInterrupt:
            if on_stop:
                print("\nstopping: the run saves first; Ctrl-C again does not wait")
                for process in [command.start(c) for c in on_stop] + processes:
                    process.wait()
            raise
        finally:
            for process in processes:
                command.end(process)

    def _watch(self, processes: Sequence[subprocess.Popen[bytes]]) -> int | None:
        looked = time.monotonic()
        while any(process.poll() is None for process in processes):
            time.sleep(min(0.5, self._poll))
            if time.monotonic() - looked > self._poll:
                if self._resource.state()[0] != "ACTIVE":
                    return None
                looked = time.monotonic()
        code = next((p.returncode for p in processes if p.returncode), 0)
        return None if code and self._resource.is_lost() else code

    def _newest_step(self) -> int | None:
        workdir = self._run.workdir
        if "://" in workdir:
            return job.newest_step(workdir)
        listed = command.capture(
            self._workers.list_checkpoints(self._nodes[0], workdir)
        )
        steps = [int(name) for name in listed.output.split() if name.isdigit()]
        return max(steps, default=None)


if __name__ == "__main__":
    sys.exit(job.run_main(main))
