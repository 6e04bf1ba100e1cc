"""A fake kubectl with a cluster behind it, which does what the manifest says.

Pods really run, in a process of the cluster's own; whether a failed one is replaced, or
ends its Job, or the JobSet is started again, follows from the rules in the objects. The
scenario's `evict_at` takes a pod away in mid-run, `codes` makes it fail.

Rules: https://kubernetes.io/docs/concepts/workloads/controllers/job/ (pod failure
policy, back-off limit), https://jobset.sigs.k8s.io/docs/concepts/ (failure policy),
https://kubernetes.io/docs/concepts/configuration/secret/ (a pod whose Secret is missing
does not start) and https://kubernetes.io/docs/concepts/architecture/garbage-collection/
(what has an owner is deleted with it).
"""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import flags
import state

Object = dict[str, Any]
TRAINER = Path(__file__).parent / "trainer.py"
DISRUPTED = {"type": "DisruptionTarget", "status": "True"}


def main(argv: list[str]) -> None:
    if argv[0] == "run-cluster":
        return run_workload(argv[1])
    words = [a for a in argv if not a.startswith("--namespace=")] + [
        a for a in argv if a.startswith("--namespace=")
    ]
    given = flags.parse("kubectl", flags.KUBECTL, words)
    with state.locked() as now:
        now["commands"].append(["kubectl", *argv])
        if given.verb in state.scenario()["forbidden"]:
            flags.refuse(f"(Forbidden): cannot {given.verb} resource")
    actions = {
        "apply": apply,
        "create secret generic": create_secret,
        "delete": delete,
        "get": get,
        "logs": logs,
        "patch": patch,
    }
    actions[given.verb](given)


