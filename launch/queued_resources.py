"""TPU slices that Cloud TPU gives when it has some: gcloud's queued resources.

https://cloud.google.com/tpu/docs/queued-resources lists the states, and
https://cloud.google.com/sdk/gcloud/reference/compute/tpus the commands.
"""

import dataclasses
import datetime
import json
import re
import time
from collections.abc import Sequence
from typing import Any

from vit_jax.errors import UserError
from vit_jax.launch import command, job

_WAITING = ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING")
_LEAVING = ("SUSPENDING", "DELETING")
_LOST_NODES = ("PREEMPTED", "TERMINATED", "STOPPED", "STOPPING", "DELETING")
# No chips, too many requests a minute: these pass, a quota does not. All three come as
# RESOURCE_EXHAUSTED, so the words decide.
_PASSES = re.compile(
    "per minute|(no more|insufficient) capacity|stockout|pool_exhausted", re.IGNORECASE
)
_QUOTA = re.compile("quota", re.IGNORECASE)
_PATIENCE = 20  # looks at the state that may fail in a row, once one has succeeded
_TELL_EVERY = 600  # seconds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for.

    Attributes:
      name: of the request, and of its node if it is one.
      create_flags: further ones of `gcloud compute tpus queued-resources create`.
      ssh_flags: further ones of `gcloud compute tpus tpu-vm ssh` and `scp`.
    """

    name: str
    project: str
    zone: str
    accelerator_type: str
    runtime_version: str
    slices: int = 1
    spot: bool = False
    create_flags: Sequence[str] = ()
    ssh_flags: Sequence[str] = ()

    @property
    def nodes(self) -> list[str]:
        """The names of its slices."""
        if self.slices == 1:
            return [self.name]
        return [f"{self.name}-{i}" for i in range(self.slices)]

    def create(self) -> list[str]:
        """Files the request."""
        nodes = [f"--node-id={self.name}"]
        if self.slices > 1:
            nodes = [f"--node-count={self.slices}", f"--node-prefix={self.name}"]
        return [
            *self._gcloud("queued-resources", "create", self.name),
            f"--accelerator-type={self.accelerator_type}",
            f"--runtime-version={self.runtime_version}",
            *nodes,
            *(["--spot"] if self.spot else []),
            *self.create_flags,
        ]

    def describe(self) -> list[str]:
        """Prints the request and its state as JSON."""
        describe = self._gcloud("queued-resources", "describe", self.name)
        return [*describe, "--format=json"]

    def describe_node(self, node: str) -> list[str]:
        """Prints a slice and its state as JSON."""
        return [*self._gcloud("tpu-vm", "describe", node), "--format=json"]

    def delete(self) -> list[str]:
        """Removes the request and, by --force, its slices."""
        return [*self._gcloud("queued-resources", "delete", self.name), "--force"]

    def scp(self, node: str, source: str, target: str) -> list[str]:
        """Copies a file to all workers of a slice."""
        scp = self._gcloud("tpu-vm", "scp", source, f"{node}:{target}")
        return [*scp, "--worker=all", *self.ssh_flags]

    def ssh(self, node: str, script: str, *, worker: str = "all") -> list[str]:
        """Runs a shell script on the workers of a slice.

        gcloud exits with the code of the first of them that fails.
        """
        return [
            *self._gcloud("tpu-vm", "ssh", node),
            f"--worker={worker}",
            # A host that is gone must not leave the connection open for ever.
            "--ssh-flag=-oServerAliveInterval=30",
            "--ssh-flag=-oServerAliveCountMax=4",
            *self.ssh_flags,
            f"--command={script}",
        ]

    def _gcloud(self, group: str, verb: str, *arguments: str) -> list[str]:
        return [
            *("gcloud", "compute", "tpus", group, verb, *arguments),
            f"--project={self.project}",
            f"--zone={self.zone}",
            "--quiet",
        ]


class QueuedResource:
    """The slices of a request: asks for them, looks after them, gives them back.

    Attributes:
      held: whether there is a request of ours, which may be paid for.
    """

    def __init__(self, request: Request, poll: float) -> None:
        """`poll`: seconds between two looks at the state."""
        self.request = request
        self.held = False
        self._poll = poll
        self._reached = False

    def obtain(self) -> None:
        """Waits until the slices are there; asks for them if nobody has.

        Raises:
          UserError: if there is no quota for them, gcloud refuses, or the name stands
            for slices of another type.
        """
        progress = _Progress(self.request.name)
        while True:
            state, found = self.state()
            if found and not self.held:
                self._take(found)
            if state == "ACTIVE":
                progress.tell("ACTIVE")
                return
            if state is None:
                asked = self._create()
                progress.tell("asked for" if asked else "no capacity: asking again")
            elif state in _WAITING:
                progress.tell(f"{state}, Ctrl-C gives up")
            elif state in _LEAVING:
                progress.tell(state)
            else:  # FAILED, SUSPENDED: it stays so
                self._give_up(progress, state, found)
                continue
            time.sleep(self._poll)

    def state(self) -> tuple[str | None, dict[str, Any]]:
        """The state and the whole description; (None, {}) if there is no such request.

        Raises:
          UserError: if gcloud cannot tell.
        """
        found = self._described(self.request.describe())
        return (found["state"]["state"], found) if found else (None, {})

    def is_lost(self) -> bool:
        """Whether slices that were there have been taken away."""
        if self.state()[0] != "ACTIVE":
            return True
        nodes = map(self.request.describe_node, self.request.nodes)
        found = [self._described(describe) for describe in nodes]
        return any(not node or node["state"] in _LOST_NODES for node in found)

    def delete(self) -> None:
        """Removes the request and its slices, and waits until they are gone.

        Raises:
          UserError: if gcloud refuses.
        """
        result = command.capture(self.request.delete())
        if result.code and "NOT_FOUND" not in result.error:
            raise command.failed(self.request.delete(), result.error)
        self.held = False

    def _create(self) -> bool:
        """Files the request; False if there is no capacity now."""
        self.held = True  # before: an interrupted gcloud may have filed it
        result = command.capture(self.request.create())
        if not result.code:
            return True
        self.held = False
        if _PASSES.search(result.error):
            return False
        if _QUOTA.search(result.error):
            raise self._no_quota(result.error)
        raise command.failed(self.request.create(), result.error)

    def _give_up(
        self, progress: "_Progress", state: str, found: dict[str, Any]
    ) -> None:
        reason = failure(found)
        self.delete()  # or it counts towards the quota for ever
        if _QUOTA.search(reason) and not _PASSES.search(reason):
            raise self._no_quota(reason)
        progress.tell(f"{state} ({reason or 'taken away'}): asking again")

    def _no_quota(self, reason: str) -> UserError:
        wanted = self.request
        kind = "spot capacity" if wanted.spot else "on-demand capacity"
        return UserError(
            f"project {wanted.project} has no quota for {wanted.slices} x "
            f"{wanted.accelerator_type} of {kind} in {wanted.zone}; waiting does not "
            "help. Ask for more (https://cloud.google.com/tpu/docs/quota), or take "
            f"another zone or type{'' if wanted.spot else ', or --spot'}. "
            f"It said: {reason}"
        )

    def _take(self, found: dict[str, Any]) -> None:
        """Takes over a request that was there before, such as one that was kept."""
        node = found["tpu"]["nodeSpec"][0]["node"]
        if node["acceleratorType"] != self.request.accelerator_type:
            delete = job.shell(self.request.delete())
            raise UserError(
                f"there is a queued resource {self.request.name} of type "
                f"{node['acceleratorType']}, not {self.request.accelerator_type}: give "
                f"another --name, or remove it:\n  {delete}"
            )
        self.held = True

    def _described(self, describe: list[str]) -> dict[str, Any]:
        """What a describe command prints, {} if there is no such thing."""
        error = ""
        for _ in range(_PATIENCE if self._reached else 1):
            result = command.capture(describe)
            if not result.code or "NOT_FOUND" in result.error:
                self._reached = True
                return json.loads(result.output) if not result.code else {}
            error = result.error
            time.sleep(self._poll)  # a run of days outlives a network that is down
        raise command.failed(describe, error)


class _Progress:
    """Tells what is new at once, and what is not every ten minutes."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._began = time.monotonic()
        self._last, self._told = "", 0.0

    def tell(self, message: str) -> None:
        now = time.monotonic()
        if message != self._last or now - self._told > _TELL_EVERY:
            waited = datetime.timedelta(seconds=int(now - self._began))
            print(f"{self._name}: {message} ({waited})", flush=True)
            self._last, self._told = message, now


def failure(found: dict[str, Any]) -> str:
    """Why a request failed, "" if it does not say.

    >>> failure({"state": {"failedData": {"error": {"message": "Quota exhausted."}}}})
    'Quota exhausted.'
    """
    state = found["state"]
    if "failedData" not in state or "error" not in state["failedData"]:
        return ""
    return state["failedData"]["error"]["message"]
