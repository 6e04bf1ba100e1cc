"""Where a process stands: flags, and the environments that start several."""

import os

import pytest

from tests import cli
from vit_jax import cluster
from vit_jax.errors import UserError

VARIABLES = ("SLURM", "OMPI", "TPU", "KUBERNETES", "JOB_COMPLETION_INDEX", "JAX_COORD")


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(VARIABLES)]:
        monkeypatch.delenv(name)


def test_flags() -> None:
    place = cluster.find("10.0.0.1:8476", 4, 3)
    assert place == cluster.Place("10.0.0.1:8476", 4, 3)
    assert cluster.find(None, None, None) is None
    assert cluster.find("10.0.0.1:8476", 1, 0) is None  # nobody to meet


@pytest.mark.parametrize(
    "flags, message",
    [
        (("a:1", 2, None), "--process_id is not given"),
        ((None, 2, None), "--coordinator_address and --process_id"),
        (("10.0.0.1", 2, 0), "should be HOST:PORT"),
        (("a:99999", 2, 0), "should be HOST:PORT"),
        (("a:1", 2, 2), "less than --num_processes=2"),
        (("a:1", 0, 0), "less than --num_processes=0"),
    ],
)
def test_flags_that_contradict_each_other(flags: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        cluster.find(*flags)


def test_the_command_line_says_so() -> None:
    recipe = f"--config={cli.EVERYTHING}"
    output = cli.run(recipe, "--workdir=/dev/null", "--proces_id=1", expect=2)
    assert 'did you mean "--process_id"?' in output
    output = cli.run(recipe, "--workdir=/dev/null", "--process_id=1", expect=2)
    assert "--coordinator_address and --num_processes is not given" in output


SLURM = {  # of `srun --ntasks=3` on two nodes, by Slurm's documentation of srun
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[07,12]",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_NTASKS": "3",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "1",
}
OPEN_MPI = {  # of `mpirun -n 2` of Open MPI 4
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}


@pytest.mark.parametrize(
    "env, host, count, number",
    [(SLURM, "node07", 3, 2), (OPEN_MPI, "10.96.0.1", 2, 1)],
)
def test_environments(
    env: dict[str, str],
    host: str,
    count: int,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    place = cluster.find(None, None, None)
    assert place is not None
    assert place.coordinator.split(":")[0] == host
    assert (place.num_processes, place.process_id) == (count, number)
    assert place.local_device_ids == (1,)
    flags = cluster.find("10.0.0.1:8476", 4, 3)  # flags win
    assert flags == cluster.Place("10.0.0.1:8476", 4, 3)


@pytest.mark.parametrize(
    "env",
    [
        {**SLURM, "SLURM_STEP_NUM_TASKS": "1"},
        {k: v for k, v in SLURM.items() if "STEP" not in k},  # the batch script
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},  # not a Job with an index
        {"JAX_PLATFORMS": "cpu", "TPU_WORKER_HOSTNAMES": "a,b"},
    ],
)
def test_environments_of_one_process(env: dict[str, str]) -> None:
    assert cluster.detection_method(env) is None


def test_pods_of_tpus(monkeypatch: pytest.MonkeyPatch) -> None:
    from jax._src import cloud_tpu_init

    monkeypatch.setattr(cloud_tpu_init, "running_in_cloud_tpu_vm", True)
    monkeypatch.setenv("TPU_LIBRARY_PATH", "libtpu.so")
    env = {"TPU_LIBRARY_PATH": "libtpu.so"}
    assert cluster.detection_method(env) == "gcetpu"
    assert cluster.detection_method(env | {"TPU_SKIP_MDS_QUERY": "1"}) is None
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "worker-0,worker-1")
    monkeypatch.setenv("TPU_WORKER_ID", "1")
    monkeypatch.setenv("JAX_PLATFORMS", "")
    # GKE says all in variables; only the look-up of the host name leaves the machine.
    monkeypatch.setattr("socket.gethostbyname", lambda host: "10.0.0.1")
    monkeypatch.setenv("MEGASCALE_COORDINATOR_ADDRESS", "worker-0")
    monkeypatch.setenv("MEGASCALE_NUM_SLICES", "2")
    monkeypatch.setenv("MEGASCALE_SLICE_ID", "1")
    place = cluster.find(None, None, None)
    assert place == cluster.Place("worker-0:8482", 4, 3)


def test_what_is_missing_is_said() -> None:
    with pytest.raises(UserError, match="pip install mpi4py"):
        cluster.detection_method({"OMPI_COMM_WORLD_SIZE": "2"})
    with pytest.raises(UserError, match="pip install kubernetes"):
        cluster.detection_method({"JOB_COMPLETION_INDEX": "1"})