def apply(given: flags.Given) -> None:
    """Creates objects; the last one begins to run."""
    manifest = json.load(sys.stdin)
    key = ""
    objects = manifest["items"] if manifest["kind"] == "List" else [manifest]
    with state.locked() as now:
        for item in objects:
            key = f"{item['kind'].lower()}/{item['metadata']['name']}"
            if key in now["objects"]:
                flags.refuse(f"{key}: field is immutable")
            uid = f"uid-{len(now['commands'])}-{key}"
            item["metadata"]["uid"] = uid
            now["objects"][key] = item
            print(f"{key} created")
    with (state.CLOUD / "cluster.log").open("a") as log:
        subprocess.Popen(
            [sys.executable, "-S", __file__, "run-cluster", key],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def create_secret(given: flags.Given) -> None:
    """A Secret from standard input."""
    (name,) = given.arguments
    field, _, path = given.one("from-file").partition("=")
    assert path == "/dev/stdin"
    data = {field: base64.b64encode(sys.stdin.buffer.read()).decode()}
    key = f"secret/{name}"
    with state.locked() as now:
        if key in now["objects"]:
            flags.refuse(f'(AlreadyExists): secrets "{name}" already exists')
        now["objects"][key] = {"metadata": {"name": name}, "data": data}
    print(f"{key} created")


def patch(given: flags.Given) -> None:
    """A merge patch of an object's metadata."""
    assert given.one("type") == "merge"
    (key,) = given.arguments
    change = json.loads(given.one("patch"))
    assert change.keys() == {"metadata"}
    with state.locked() as now:
        now["objects"][key]["metadata"].update(change["metadata"])
    print(f"{key} patched")


def get(given: flags.Given) -> None:
    kind, *names = given.arguments
    with state.locked() as now:
        if kind == "pods":
            label, _, value = given.one("selector").partition("=")
            pods = now["pods"].values()
            items = [p for p in pods if p["metadata"]["labels"].get(label) == value]
            print(json.dumps({"kind": "List", "items": items}))
        elif (key := f"{kind}/{names[0]}") in now["objects"]:
            print(json.dumps(now["objects"][key]))
        elif "ignore-not-found" not in given.flags:
            flags.refuse(f'Error from server (NotFound): "{names[0]}" not found')


def delete(given: flags.Given) -> None:
    """Objects by KIND/NAME, and those that they own; all are tried."""
    missing = []
    with state.locked() as now:
        for key in given.arguments:
            found = now["objects"].pop(key, None)
            if found is None:
                missing.append(key)
            elif uid := found["metadata"].get("uid"):
                now["objects"] = {
                    k: v for k, v in now["objects"].items() if uid not in owners(v)
                }
                now["pods"] = {}
    if missing and "ignore-not-found" not in given.flags:
        flags.refuse(f"Error from server (NotFound): {missing} not found")


def owners(item: Object) -> list[str]:
    """The uids of its owners; the fields are all needed."""
    found = item["metadata"].get("ownerReferences", [])
    assert all(o.keys() == {"apiVersion", "kind", "name", "uid"} for o in found)
    return [owner["uid"] for owner in found]


def logs(given: flags.Given) -> None:
    """A pod's log; with --follow until it has ended."""
    (name,) = given.arguments
    path = state.CLOUD / f"{name}.log"
    with path.open() as file:
        while True:
            with state.locked() as now:
                ended = name not in now["pods"] or phase(now["pods"][name]) in (
                    "Succeeded",
                    "Failed",
                )
            lines = file.readlines()
            if "tail" in given.flags and given.one("tail") != "-1":
                lines = lines[-int(given.one("tail")) :]
            print("".join(lines), end="", flush=True)
            if ended or "follow" not in given.flags:
                return
            time.sleep(0.05)


def phase(pod: Object) -> str:
    return pod["status"]["phase"]


# --- the cluster


def run_workload(key: str) -> None:
    """Runs a Job or JobSet to its end, and writes its conditions."""
    with state.locked() as now:
        item = now["objects"][key]
    if item["kind"] == "JobSet":
        condition = run_jobset(item)
    else:
        labels = {"batch.kubernetes.io/job-name": item["metadata"]["name"]}
        (failure,) = run_jobs([Job(item["metadata"]["name"], item["spec"], labels)])
        condition = failure or {"type": "Complete", "status": "True"}
    with state.locked() as now:
        now["objects"][key]["status"] = {"conditions": [condition]}


def run_jobset(jobset: Object) -> Object:
    """All Jobs, and all again when one fails, by the rules of the failure policy."""
    name, spec = jobset["metadata"]["name"], jobset["spec"]
    policy, counted = spec["failurePolicy"], 0
    while True:
        with state.locked() as now:
            now["pods"] = {}
            now["attempts"] = now.get("attempts", 0) + 1
        jobs = []
        for replicated in spec["replicatedJobs"]:
            for index in range(replicated["replicas"]):
                labels = {
                    "jobset.sigs.k8s.io/jobset-name": name,
                    "jobset.sigs.k8s.io/job-index": str(index),
                }
                job = f"{name}-{replicated['name']}-{index}"
                jobs.append(Job(job, replicated["template"]["spec"], labels))
        failures = [f for f in run_jobs(jobs) if f]
        if not failures:
            return {"type": "Completed", "status": "True"}
        action = jobset_action(policy["rules"], failures[0])
        counted += action == "RestartJobSet"
        if action == "FailJobSet" or counted > policy["maxRestarts"]:
            return {
                "type": "Failed",
                "status": "True",
                "message": failures[0]["message"],
            }


def jobset_action(rules: list[Object], failure: Object) -> str:
    """What the first rule says that matches the reason and the message."""
    for rule in rules:
        reasons = rule.get("onJobFailureReasons", [])
        patterns = rule.get("onJobFailureMessagePatterns", [])
        if (not reasons or failure["reason"] in reasons) and (
            not patterns or any(re.search(p, failure["message"]) for p in patterns)
        ):
            return rule["action"]
    return "RestartJobSet"


class Job:
    """An indexed Job, while it runs."""

    def __init__(self, name: str, spec: Object, labels: dict[str, str]) -> None:
        assert spec["completionMode"] == "Indexed"
        assert spec["completions"] == spec["parallelism"]
        self.name, self.spec, self.labels = name, spec, labels
        self.running: dict[int, Pod] = {}
        self.succeeded: set[int] = set()
        self.failures = 0  # that count

    def step(self) -> Object | None:
        """Looks after the pods; a condition once it has failed."""
        for index in range(self.spec["completions"]):
            if index not in self.running and index not in self.succeeded:
                self.running[index] = Pod(self, index)
        for index, pod in list(self.running.items()):
            code = pod.step()
            if code is None:
                continue
            del self.running[index]
            if code == 0:
                self.succeeded.add(index)
                continue
            rule = self.rule(pod, code)
            action = (
                self.spec["podFailurePolicy"]["rules"][rule]["action"]
                if (rule is not None)
                else "Count"
            )
            if action == "FailJob":
                why = (
                    "has condition DisruptionTarget"
                    if pod.disrupted
                    else (f"failed with exit code {code}")
                )
                message = f"Container vit-jax for pod default/{pod.name} {why}"
                message += f" matching FailJob rule at index {rule}"
                return failed("PodFailurePolicy", message)
            self.failures += action == "Count"
            if self.failures > self.spec["backoffLimit"]:
                return failed("BackoffLimitExceeded", "Job has reached the limit")
        return None

    def rule(self, pod: "Pod", code: int) -> int | None:
        """The number of the first rule that fits a failed pod."""
        for i, rule in enumerate(self.spec["podFailurePolicy"]["rules"]):
            if "onExitCodes" in rule:
                on = rule["onExitCodes"]
                assert on["operator"] == "In"
                assert on["containerName"] == pod.container["name"]
                if code in on["values"]:
                    return i
            elif pod.disrupted and DISRUPTED in rule["onPodConditions"]:
                return i
        return None

    def stop(self) -> None:
        for pod in self.running.values():
            pod.terminate()


def failed(reason: str, message: str) -> Object:
    return {"type": "Failed", "status": "True", "reason": reason, "message": message}


def run_jobs(jobs: list[Job]) -> list[Object | None]:
    """Runs Jobs side by side until all are done or one has failed."""
    while True:
        failures = [job.step() for job in jobs]
        done = all(len(j.succeeded) == j.spec["completions"] for j in jobs)
        if done or any(failures):
            for job in jobs:
                job.stop()
            return failures
        time.sleep(0.02)


class Pod:
    """One container, as a process of the fake trainer."""

    def __init__(self, job: Job, index: int) -> None:
        (self.container,) = job.spec["template"]["spec"]["containers"]
        with state.locked() as now:
            now["pods_started"] = now.get("pods_started", 0) + 1
            self.name = f"{job.name}-{index}-{now['pods_started']}"
            labels = job.labels | {
                "batch.kubernetes.io/job-completion-index": str(index)
            }
            now["pods"][self.name] = {
                "metadata": {"name": self.name, "labels": labels},
                "status": {"phase": "Running"},
            }
            run = str(now.get("attempts", 0))
        self.disrupted = False
        self.index = index
        env = {"JOB_COMPLETION_INDEX": str(index)} | {
            e["name"]: value(e, labels) for e in self.container["env"]
        }
        first = index == 0 and labels.get("jobset.sigs.k8s.io/job-index", "0") == "0"
        env |= {"TPU_WORKER": "0" if first else "1", "FAKE_RUN": run}
        command = [expanded(text, env) for text in self.container["command"]]
        assert command[:3] == ["python", "-m", "vit_jax.main"]
        with (state.CLOUD / f"{self.name}.log").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-S", str(TRAINER), *command[3:]],
                env=os.environ | env,
                stdout=log,
                stderr=log,
            )

    def step(self) -> int | None:
        """The exit code once it has ended; evicts it when the scenario says so."""
        with state.locked() as now:
            due = state.scenario()["evict_at"][now.get("evicted", 0) :][:1]
            checkpoints = Path(state.scenario()["workdir"]) / "checkpoints"
            if due and self.index == 1 and (checkpoints / str(due[0])).exists():
                now["evicted"] = now.get("evicted", 0) + 1
                self.disrupted = True
                self.process.send_signal(signal.SIGKILL)
                self.process.wait()
            code = self.process.poll()
            if code is not None and self.name in now["pods"]:
                ended = "Failed" if code else "Succeeded"
                now["pods"][self.name]["status"]["phase"] = ended
        return code

    def terminate(self) -> None:
        """Ends it, as it happens to those whose Job has failed."""
        self.process.terminate()
        self.process.wait()
        self.step()


