"""launch.gke: manifests against the published schemas, runs in a fake cluster."""

import base64
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from tests import cli
from tests.launch.cloud import Cloud
from vit_jax import config
from vit_jax.errors import UserError
from vit_jax.launch import accelerators, gke

# As old as a cluster may be in which podFailurePolicy is stable, and the newest known.
KUBERNETES = ["1.31", "1.34"]

# The fields of jobset.x-k8s.io/v1alpha2, JobSetSpec and what it holds, from
# https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2/ (types in the repository
# kubernetes-sigs/jobset, api/jobset/v1alpha2/jobset_types.go). None: not checked here.
JOBSET: dict[str, Any] = {
    "replicatedJobs": [
        {"name": str, "groupName": str, "template": None, "replicas": int}
    ],
    "network": {
        "enableDNSHostnames": bool,
        "subdomain": str,
        "publishNotReadyAddresses": bool,
    },
    "successPolicy": {"operator": str, "targetReplicatedJobs": [str]},
    "failurePolicy": {
        "maxRestarts": int,
        "restartStrategy": ("Recreate", "BlockingRecreate", "InPlaceRestart"),
        "rules": [
            {
                "name": re.compile("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?"),
                "action": (
                    "FailJobSet",
                    "RestartJobSet",
                    "RestartJobSetAndIgnoreMaxRestarts",
                    "RestartJob",
                    "RestartJobAndIgnoreMaxRestarts",
                ),
                "onJobFailureReasons": [
                    (
                        "BackoffLimitExceeded",
                        "DeadlineExceeded",
                        "FailedIndexes",
                        "MaxFailedIndexesExceeded",
                        "PodFailurePolicy",
                    )
                ],
                "onJobFailureMessagePatterns": [str],
                "targetReplicatedJobs": [str],
            }
        ],
    },
    "startupPolicy": {"startupPolicyOrder": ("AnyOrder", "InOrder")},
    "suspend": bool,
    "coordinator": {"replicatedJob": str, "jobIndex": int, "podIndex": int},
    "managedBy": str,
    "ttlSecondsAfterFinished": int,
}


def problems(value: Any, expected: Any, path: str = "spec") -> list[str]:
    """Where a value differs from a field list like JOBSET."""
    if expected is None:
        return []
    if isinstance(expected, dict):
        if not isinstance(value, dict):
            return [f"{path} is no object"]
        return [
            problem
            for key, item in value.items()
            for problem in (
                problems(item, expected[key], f"{path}.{key}")
                if key in expected
                else [f"{path}.{key} is no field"]
            )
        ]
    if isinstance(expected, list):
        if not isinstance(value, list):
            return [f"{path} is no list"]
        return [
            problem
            for i, item in enumerate(value)
            for problem in problems(item, expected[0], f"{path}[{i}]")
        ]
    if isinstance(expected, tuple):
        return [] if value in expected else [f"{path} is {value}"]
    if isinstance(expected, re.Pattern):
        return [] if expected.fullmatch(value) else [f"{path} is {value}"]
    return [] if type(value) is expected else [f"{path} is no {expected.__name__}"]


BASE = [f"--config={cli.EVERYTHING}", "--workdir=gs://bucket/run", "--image=r/vit:1"]
BASE += ["--poll=0.1"]
TPU = [*BASE, "--topology=v5e:4x4"]
GPU = [*BASE, "--gpus=8", "--nodes=2"]
EVERY_FLAG = ["--spot", "--service_account=trainer", "--volume=data:/data"]


