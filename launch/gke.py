"""python -m vit_jax.launch.gke --config=... --workdir=gs://... --image=... [flags]

Runs vit_jax.main on Kubernetes: as a JobSet on TPU node pools of GKE (--topology,
--slices), or as an indexed Job on nodes with GPUs (--gpus, --nodes). The cluster
restarts the run; the same command continues one that has ended.
"""

import argparse
import hashlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from vit_jax import recipes
from vit_jax.errors import UserError
from vit_jax.launch import accelerators, command, job, manifests
from vit_jax.launch.kubernetes import Workload

# Numbers of Kubernetes' objects have 32 bits.
_LEAST = {
    "slices": 1,
    "nodes": 1,
    "gpus": 1,
    "chips_per_host": 1,
    "grace": 1,
    "max_restarts": 0,
    "poll": 0.1,
}
_MOST = 2**31 - 1
# A JobSet's pods are called NAME-slice-SLICE-HOST-xxxxx, in at most 63 letters.
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")


def flags_parser() -> job.Parser:
    """The flags that this launcher adds to those of vit_jax.main."""
    parser = job.Parser("gke", __doc__)
    add = parser.add_argument
    add("--image", help="container image, such as REGION-docker.pkg.dev/P/R/vit_jax:1")
    add("--build", action="store_true", help="build and push --image from here first")
    add("--topology", help="TPU slice, such as v5e:4x4 or v5p:4x4x4")
    add("--slices", type=int, default=1, help="number of TPU slices")
    add("--chips_per_host", type=int, help="4 if 2x4 is two hosts of four")
    add("--gpus", type=int, help="GPUs a node")
    add("--nodes", type=int, default=1, help="nodes with GPUs")
    add("--gpu_type", help="node label cloud.google.com/gke-accelerator")
    add("--name", help="of the JobSet or Job; default: from the recipe and the workdir")
    add("--namespace", default="default", help="Kubernetes namespace")
    add("--service_account", help="Kubernetes service account with access to --workdir")
    add(
        "--volume", action="append", default=[], help="CLAIM:/path to mount; repeatable"
    )
    add("--spot", action="store_true", help="spot capacity")
    add("--max_restarts", type=int, default=10, help="restarts after crashes")
    add("--grace", type=int, default=300, help="seconds to save in when evicted")
    add("--follow", action="store_true", help="show the logs until it has ended")
    add("--poll", type=float, default=10, help="seconds between looks at the state")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns its exit code.

    Raises:
      UserError: for bad flags, or when kubectl or docker refuses.
    """
    run, flags = job.parse(flags_parser(), argv)
    workload = Workload(objects(run, flags), flags.namespace)
    builds = build_commands(flags) if flags.build else []
    if flags.dry_run:
        steps = [job.shell(step) for step in [*builds, workload.apply_command()]]
        if create := workload.secret_command():
            steps.insert(len(builds), f"openssl rand -hex 32 | {job.shell(create)}")
        print("\n".join(steps), file=sys.stderr)
        print(workload.manifest())  # alone, so that it can be piped into kubectl
        return 0
    for step in builds:
        if command.start(step).wait():
            raise UserError(f"this command failed: {job.shell(step)}")
    if not (workload.is_running() and flags.follow):
        workload.apply()
    return workload.follow(flags.poll) if flags.follow else 0


def objects(run: job.Job, flags: argparse.Namespace) -> list[manifests.Object]:
    """The Kubernetes objects that the flags ask for, the workload itself last."""
    if not flags.image:
        raise UserError("--image is needed; with --build it is built from here")
    for name, least in _LEAST.items():
        value = getattr(flags, name)
        if value is not None and not least <= value <= _MOST:
            raise UserError(f"--{name}={value}: at least {least}, at most {_MOST:,}")
    if bool(flags.topology) == bool(flags.gpus):
        raise UserError(
            "give either --topology=v5e:4x4 (TPUs) or --gpus=8 (GPUs of a node)"
        )
    settings = manifests.Settings(
        name=checked_name(flags.name) if flags.name else default_name(run),
        image=flags.image,
        namespace=flags.namespace,
        service_account=flags.service_account,
        volumes=volumes(flags.volume, run.workdir),
        spot=flags.spot,
        grace=flags.grace,
        max_restarts=flags.max_restarts,
    )
    if flags.gpus:
        return manifests.gpu_job(
            run,
            nodes=flags.nodes,
            gpus=flags.gpus,
            gpu_type=flags.gpu_type,
            settings=settings,
        )
    tpu = accelerators.slice_of(flags.topology, chips_per_host=flags.chips_per_host)
    if flags.slices > 1 and tpu.hosts == 1:
        raise UserError(
            f"--slices={flags.slices}: GKE joins only slices of several hosts, and "
            f"{flags.topology} is one host; take a larger topology"
        )
    return [manifests.jobset(run, tpu, flags.slices, settings)]


def checked_name(name: str) -> str:
    """A name that Kubernetes takes, with room for what JobSet appends.

    Raises:
      UserError: for any other.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f'--name="{name}": small letters, digits and "-", beginning with a letter, '
            "at most 40"
        )
    return name


def default_name(run: job.Job) -> str:
    """A name that the same recipe and workdir have again.

    >>> default_name(job.Job("configs/imagenet1k.py:B/16", "gs://bucket/b16"))
    'imagenet1k-3f239632'
    """
    if not run.config:
        raise UserError(
            f"--name is needed: the records of {run.workdir} do not say from which "
            "recipe its run has its name"
        )
    stem = Path(recipes.split(run.config)[0]).stem.lower()
    letters = re.sub(r"[^a-z0-9]+", "-", stem).strip("-")[:30].rstrip("-")
    known = letters if letters[:1].isalpha() else f"run-{letters}".rstrip("-")
    digest = hashlib.sha256(f"{run.config} {run.workdir}".encode()).hexdigest()[:8]
    return f"{known}-{digest}"


def volumes(given: Sequence[str], workdir: str) -> list[tuple[str, str]]:
    """The claims and paths that `--volume=CLAIM:/path` name.

    Raises:
      UserError: for another form, or if the workdir would be lost with its pod.
    """
    pairs = []
    for text in given:
        claim, _, path = text.partition(":")
        if not claim or not path.startswith("/"):
            raise UserError(f"--volume={text}: it should be CLAIM:/path")
        pairs.append((claim, path.rstrip("/")))
    if "://" not in workdir and not any(
        Path(workdir).is_relative_to(path) for _, path in pairs
    ):
        raise UserError(
            f"--workdir={workdir} would be lost with its pod: give a bucket, such as "
            "gs://BUCKET/run, or mount a claim there with --volume=CLAIM:/path"
        )
    return pairs


def build_commands(flags: argparse.Namespace) -> list[list[str]]:
    """Builds the image from this checkout's Dockerfile, and pushes it.

    Raises:
      UserError: if this is no checkout.
    """
    if not Path("Dockerfile").is_file():
        raise UserError(
            "--build builds the image from the Dockerfile of a clone of vit_jax, and "
            "there is none here: run this there, or give an --image that is built"
        )
    extras = "[tpu]" if flags.topology else "[cuda]"
    build = ["docker", "build", f"--tag={flags.image}", f"--build-arg=EXTRAS={extras}"]
    return [[*build, "."], ["docker", "push", flags.image]]


if __name__ == "__main__":
    sys.exit(job.run_main(main))