def value(variable: Object, labels: dict[str, str]) -> str:
    """What an environment variable says, is a label, or is in a Secret."""
    if "value" in variable:
        return variable["value"]
    source = variable["valueFrom"]
    if "secretKeyRef" in source:
        return secret_value(**source["secretKeyRef"])
    found = re.fullmatch(r"metadata\.labels\['(.*)'\]", source["fieldRef"]["fieldPath"])
    assert found is not None, source
    return labels[found[1]]


def secret_value(name: str, key: str) -> str:
    """A field of a Secret, waited for: CreateContainerConfigError until it is there."""
    while True:
        with state.locked() as now:
            if f"secret/{name}" in now["objects"]:
                text = now["objects"][f"secret/{name}"]["data"][key]
                return base64.b64decode(text).decode()
        time.sleep(0.05)


def expanded(text: str, env: dict[str, str]) -> str:
    """$$ read as $, $(NAME) replaced, unknown names left as they are.

    From the left, as in k8s.io/kubernetes/third_party/forked/golang/expansion, by what
    https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/ says
    of `command`.
    """

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return env[match[1]] if match[1] in env else match[0]

    return re.sub(r"\$\$|\$\(([^)]*)\)", replace, text)


if __name__ == "__main__":
    main(sys.argv[1:])
