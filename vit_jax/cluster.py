"""Where this process stands among those of a run: told by flags, or found.

Finding is JAX's own (`jax.distributed.initialize` does the same); what is decided here
is when to ask, since on a laptop the question alone would cost seconds.
"""

import dataclasses
import importlib.util
import os
from collections.abc import Mapping

from vit_jax.errors import UserError
from vit_jax.limits import is_number

FLAGS = ("--coordinator_address", "--num_processes", "--process_id")
_FIND_SECONDS = 300  # for a host name that is not known yet


@dataclasses.dataclass(frozen=True)
class Place:
    """One process of several.

    Attributes:
      coordinator: HOST:PORT that process 0 listens at.
      num_processes: of the run.
      process_id: of this one, from 0.
      local_device_ids: the GPUs of this host that are its own; None is all.
    """

    coordinator: str
    num_processes: int
    process_id: int
    local_device_ids: tuple[int, ...] | None = None


def find(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> Place | None:
    """The place that the flags say, else the environment; None: there is one process.

    Raises:
      UserError: if the flags contradict each other, or what started this process does
        not say enough.
    """
    if coordinator is None and num_processes is None and process_id is None:
        return _in_environment(os.environ)
    if coordinator is None or num_processes is None or process_id is None:
        given = zip(FLAGS, (coordinator, num_processes, process_id), strict=True)
        missing = " and ".join(name for name, value in given if value is None)
        raise UserError(f"{', '.join(FLAGS)} go together: {missing} is not given")
    host, _, port = coordinator.rpartition(":")
    if not host or not is_number(port) or not 0 < int(port) < 2**16:
        raise UserError(
            f"--coordinator_address={coordinator} should be HOST:PORT of process 0, "
            "such as 10.0.0.1:8476"
        )
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id={process_id} should be at least 0 and less than "
            f"--num_processes={num_processes}"
        )
    return None if num_processes == 1 else Place(coordinator, num_processes, process_id)


def _in_environment(env: Mapping[str, str]) -> Place | None:
    method = detection_method(env)
    if method is None:
        return None
    from jax._src.clusters import ClusterEnv  # no public name; initialize() calls it

    try:
        coordinator, num_processes, process_id, devices = (
            ClusterEnv.auto_detect_unset_distributed_params(
                None, None, None, None, _JAX_NAME.get(method, method), _FIND_SECONDS
            )
        )
    except (RuntimeError, ValueError, OSError, LookupError) as error:
        raise UserError(
            f"{_STARTED_BY[method]} started this process, but the other processes were "
            f"not found ({type(error).__name__}: {error}): give {', '.join(FLAGS)}"
        ) from error
    assert coordinator and num_processes and process_id is not None
    if num_processes == 1:
        return None
    ids = None if devices is None else tuple(devices)
    return Place(coordinator, num_processes, process_id, ids)


_STARTED_BY = {
    "slurm": "Slurm",
    "ompi": "Open MPI",
    "mpi4py": "Open MPI",
    "k8s": "a Job of Kubernetes",
    "gketpu": "GKE",
    "gcetpu": "a TPU VM",
}


_JAX_NAME = {"k8s": None}  # it has no name there; None is "the first that fits"


def detection_method(env: Mapping[str, str]) -> str | None:
    """Which of JAX's ways to find the other processes will work here, if any.

    Raises:
      UserError: if there are others but no way to find them.

    >>> detection_method({"SLURM_STEP_NUM_TASKS": "2"})
    'slurm'
    >>> detection_method({"SLURM_NTASKS": "2"})  # in the batch script, before srun
    """
    if int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return "slurm"
    if int(env.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        if "OMPI_MCA_orte_hnp_uri" in env:
            return "ompi"
        return "mpi4py" if _installed("mpi4py", "Open MPI 5 and newer") else None
    if _on_tpu(env):
        names = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")
        if any(name in env for name in names):
            return "gketpu"
        return None if "TPU_SKIP_MDS_QUERY" in env else "gcetpu"
    if int(env.get("JOB_COMPLETION_INDEX", "0")) > 0:
        _installed("kubernetes", "an indexed Job of Kubernetes")
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        return "k8s" if importlib.util.find_spec("kubernetes") else None
    return None


def _installed(package: str, where: str) -> bool:
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"{where}: to find the other processes, pip install {package}; or give "
            f"{', '.join(FLAGS)}"
        )
    return True


def _on_tpu(env: Mapping[str, str]) -> bool:
    """Whether this machine has TPUs and JAX is to use them."""
    if env.get("JAX_PLATFORMS", "").split(",")[0] not in ("", "tpu"):
        return False
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in env:
        return False
    from jax._src import cloud_tpu_init  # looks at the PCI bus, when jax is imported

    return cloud_tpu_init.running_in_cloud_tpu_vm
