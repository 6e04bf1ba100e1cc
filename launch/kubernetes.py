"""A JobSet or Job in a cluster, through kubectl: create, watch, remove."""

import contextlib
import json
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from vit_jax.authentication import new_key
from vit_jax.errors import UserError
from vit_jax.launch import command, job, manifests
from vit_jax.launch.manifests import Object

_FINISHED = {"Complete": 0, "Completed": 0, "Failed": 1}  # conditions, and our code
_SLICE_INDEX = "jobset.sigs.k8s.io/job-index"
_POD_INDEX = "batch.kubernetes.io/job-completion-index"
_LAST_LINES = 20  # that are shown of a pod that failed


class Workload:
    """The objects of one run; the JobSet or Job itself is the last of them."""

    def __init__(self, objects: Sequence[Object], namespace: str) -> None:
        self._objects = objects
        self._kubectl = ["kubectl", f"--namespace={namespace}"]
        self._kind = objects[-1]["kind"].lower()
        self._name = objects[-1]["metadata"]["name"]
        self._secret = manifests.secret_of(objects[-1])

    def manifest(self) -> str:
        """All objects as JSON."""
        one = len(self._objects) == 1
        several = {"apiVersion": "v1", "kind": "List", "items": self._objects}
        return json.dumps(self._objects[0] if one else several, indent=2)

    def apply_command(self) -> list[str]:
        """Reads the manifest from standard input."""
        # strict: else an old JobSet controller drops the rules that it does not know.
        return [*self._kubectl, "apply", "--validate=strict", "--filename=-"]

    def secret_command(self) -> list[str] | None:
        """Creates the Secret from a key in standard input; None if there is no need.

        It is no part of the manifest, which is printed, and which `kubectl apply` would
        repeat in an annotation.
        """
        if self._secret is None:
            return None
        create = [*self._kubectl, "create", "secret", "generic", self._secret]
        return [*create, f"--from-file={manifests.KEY_FIELD}=/dev/stdin"]

    def delete_command(self) -> list[str]:
        """Ends the run and removes its objects, those that there are."""
        names = [f"{o['kind'].lower()}/{self._name}" for o in reversed(self._objects)]
        if self._secret is not None:
            names.append(f"secret/{self._secret}")
        return [*self._kubectl, "delete", *names, "--ignore-not-found"]

    def apply(self) -> None:
        """Creates the objects; those of a run that has ended are removed before.

        Raises:
          UserError: if it is running, or kubectl refuses.
        """
        if self.is_running():
            raise UserError(
                f"{self._kind} {self._name} is running: --follow shows it, this ends "
                f"it:\n  {job.shell(self.delete_command())}"
            )
        # What has ended cannot be started again; a Secret may be left without it.
        if self._secret is not None or self.status() is not None:
            command.output(self.delete_command())
        with contextlib.ExitStack() as undo:
            if create := self.secret_command():
                print(command.output(create, text=new_key()), end="")
                delete = [*self._kubectl, "delete", f"secret/{self._secret}"]
                undo.callback(command.capture, delete)
            print(command.output(self.apply_command(), text=self.manifest()), end="")
            undo.pop_all()
        if self._secret is not None:
            self._own_secret()
        print(f"To end it: {job.shell(self.delete_command())}", flush=True)

    def _own_secret(self) -> None:
        """Lets the cluster delete the Secret with the JobSet or Job."""
        owner = {
            "apiVersion": self._objects[-1]["apiVersion"],
            "kind": self._objects[-1]["kind"],
            "name": self._name,
            "uid": self._get(self._kind, self._name)["metadata"]["uid"],
        }
        change = json.dumps({"metadata": {"ownerReferences": [owner]}})
        secret = f"secret/{self._secret}"
        patch = [*self._kubectl, "patch", secret, "--type=merge", f"--patch={change}"]
        if (result := command.capture(patch)).code:  # the run is going on all the same
            print(f"{secret} has no owner, delete it with the run: {result.error}")

    def is_running(self) -> bool:
        """Whether it exists and has not ended."""
        status = self.status()
        return status is not None and ended(status) is None

    def status(self) -> Object | None:
        """The status of the JobSet or Job, None if there is none of that name.

        Raises:
          UserError: if kubectl cannot tell.
        """
        found = self._get(self._kind, self._name, "--ignore-not-found")
        if found is None:
            return None
        return found["status"] if "status" in found else {}

    def follow(self, poll: float) -> int:
        """Shows what the run prints until it has ended.

        Process 0 writes the log of the run; of a pod that fails the last lines are
        shown.

        Returns:
          0 if it is done, 1 if it failed, 130 after Ctrl-C: then the run goes on.
        """
        logs = _Logs(self._kubectl)
        told = ""
        try:
            while True:
                status = self.status()
                if status is None:
                    raise UserError(f"{self._kind} {self._name} was deleted")
                pods = self._pods()
                if (now := ", ".join(phases(pods))) != told:
                    print(f"pods: {now or 'none yet'}", flush=True)
                    told = now
                logs.update(pods)
                if (condition := ended(status)) is not None:
                    logs.finish()
                    return self._tell(condition)
                time.sleep(poll)
        except KeyboardInterrupt:
            print(f"\n{self._kind} {self._name} goes on; the same command shows it.")
            return 130
        finally:
            logs.stop()

    def _tell(self, condition: Object) -> int:
        message = f": {condition['message']}" if "message" in condition else ""
        kind = condition["type"].lower()
        print(f"{self._kind} {self._name} {kind}{message}", flush=True)
        return _FINISHED[condition["type"]]

    def _pods(self) -> list[Object]:
        group = (
            "jobset.sigs.k8s.io" if self._kind == "jobset" else "batch.kubernetes.io"
        )
        label = f"{group}/{self._kind}-name"
        found = self._get("pods", f"--selector={label}={self._name}")
        return found["items"] if found else []

    def _get(self, *what: str) -> Any:
        text = command.output([*self._kubectl, "get", *what, "--output=json"])
        return json.loads(text) if text.strip() else None


