"""A real Slurm of one node in a temporary directory, without systemd or cgroups.

Its programs are Debian's packages slurm-wlm and munge; it has to be started by root.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")

# `cred_expire` is also how long a requeued job waits before it starts (5 is the least,
# 120 the default). `config_overrides`: the node has the CPUs that are written here.
_CONFIG = """\
ClusterName=test
SlurmctldHost={host}({address})
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=5
SchedulerParameters=sched_min_interval=0,sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr={address} CPUs=4 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """What keeps a cluster from being started here, None if nothing does."""
    if os.geteuid() != 0:
        return "only root can start the daemons of Slurm"
    for program in PROGRAMS:
        if shutil.which(program) is None:
            return f"{program} is not found: apt-get install slurm-wlm munge"
    return None


@contextlib.contextmanager
def cluster() -> Iterator[Path]:
    """Starts it and points Slurm's commands to it; its folder, with the logs.

    Not a folder of pytest: the path of a socket may have 107 characters.
    """
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as d:
        folder = Path(d)
        folder.chmod(0o755)  # munged wants its socket reached by all
        configure(folder)
        daemons: list[subprocess.Popen[bytes]] = []
        before = os.environ.get("SLURM_CONF")
        os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
        try:
            daemons.append(start_munge(folder))
            for name in ("slurmctld", "slurmd"):
                with (folder / f"{name}.out").open("wb") as output:
                    daemons.append(
                        subprocess.Popen([name, "-D"], stdout=output, stderr=output)
                    )
            wait_until_idle(folder)
            yield folder
            slurm("scancel", "--user=root")
            wait_until_idle(folder)
        finally:
            for daemon in reversed(daemons):
                daemon.terminate()
                daemon.wait(timeout=60)
            if before is None:
                del os.environ["SLURM_CONF"]
            else:
                os.environ["SLURM_CONF"] = before


def configure(folder: Path) -> None:
    """Writes slurm.conf and munge's key."""
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o400)
    key.write_bytes(os.urandom(1024))
    config = _CONFIG.format(
        folder=folder,
        host=socket.gethostname().partition(".")[0],
        address=own_address(),
        ports=free_ports(2),
    )
    (folder / "slurm.conf").write_text(config)


def start_munge(folder: Path) -> subprocess.Popen[bytes]:
    files = {
        "--socket": "munge.socket",
        "--key-file": "munge.key",
        "--pid-file": "munge.pid",
        "--seed-file": "munge.seed",
        "--log-file": "munge.log",
    }
    flags = [f"{flag}={folder / name}" for flag, name in files.items()]
    # --force: the directory above, /tmp, may be written by all.
    with (folder / "munge.out").open("wb") as output:
        return subprocess.Popen(
            ["munged", "--foreground", "--force", *flags], stdout=output, stderr=output
        )


def own_address() -> str:
    """An address of this machine that is not loopback: slurmd registers with it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.connect(("192.0.2.1", 9))  # sends nothing: asks for the way out
        return s.getsockname()[0]


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("", 0))
        return [s.getsockname()[1] for s in sockets]


def wait_until_idle(folder: Path) -> None:
    end = time.monotonic() + 60
    while slurm("sinfo", "--noheader", "--format=%T", check=False) != "idle":
        if time.monotonic() > end:
            logs = [p.read_text() for p in sorted(folder.glob("slurm*.[lo]*"))]
            raise AssertionError("Slurm does not become idle:\n" + "\n".join(logs))
        time.sleep(0.2)


def slurm(*command: str, check: bool = True) -> str:
    """Runs one of Slurm's commands; returns what it prints."""
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0 or not check, run.stderr
    return run.stdout.strip()


def field(job: str, name: str) -> str:
    """A field of `scontrol show job`, such as JobState."""
    text = slurm("scontrol", "show", "job", job, "--oneliner")
    (value,) = (w.partition("=")[2] for w in text.split() if w.startswith(f"{name}="))
    return value


def wait_for(job: str, *states: str, seconds: float = 180) -> str:
    """Waits until a job is in one of these states; returns it."""
    end = time.monotonic() + seconds
    while (state := field(job, "JobState")) not in states:
        if time.monotonic() > end:
            shown = slurm("scontrol", "show", "job", job)
            raise AssertionError(f"the job is {state}, not {states}:\n{shown}")
        time.sleep(0.2)
    return state
