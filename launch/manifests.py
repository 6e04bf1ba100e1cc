"""Kubernetes objects for one run: a JobSet on TPU slices, an indexed Job on GPUs.

Plain dicts; `kubectl` takes JSON as well as YAML. What an exit code of vit_jax.main
leads to is said here, so that the cluster restarts a run while nobody is watching:

  exit code                JobSet (TPU)             Job (GPU)
  0                        done                     done
  2, 70                    fails at once            fails at once
  75, an evicted pod       restarts, not counted    restarts, not counted
  76 a peer was lost       restarts, counted        restarts, not counted
  anything else            restarts, counted        restarts, counted

Sources: https://kubernetes.io/docs/concepts/workloads/controllers/job/,
https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2/, and for TPUs
https://cloud.google.com/kubernetes-engine/docs/how-to/tpu-multislice.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from vit_jax.authentication import RUN_KEY
from vit_jax.errors import NonFiniteLossError, PeerLost, Preempted, UserError
from vit_jax.launch import job
from vit_jax.launch.accelerators import Slice

Object = dict[str, Any]

CONTAINER = "vit-jax"
REPLICATED_JOB = "slice"
COORDINATOR_PORT = 8476
KEY_FIELD = "key"  # of the Secret of a run
_GPU_LABEL = "cloud.google.com/gke-accelerator"
_FINAL = [UserError.exit_code, NonFiniteLossError.exit_code]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What both kinds of object need.

    Attributes:
      name: of the object, its service and its pods' hosts.
      image: a container image with vit_jax, and the recipe in its working directory.
      volumes: persistent volume claims and where they are mounted.
      grace: seconds between SIGTERM and SIGKILL, to save in.
      max_restarts: of the whole run; those after a preemption are not counted.
    """

    name: str
    image: str
    namespace: str
    service_account: str | None
    volumes: Sequence[tuple[str, str]]
    spot: bool
    grace: int
    max_restarts: int


def jobset(run: job.Job, tpu: Slice, slices: int, settings: Settings) -> Object:
    """A JobSet with one Job a slice and one pod a host, restarted as a whole."""
    several = slices > 1
    environment = _megascale(settings.name, slices) if several else []
    if slices * tpu.hosts > 1:
        environment.append(_run_key(settings.name))
    pod = _pod(
        settings,
        run.command("python"),
        resources={"google.com/tpu": tpu.chips_per_host},
        node_selector={
            "cloud.google.com/gke-tpu-accelerator": tpu.tpu.gke,
            "cloud.google.com/gke-tpu-topology": tpu.topology,
        },
        environment=environment,
    )
    # The device files of a TPU belong to root; the image's own user is nobody.
    pod["containers"][0]["securityContext"] = {"runAsUser": 0}
    if several:  # the network between slices is too slow through the pods' own
        pod |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    # Chips of a slice start together or not at all: any failed pod ends its Job, and
    # the JobSet, which sees why, starts all of them anew.
    spec = _indexed_job(tpu.hosts, 0, pod) | {
        "podFailurePolicy": {
            "rules": [
                _on_exit_codes("FailJob", _FINAL),
                _on_exit_codes("FailJob", [Preempted.exit_code]),
                _on_disruption("FailJob"),
            ]
        }
    }
    codes = "|".join(str(code) for code in _FINAL)
    rules = [
        {
            "name": "nothing_to_restart",
            "action": "FailJobSet",
            "onJobFailureReasons": ["PodFailurePolicy"],
            "onJobFailureMessagePatterns": [f"failed with exit code ({codes}) "],
        },
        {
            "name": "preempted",
            "action": "RestartJobSetAndIgnoreMaxRestarts",
            "onJobFailureReasons": ["PodFailurePolicy"],
        },
    ]
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": _metadata(settings)
        # One slice is one node pool, and no two Jobs share one.
        | {
            "annotations": {
                "alpha.jobset.sigs.k8s.io/exclusive-topology": (
                    "cloud.google.com/gke-nodepool"
                )
            }
        },
        "spec": {
            "failurePolicy": {"maxRestarts": settings.max_restarts, "rules": rules},
            "replicatedJobs": [
                {
                    "name": REPLICATED_JOB,
                    "replicas": slices,
                    "template": {"spec": spec},
                }
            ],
        },
    }