class _Logs:
    """What the pods print: all of process 0, the last lines of others that failed."""

    def __init__(self, kubectl: list[str]) -> None:
        self._kubectl = kubectl
        self._shown: set[str] = set()
        self._following: list[subprocess.Popen[bytes]] = []

    def update(self, pods: Sequence[Object]) -> None:
        for pod in pods:
            name, phase = pod["metadata"]["name"], pod["status"]["phase"]
            if phase == "Pending" or name in self._shown:
                continue
            logs = [*self._kubectl, "logs", name]
            if is_first(pod):
                self._following.append(command.start([*logs, "--follow"]))
            elif phase == "Failed":
                print(f"pod {name} failed; it printed last:", flush=True)
                command.start([*logs, f"--tail={_LAST_LINES}"]).wait()
            else:
                continue
            self._shown.add(name)

    def finish(self) -> None:
        """Waits for the last lines; a minute, should a connection hang."""
        for process in self._following:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=60)

    def stop(self) -> None:
        for process in self._following:
            command.end(process)


def is_first(pod: Object) -> bool:
    """Whether process 0 of the run is in a pod."""
    labels = pod["metadata"]["labels"]
    indices = (_SLICE_INDEX, _POD_INDEX)
    return all(labels[name] == "0" for name in indices if name in labels)


def ended(status: Object) -> Object | None:
    """The condition that says that a Job or JobSet has ended, if one does.

    >>> ended({"conditions": [{"type": "Failed", "status": "True"}]})
    {'type': 'Failed', 'status': 'True'}
    >>> ended({"active": 1}) is None
    True
    """
    for condition in _conditions(status):
        if condition["type"] in _FINISHED and condition["status"] == "True":
            return condition
    return None


def phases(pods: Sequence[Object]) -> list[str]:
    """How many pods are in which phase, and why some wait.

    >>> phases([{"status": {"phase": "Running"}}, {"status": {"phase": "Running"}}])
    ['2 Running']
    """
    counts: dict[str, int] = {}
    for pod in pods:
        phase = pod["status"]["phase"]
        for condition in _conditions(pod["status"]):
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                phase += f" ({condition['message']})"
        counts[phase] = counts[phase] + 1 if phase in counts else 1
    return [f"{count} {phase}" for phase, count in sorted(counts.items())]


def _conditions(status: Object) -> list[Object]:
    return status["conditions"] if "conditions" in status else []
