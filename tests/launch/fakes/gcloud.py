"""A fake `gcloud compute tpus`: queued resources, and workers that run what they get.

A worker is a directory of its own as home, and commands really run in it. The scenario
of a test says what goes wrong, see `tests/launch/test_tpu.py`.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import flags
import state

GCLOUD = ["compute", "tpus"]


def main(argv: list[str]) -> None:
    if argv[:2] != GCLOUD:
        flags.refuse(f"gcloud: invalid choice: {argv[:2]}")
    given = flags.parse("gcloud compute tpus", flags.GCLOUD, argv[2:])
    with state.locked() as now:
        now["commands"].append(argv)
    actions = {
        "queued-resources create": create,
        "queued-resources describe": describe,
        "queued-resources delete": delete,
        "tpu-vm describe": describe_node,
        "tpu-vm ssh": ssh,
        "tpu-vm scp": scp,
    }
    actions[given.verb](given)


def fail(message: str, code: int = 1) -> NoReturn:
    print(f"ERROR: (gcloud.compute.tpus) {message}", file=sys.stderr)
    sys.exit(code)


def create(given: flags.Given) -> None:
    (name,) = given.arguments
    nodes = [given.one("node-id")]
    if "node-count" in given.flags:
        count = int(given.one("node-count"))
        if count < 2 or "node-id" in given.flags:
            fail("INVALID_ARGUMENT: node count must be greater than 1")
        nodes = [f"{given.one('node-prefix')}-{i}" for i in range(count)]
    with state.locked() as now:
        if name in now["requests"]:
            fail(f"ALREADY_EXISTS: {name}")
        now["asked"] += 1
        refusals = state.scenario()["refusals"]
        if now["asked"] <= len(refusals):
            fail(refusals[now["asked"] - 1], code=1)
        now["created"] += 1
        now["requests"][name] = {
            "state": "WAITING_FOR_RESOURCES",
            "looks": 0,
            "nodes": nodes,
            "type": given.one("accelerator-type"),
            "spot": "spot" in given.flags,
            "runs": 0,
        }


def described(request: dict[str, Any], created: int) -> dict[str, Any]:
    """Moves a request on by one look, and describes it."""
    request["looks"] += 1
    failures = state.scenario()["failures"]
    data = {}
    if request["state"] == "WAITING_FOR_RESOURCES":
        if created <= len(failures):
            request["state"] = "FAILED"
        elif request["looks"] > state.scenario()["waits"]:
            request["state"] = "ACTIVE"
    if request["state"] == "FAILED":
        message = failures[created - 1]
        data = {"failedData": {"error": {"code": 8, "message": message}}}
    node = {"acceleratorType": request["type"]}
    return {
        "state": {"state": request["state"], **data},
        "tpu": {"nodeSpec": [{"nodeId": n, "node": node} for n in request["nodes"]]},
    }


def describe(given: flags.Given) -> None:
    (name,) = given.arguments
    with state.locked() as now:
        if name not in now["requests"]:
            fail(f"NOT_FOUND: Resource {name} was not found")
        found = described(now["requests"][name], now["created"])
    print(json.dumps(found))


def delete(given: flags.Given) -> None:
    (name,) = given.arguments
    with state.locked() as now:
        if name not in now["requests"]:
            fail(f"NOT_FOUND: Resource {name} was not found")
        if "force" not in given.flags:
            fail("FAILED_PRECONDITION: it has nodes; use --force")
        for node in now["requests"].pop(name)["nodes"]:
            power_off(node)
        now["deleted"] += 1


def find(now: dict[str, Any], node: str) -> dict[str, Any] | None:
    """The request whose slice a node is, if it is up."""
    for request in now["requests"].values():
        if node in request["nodes"]:
            return request
    return None


def describe_node(given: flags.Given) -> None:
    (node,) = given.arguments
    with state.locked() as now:
        request = find(now, node)
    if request is None or request["state"] == "WAITING_FOR_RESOURCES":
        fail(f"NOT_FOUND: {node}")
    up = "READY" if request["state"] == "ACTIVE" else "PREEMPTED"
    print(json.dumps({"name": node, "state": up}))


# --- workers


def homes(node: str, worker: str) -> list[Path]:
    """The homes of the workers that a command goes to; made when first used."""
    with state.locked() as now:
        request = find(now, node)
    if request is None or request["state"] != "ACTIVE":
        fail(f'TPU node "{node}" is in state PREEMPTED: cannot connect')
    count = state.scenario()["workers"]
    chosen = range(count) if worker == "all" else [int(worker)]
    found = [state.CLOUD / "vms" / f"{node}-w-{i}" for i in chosen]
    for home in found:
        home.mkdir(parents=True, exist_ok=True)
    return found


def power_off(node: str) -> None:
    """Ends all that runs on a node, and wipes its disks."""
    for home in (state.CLOUD / "vms").glob(f"{node}-w-*"):
        marker = f"HOME={home}".encode()
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if marker in (process / "environ").read_bytes().split(b"\0"):
                    os.kill(int(process.name), signal.SIGKILL)
            except OSError:  # not ours, or gone
                continue
        shutil.rmtree(home, ignore_errors=True)


def scp(given: flags.Given) -> None:
    *sources, target = given.arguments
    node, _, path = target.partition(":")
    for home in homes(node, given.one("worker", "0")):
        for source in sources:
            mode = os.stat(source).st_mode & ~0o022  # the umask of the workers
            with os.fdopen(
                os.open(home / path, os.O_CREAT | os.O_WRONLY, mode), "wb"
            ) as file:
                file.write(Path(source).read_bytes())
                file.truncate()


def environment(home: Path) -> dict[str, str]:
    """What a worker has: its home, and the fake Python of its image."""
    kept = ("FAKE_", "JAX_", "XLA_", "TF_", "OPENBLAS_")
    env = {k: v for k, v in os.environ.items() if k.startswith(kept)}
    path = f"{state.CLOUD / 'worker-bin'}:/usr/bin:/bin"
    return env | {"HOME": str(home), "PATH": path, "TPU_WORKER": home.name[-1]}


def ssh(given: flags.Given) -> None:
    (node,) = given.arguments
    script = given.one("command")
    chosen = homes(node, given.one("worker", "0"))
    starts = "worker.sh run" in script
    lost: list[int] = []
    with state.locked() as now:
        if starts:
            request = find(now, node)
            assert request is not None
            now["runs"].append(script)
            request["runs"] += 1
            lost = state.scenario()["lost_workers"][len(now["runs"]) - 1 :][:1]
        created, number = now["created"], str(len(now["runs"]))
    workers = []
    for i, home in enumerate(chosen):
        env = environment(home) | {"FAKE_RUN": number}
        if lost and lost[0] is not None:
            env["FAKE_LOST"] = "1"
        command = "exit 255" if i in lost else script
        shell = ["bash", "-c", command]
        workers.append(subprocess.Popen(shell, env=env, cwd=home))
    if starts:
        preempt_when_due(node, created, workers)
    codes = [worker.wait() for worker in workers]
    for i, code in enumerate(codes):
        if code:
            print(
                f"##### Command execution on worker {i} failed with exit status {code}"
            )
    sys.exit(next((code for code in codes if code), 0))


def preempt_when_due(node: str, created: int, workers: list[Any]) -> None:
    """Takes a slice away once its run has come to the step that the scenario says."""
    due = state.scenario()["preempt_at"][created - 1 :][:1]
    if not due:
        return
    checkpoints = Path(state.scenario()["workdir"]) / "checkpoints"
    while any(worker.poll() is None for worker in workers):
        if (checkpoints / str(due[0])).exists():
            with state.locked() as now:
                request = find(now, node)
                assert request is not None
                request["state"] = "SUSPENDED"
            power_off(node)
            while (
                created in state.scenario()["hangs"]
            ):  # as a connection to a host that is gone
                time.sleep(0.1)
            sys.exit(255)
        time.sleep(0.02)


if __name__ == "__main__":
    main(sys.argv[1:])