def dry_run(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    """The manifest that is printed."""
    assert gke.main([*argv, "--dry_run"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cli.ROOT)


@pytest.mark.parametrize("version", KUBERNETES)
def test_gpu_objects_are_valid(capsys, version: str):
    for flags in ([], [*EVERY_FLAG, "--gpu_type=nvidia-h100-80gb"]):
        for item in dry_run(capsys, *GPU, *flags)["items"]:
            kubernetes_validate.validate(item, version, strict=True)


@pytest.mark.parametrize("version", KUBERNETES)
def test_the_jobs_of_a_jobset_are_valid(capsys, version: str):
    for flags in ([], [*EVERY_FLAG, "--slices=3"]):
        for replicated in dry_run(capsys, *TPU, *flags)["spec"]["replicatedJobs"]:
            job = {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "metadata": {"name": "n"},
            }
            job |= replicated["template"]
            kubernetes_validate.validate(job, version, strict=True)


def test_a_jobset_has_the_fields_of_its_api(capsys):
    for flags in ([], [*EVERY_FLAG, "--slices=3"]):
        jobset = dry_run(capsys, *TPU, *flags)
        assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
        assert set(jobset) == {"apiVersion", "kind", "metadata", "spec"}
        assert problems(jobset["spec"], JOBSET) == []


def test_the_field_list_finds_faults():
    assert problems({"failurePolicy": {"maxRestart": 1}}, JOBSET)
    assert problems({"failurePolicy": {"rules": [{"action": "Fail"}]}}, JOBSET)
    assert problems({"suspend": "no"}, JOBSET)


def test_slices(capsys):
    jobset = dry_run(capsys, *BASE, "--topology=v6e:8x8", "--slices=2", "--name=big")
    (replicated,) = jobset["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    pod = spec["template"]["spec"]
    assert replicated["replicas"] == 2
    assert spec["completions"] == spec["parallelism"] == 16
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "8x8",
    }
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    values = {e["name"]: e.get("value") for e in container["env"]}
    assert values["MEGASCALE_NUM_SLICES"] == "2"
    assert values["MEGASCALE_COORDINATOR_ADDRESS"] == "big-slice-0-0.big"


def test_pods_get_time_to_save(capsys):
    jobset = dry_run(capsys, *TPU, "--grace=120")
    (replicated,) = jobset["spec"]["replicatedJobs"]
    pod = replicated["template"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 120


@pytest.mark.parametrize(
    "argv, expected",
    [
        ([*BASE], "--topology=v5e:4x4"),
        ([*TPU, "--gpus=8"], "either"),
        ([*TPU, "--topolgy=v5e:4x4"], 'did you mean "--topology"'),
        ([*TPU, "--config.sed=1"], 'did you mean "seed"'),
        ([*BASE, "--topology=v5:4x4"], "v5e"),
        ([*BASE, "--topology=v5e:4x5"], "4x4, 4x8"),
        ([*BASE, "--topology=v4:4x8x4"], "4x4x8"),
        ([*TPU, "--chips_per_host=8"], "4 chips a host"),
        ([*BASE, "--topology=v6e:2x4", "--slices=2"], "several hosts"),
        ([*TPU, "--name=Big_run"], "small letters"),
        ([*TPU, "--slices=0"], "at least 1"),
        ([*BASE, "--gpus=-1"], "--gpus=-1: at least 1"),
        ([*BASE, "--gpus=0"], "--gpus=0: at least 1"),
        ([*BASE, "--gpus=8", "--nodes=3000000000"], "at most 2,147,483,647"),
        ([*TPU, "--max_restarts=-1"], "--max_restarts=-1: at least 0"),
        ([*TPU, "--poll=-1"], "--poll=-1.0: at least 0.1"),
        ([*TPU, "--poll=nan"], "--poll=nan: at least 0.1"),
        ([*TPU, "--workdir=/tmp/run"], "lost with its pod"),
        ([*TPU, "--volume=claim"], "CLAIM:/path"),
    ],
)
def test_what_is_wrong_is_said(argv: list[str], expected: str):
    with pytest.raises(UserError, match=re.escape(expected)):
        gke.main([*argv, "--dry_run"])


@pytest.mark.parametrize(
    "topology, accelerator, chips_per_host, hosts",
    [  # https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
        ("v4:2x2x1", "tpu-v4-podslice", 4, 1),
        ("v4:2x2x4", "tpu-v4-podslice", 4, 4),
        ("v4:8x8x12", "tpu-v4-podslice", 4, 192),
        ("v5e:1x1", "tpu-v5-lite-podslice", 1, 1),
        ("v5e:2x2", "tpu-v5-lite-podslice", 4, 1),
        ("v5e:2x4", "tpu-v5-lite-podslice", 8, 1),
        ("v5e:4x4", "tpu-v5-lite-podslice", 4, 4),
        ("v5e:16x16", "tpu-v5-lite-podslice", 4, 64),
        ("v5p:4x4x4", "tpu-v5p-slice", 4, 16),
        ("v6e:2x4", "tpu-v6e-slice", 8, 1),
        ("v6e:8x16", "tpu-v6e-slice", 4, 32),
    ],
)
def test_topologies(topology: str, accelerator: str, chips_per_host: int, hosts: int):
    found = accelerators.slice_of(topology)
    assert found.tpu.gke == accelerator
    assert (found.chips_per_host, found.hosts) == (chips_per_host, hosts)


def assert_done(cloud: Cloud) -> None:
    """Ten steps, and the command line that the recipe and flags ask for."""
    checkpoints = (cloud.root / "run" / "checkpoints").iterdir()
    assert sorted(int(p.name) for p in checkpoints) == list(range(1, 11))
    command = json.loads((cloud.root / "run" / "finished").read_text())
    assert command[:2] == [f"--config={cli.EVERYTHING}", "--workdir=gs://bucket/run"]


@pytest.fixture
def cluster(cloud: Cloud) -> Cloud:
    cloud.will(workdir=str(cloud.root / "run"))
    return cloud


def test_a_jobset_is_restarted_until_it_is_done(cluster: Cloud, capfd):
    """One crash, which counts, and two evictions, which do not."""
    cluster.will(codes=[1], evict_at=[5, 8])
    assert gke.main([*TPU, "--follow", "--max_restarts=1"]) == 0
    assert_done(cluster)
    assert cluster["attempts"] == 4
    output = capfd.readouterr().out
    assert "step 10\n" in output
    assert re.search("jobset everything-[0-9a-f]+ completed", output)


@pytest.mark.parametrize("code", [2, 70])
def test_a_jobset_that_would_fail_again_is_not_restarted(cluster: Cloud, code, capfd):
    cluster.will(codes=[code])
    assert gke.main([*TPU, "--follow"]) == 1
    assert cluster["attempts"] == 1
    assert f"failed with exit code {code}" in capfd.readouterr().out


def test_a_jobset_that_crashes_for_ever_is_given_up(cluster: Cloud):
    cluster.will(codes=[1] * 9, code_after=0)
    assert gke.main([*TPU, "--follow", "--max_restarts=2"]) == 1
    assert cluster["attempts"] == 3


def test_a_job_on_gpus(cluster: Cloud, capfd):
    """Pods that crash or are evicted are replaced; the run finds its coordinator."""
    cluster.will(codes=[1], evict_at=[5])
    variable = "$(JOB_COMPLETION_INDEX)"
    literal = f"--config.data.data_dir=gs://b/{variable}/$HOME $$ $${variable}$$$x 'x'"
    assert gke.main([*GPU, "--follow", "--name=two", literal]) == 0
    assert_done(cluster)
    assert json.loads((cluster.root / "run" / "finished").read_text())[2:] == [
        literal,
        "--coordinator_address=two-0.two:8476",
        "--num_processes=2",
        "--process_id=0",
    ]
    assert "step 10\n" in capfd.readouterr().out


def assert_one_secret_key(cloud: Cloud, output: str) -> str:
    """All processes of all starts had the key of the run's Secret, told to nobody."""
    (secret,) = (k for k in cloud["objects"] if k.startswith("secret/"))
    (field,) = cloud["objects"][secret]["data"].values()
    key = base64.b64decode(field).decode()
    assert len(key) >= 32 and {given for _, given in cloud["keys"]} == {key}
    others = {k: v for k, v in cloud["objects"].items() if k != secret}
    for text in (key, field):
        assert text not in json.dumps(cloud["commands"]) + json.dumps(others) + output
    return key


@pytest.mark.parametrize("argv", [TPU, GPU, [*TPU, "--slices=2"]])
def test_the_processes_of_a_run_share_a_secret_key(cluster: Cloud, argv, capfd):
    """The same in all starts by the cluster; another when it is launched again."""
    cluster.will(codes=[1])
    assert gke.main([*argv, "--follow"]) == 0
    assert len(cluster["keys"]) > 2
    first = assert_one_secret_key(cluster, str(capfd.readouterr()))
    (cluster.root / "state.json").write_text(
        json.dumps(json.loads((cluster.root / "state.json").read_text()) | {"keys": []})
    )
    assert gke.main([*argv, "--follow"]) == 0
    assert assert_one_secret_key(cluster, str(capfd.readouterr())) != first
    (workload,) = (k for k in cluster["objects"] if k.startswith("job"))
    kubectl = ["kubectl", "--namespace=default", "delete"]
    subprocess.run([*kubectl, workload], check=True)
    assert not [k for k in cluster["objects"] if k.startswith("secret/")]


def test_a_secret_that_is_left_over_is_no_harm(cluster: Cloud, capfd):
    """As after a launcher that was killed, or one that may not say who owns it."""
    cluster.will(forbidden=["patch"])
    assert gke.main([*GPU, "--name=two", "--follow"]) == 0
    said = capfd.readouterr().out
    assert "secret/two-run-key has no owner, delete it with the run" in said
    assert "delete job/two service/two secret/two-run-key" in said
    kubectl = ["kubectl", "--namespace=default", "delete"]
    subprocess.run([*kubectl, "job/two", "service/two"], check=True)
    assert set(cluster["objects"]) == {"secret/two-run-key"}
    assert gke.main([*GPU, "--name=two", "--follow"]) == 0
    cluster.will(forbidden=["apply"])
    with pytest.raises(UserError, match="cannot apply resource"):
        gke.main([*GPU, "--name=two"])
    assert cluster["objects"] == {}


def test_a_dry_run_says_how_to_make_the_secret(capsys):
    """It draws none; one process needs none."""
    assert gke.main([*GPU, "--name=two", "--dry_run"]) == 0
    printed = capsys.readouterr()
    create = "openssl rand -hex 32 | kubectl --namespace=default create secret generic "
    assert f"{create}two-run-key --from-file=key=/dev/stdin\n" in printed.err
    (container,) = json.loads(printed.out)["items"][-1]["spec"]["template"]["spec"][
        "containers"
    ]
    (given,) = (e for e in container["env"] if e["name"] == "VIT_JAX_RUN_KEY")
    reference = {"name": "two-run-key", "key": "key"}
    assert given["valueFrom"] == {"secretKeyRef": reference}
    for alone in ([*BASE, "--gpus=8"], [*BASE, "--topology=v5e:2x4"]):
        assert gke.main([*alone, "--dry_run"]) == 0
        assert "secret" not in str(capsys.readouterr()).lower()


def test_a_job_that_would_fail_again_is_not_restarted(cluster: Cloud):
    cluster.will(codes=[2])
    assert gke.main([*GPU, "--follow"]) == 1
    assert cluster["starts"] == 1


def test_the_same_command_again(cluster: Cloud):
    """It follows what is running, and continues what has ended; never two at once."""
    cluster.will(step_seconds=0.15)
    assert gke.main(TPU) == 0
    with pytest.raises(UserError, match=r"is running.*\n.*kubectl.* delete jobset"):
        gke.main(TPU)
    assert gke.main([*TPU, "--follow"]) == 0
    assert cluster["attempts"] == 1
    assert gke.main([*TPU, "--follow"]) == 0
    assert cluster["attempts"] == 2
    assert_done(cluster)


def test_the_image_is_built_before(cluster: Cloud):
    assert gke.main([*GPU, "--build"]) == 0
    tag = "--tag=r/vit:1"
    build = ["docker", "build", tag, "--build-arg=EXTRAS=[cuda]", "."]
    assert cluster["commands"][:2] == [build, ["docker", "push", "r/vit:1"]]
    dockerfile = (cli.ROOT / "Dockerfile").read_text()
    assert "ARG EXTRAS=\n" in dockerfile and 'install --no-cache-dir ".${EXTRAS}"' in (
        dockerfile
    )


def test_an_image_is_built_in_a_clone_alone(
    cluster: Cloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    argv = ["--config=quickstart.py" if "--config=" in a else a for a in GPU]
    with pytest.raises(UserError, match=r"--build builds the image from .* a clone"):
        gke.main([*argv, "--build"])
    assert cluster["commands"] == []


def test_a_tool_that_is_missing_is_named(cluster: Cloud, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "kubectl" not in os.listdir(tmp_path)
    with pytest.raises(UserError, match=r'no program "kubectl".*https://kubernetes.io'):
        gke.main(TPU)


def test_a_run_that_has_begun_has_the_same_name(tmp_path: Path, capsys) -> None:
    """By the recipe in its records, though --config is not given again."""
    given = [f"--volume=claim:{tmp_path}", f"--workdir={tmp_path}", *GPU[2:]]
    first = dry_run(capsys, f"--config={cli.EVERYTHING}", *given)["items"][-1]
    stored = config.load(cli.EVERYTHING).to_dict()
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match="--name is needed: the records of"):
        gke.main([*given, "--dry_run"])
    (tmp_path / "runs.jsonl").write_text(json.dumps({"recipe": cli.EVERYTHING}) + "\n")
    again = dry_run(capsys, *given)["items"][-1]
    assert again["metadata"]["name"] == first["metadata"]["name"]
    text = json.dumps(again)
    assert f"--workdir={tmp_path}" in text and "--config=" not in text