def gpu_job(
    run: job.Job, *, nodes: int, gpus: int, gpu_type: str | None, settings: Settings
) -> list[Object]:
    """An indexed Job with one pod a node, and the headless Service of their names.

    A pod that fails is started again under its index. A limit per index would leave the
    others waiting for one that is given up, so all failures count together.
    """
    name = settings.name
    distributed = [
        f"--coordinator_address={name}-0.{name}:{COORDINATOR_PORT}",
        f"--num_processes={nodes}",
    ]
    pod = _pod(
        settings,
        run.command("python", extra=distributed if nodes > 1 else []),
        resources={"nvidia.com/gpu": gpus},
        node_selector={_GPU_LABEL: gpu_type} if gpu_type else {},
        environment=[_run_key(name)] if nodes > 1 else [],
    )
    pod["subdomain"] = name
    if nodes > 1:  # not escaped: the one variable that Kubernetes is to fill in
        pod["containers"][0]["command"].append("--process_id=$(JOB_COMPLETION_INDEX)")
    # One crash is up to one failure for each pod, while they find each other again.
    spec = _indexed_job(nodes, settings.max_restarts * nodes, pod) | {
        "podFailurePolicy": {
            "rules": [
                _on_exit_codes("FailJob", _FINAL),
                _on_exit_codes("Ignore", [Preempted.exit_code, PeerLost.exit_code]),
                _on_disruption("Ignore"),
            ]
        }
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(settings),
        "spec": {
            "clusterIP": "None",
            "selector": {"batch.kubernetes.io/job-name": name},
            # A pod must be found before it is ready: it waits for the others.
            "publishNotReadyAddresses": True,
        },
    }
    workload = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(settings),
        "spec": spec,
    }
    return [service, workload]


def _metadata(settings: Settings) -> Object:
    labels = {"app.kubernetes.io/name": "vit-jax"}
    return {
        "name": settings.name,
        "namespace": settings.namespace,
        "labels": labels,
    }


def _indexed_job(pods: int, backoff_limit: int, pod: Object) -> Object:
    return {
        "completionMode": "Indexed",
        "completions": pods,
        "parallelism": pods,
        "backoffLimit": backoff_limit,
        "template": {"spec": pod},
    }


def _pod(
    settings: Settings,
    command: list[str],
    *,
    resources: dict[str, int],
    node_selector: dict[str, str],
    environment: list[Object],
) -> Object:
    container = {
        "name": CONTAINER,
        "image": settings.image,
        "command": [escaped(argument) for argument in command],
        "env": [{"name": "PYTHONUNBUFFERED", "value": "1"}, *environment],
        "resources": {"limits": resources},
        "volumeMounts": [
            {"name": "shared-memory", "mountPath": "/dev/shm"},
            *({"name": claim, "mountPath": path} for claim, path in settings.volumes),
        ],
    }
    pod: Object = {
        "restartPolicy": "Never",  # what podFailurePolicy needs
        "terminationGracePeriodSeconds": settings.grace,
        "nodeSelector": dict(node_selector),
        "containers": [container],
        # The input pipeline's workers and NCCL need more than the usual 64 MiB.
        "volumes": [
            {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
            *(
                {"name": claim, "persistentVolumeClaim": {"claimName": claim}}
                for claim, _ in settings.volumes
            ),
        ],
    }
    if settings.service_account:
        pod["serviceAccountName"] = settings.service_account
    if settings.spot:
        pod["nodeSelector"]["cloud.google.com/gke-spot"] = "true"
        pod["tolerations"] = [
            {
                "key": "cloud.google.com/gke-spot",
                "operator": "Equal",
                "value": "true",
                "effect": "NoSchedule",
            }
        ]
    return pod


def _run_key(name: str) -> Object:
    """The key by which the processes know each other; the Secret is made apart."""
    reference = {"name": f"{name}-run-key", "key": KEY_FIELD}
    return {"name": RUN_KEY, "valueFrom": {"secretKeyRef": reference}}


def secret_of(workload: Object) -> str | None:
    """The name of the Secret that the pods of a Job or JobSet read their key from.

    Returns:
      None for a run of one process, which needs none.
    """
    spec = workload["spec"]
    if workload["kind"] == "JobSet":
        spec = spec["replicatedJobs"][0]["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    for variable in container["env"]:
        if variable["name"] == RUN_KEY:
            return variable["valueFrom"]["secretKeyRef"]["name"]
    return None


def escaped(argument: str) -> str:
    """An argument in which Kubernetes finds no variable to expand.

    It reads "$$" as "$", wherever it stands, and "$(NAME)" as a variable.

    >>> escaped("--config.data.data_dir=/data/$(x)/$$")
    '--config.data.data_dir=/data/$$(x)/$$$$'
    """
    return argument.replace("$", "$$")


def _megascale(name: str, slices: int) -> list[Object]:
    """What libtpu needs to find the other slices; JAX numbers its processes by it."""
    index = "metadata.labels['jobset.sigs.k8s.io/job-index']"
    return [
        {"name": "MEGASCALE_NUM_SLICES", "value": str(slices)},
        {
            "name": "MEGASCALE_SLICE_ID",
            "valueFrom": {"fieldRef": {"fieldPath": index}},
        },
        {
            "name": "MEGASCALE_COORDINATOR_ADDRESS",
            "value": f"{name}-{REPLICATED_JOB}-0-0.{name}",
        },
    ]


def _on_exit_codes(action: str, codes: list[int]) -> Object:
    return {
        "action": action,
        "onExitCodes": {
            "containerName": CONTAINER,
            "operator": "In",
            "values": codes,
        },
    }


def _on_disruption(action: str) -> Object:
    return {
        "action": action,
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    }
