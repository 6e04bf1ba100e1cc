"""launch.local, with real processes: a fake main, and once the true one."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests import cli
from tests.launch import programs
from vit_jax.errors import UserError
from vit_jax.launch import local

# The command line, with another interpreter for the processes than for the launcher.
# Keys are not checked, which takes two seconds: test_job.py does.
LAUNCHER = """
import sys
sys.executable = sys.argv.pop(1)
from vit_jax.launch import job, local
job.configs.load = lambda recipe, overrides: None
sys.exit(job.run_main(local.main))
"""


def start(
    tmp_path: Path,
    *argv: str,
    launcher: str = LAUNCHER,
    given: Sequence[str] = (programs.RECIPE,),
) -> subprocess.Popen[str]:
    """Starts the launcher on the fake main."""
    python = programs.install(tmp_path / "bin", "python", "main")
    workdir = f"--workdir={tmp_path / 'work dir'}"
    return subprocess.Popen(
        [sys.executable, "-c", launcher, python, *given, workdir, *argv],
        cwd=cli.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(
    tmp_path: Path,
    *argv: str,
    expect: int = 0,
    launcher: str = LAUNCHER,
    given: Sequence[str] = (programs.RECIPE,),
) -> str:
    process = start(tmp_path, *argv, launcher=launcher, given=given)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == expect, output
    return output


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    return tmp_path / "work dir"


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 600  # of a busy machine
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.01)


def has_trained(workdir: Path, step: int) -> Callable[[], bool]:
    return (workdir / "checkpoints" / str(step)).exists


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_processes_train_together(tmp_path: Path, workdir: Path) -> None:
    output = run(
        tmp_path, "--processes=3", "--devices_per_process=2", "--config.seed=1"
    )
    assert programs.steps(workdir) == list(range(1, programs.STEPS + 1))
    for i in range(3):
        assert f"[{i}] process {i} is done\n" in output
    assert "launch: code 0 (done), after 0 restarts" in output
    (processes,) = programs.starts(workdir)
    addresses = set()
    for i, given in enumerate(processes):
        *arguments, address, number, process = given["argv"][1:]
        assert arguments == [
            *["-m", "vit_jax.main", programs.RECIPE, f"--workdir={workdir}"],
            "--config.seed=1",
        ]
        assert (number, process) == ("--num_processes=3", f"--process_id={i}")
        addresses.add(address)
        assert given["environment"]["XLA_FLAGS"].endswith("device_count=2")
        assert given["environment"]["JAX_PLATFORMS"] == "cpu"
    (key,) = {given["environment"]["VIT_JAX_RUN_KEY"] for given in processes}
    assert len(key) == 64 and key not in str([given["argv"] for given in processes])
    assert len(addresses) == 1
    assert addresses.pop().startswith("--coordinator_address=127.0.0.1:")


@pytest.mark.parametrize(
    ("process", "action", "expected"),
    [
        (0, "SIGKILL", "process 0: killed by SIGKILL"),
        (1, "SIGSTOP", "process 1: still there after 0.5 s, killed"),
        (2, "SIGTERM", "process 2: code 75 (stopped by a signal, and saved)"),
        (1, 1, "process 1: code 1 (a crash)"),
    ],
)
def test_a_lost_process_is_a_restart(
    process: int, action: str | int, expected: str, tmp_path: Path, workdir: Path
) -> None:
    programs.add_fault(workdir, process, 4, action)
    grace = "0.5" if action == "SIGSTOP" else "30"
    output = run(tmp_path, "--processes=3", f"--grace={grace}")
    assert expected in output
    saved = 4 if action == "SIGTERM" else 3
    assert f"launch: restart 1 from step {saved} in 1 s" in output
    assert "launch: code 0 (done), after 1 restarts" in output
    assert programs.steps(workdir) == list(range(1, programs.STEPS + 1))
    first, second = programs.starts(workdir)
    assert len(first) == len(second) == 3


def test_one_that_was_killed_is_not_waited_for(tmp_path: Path, workdir: Path) -> None:
    """The other cannot end by itself, as before the two have met; --grace is 60 s."""
    programs.add_fault(workdir, 0, 4, "SIGKILL")
    programs.add_fault(workdir, 1, 4, "SIGSTOP")
    launcher = LAUNCHER.replace("sys.exit", "local._AFTER_A_CRASH = 0.4\nsys.exit")
    began = time.monotonic()
    output = run(tmp_path, "--processes=2", launcher=launcher)
    assert time.monotonic() - began < 50
    assert "launch: process 0: killed by SIGKILL" in output
    assert "launch: process 1: still there after 0.4 s, killed" in output
    assert "launch: code 0 (done), after 1 restarts" in output


def test_a_run_goes_on_by_its_workdir(tmp_path: Path, workdir: Path) -> None:
    """Without --config, which its processes do not get either."""
    assert "this machine sees no" in run(tmp_path, "--processes=2", expect=2, given=())
    workdir.mkdir()
    (workdir / "config.json").write_text("{}")
    output = run(tmp_path, "--processes=2", "--config.seed=1", given=())
    assert "launch: code 0 (done)" in output
    (processes,) = programs.starts(workdir)
    for given in processes:
        arguments = ["-m", "vit_jax.main", f"--workdir={workdir}", "--config.seed=1"]
        assert given["argv"][1:5] == arguments


def test_what_would_only_repeat_itself_ends_the_run(
    tmp_path: Path, workdir: Path
) -> None:
    programs.add_fault(workdir, 0, 3, 70)
    output = run(tmp_path, "--processes=2", expect=70)
    assert "launch: code 70 (the loss is not finite), after 0 restarts" in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_goes_to_all(
    number: signal.Signals, tmp_path: Path, workdir: Path
) -> None:
    process = start(tmp_path, "--processes=2")
    wait_until(has_trained(workdir, 2))
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert "[0] saved at" in output and "[1] saved at" in output
    assert "restart 1" not in output


def test_nothing_is_left_when_the_launcher_is_killed(
    tmp_path: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_STEP_SECONDS", "100")  # they would go on
    process = start(tmp_path, "--processes=2")
    wait_until(lambda: len(list(workdir.glob("starts/*/*.-1"))) == 2)
    ((first, second),) = programs.starts(workdir)
    pids = [first["pid"], second["pid"]]
    assert all(is_alive(pid) for pid in pids)
    process.kill()
    process.communicate(timeout=60)
    wait_until(lambda: not any(is_alive(pid) for pid in pids))


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/shm and /proc")
def test_a_process_that_is_killed_leaves_no_shared_memory() -> None:
    """Nor what its children hold: Python's resource tracker removes it, if it lives."""
    program = """
import multiprocessing.shared_memory, os, subprocess, sys
memory = multiprocessing.shared_memory.SharedMemory(create=True, size=1000)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
print(memory.name, child.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    launcher = """
import os, sys, time
from vit_jax.launch import local
process = local.Process(0, [sys.executable, "-c", sys.argv[1]], {})
said = b""
while not said.endswith(b"\\n"):
    said += os.read(process.fileno(), 1000)
print(said.decode())
while process.poll() is None:
    time.sleep(0.01)
process.close()
sys.exit(process.poll())
"""
    # In a process of its own: this one has JAX, which warns of a fork.
    ended = subprocess.run(
        [sys.executable, "-c", launcher, program],
        env=os.environ | {"PYTHONPATH": str(cli.ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert ended.returncode == 137
    name, child = ended.stdout.split()
    wait_until(lambda: not Path("/dev/shm", name).exists() and not is_alive(int(child)))


def test_dry_run_prints_the_commands(tmp_path: Path, workdir: Path) -> None:
    output = run(tmp_path, "--processes=2", "--config.seed=3", "--dry_run")
    lines = [shlex.split(line) for line in output.splitlines()]
    assert [line[-1] for line in lines] == ["--process_id=0", "--process_id=1"]
    assert all(f"--workdir={workdir}" in line for line in lines)
    assert not workdir.exists()


@pytest.mark.slow
def test_the_true_main_goes_on_after_it_was_killed(tmp_path: Path) -> None:
    """With one device, though XLA_FLAGS of the tests asks for 8: the last one wins."""
    args = [f"--config={cli.EVERYTHING}", f"--workdir={tmp_path}/run"]
    args += ["--devices_per_process=1", "--config.mesh.data=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "vit_jax.launch.local", *args],
        cwd=cli.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_until((tmp_path / "run" / "checkpoints" / "7").exists)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    os.kill(int(children), signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "launch: process 0: killed by SIGKILL" in output
    assert "after 1 restarts" in output
    logged = [line["step"] for line in cli.metric_lines(tmp_path / "run")]
    assert logged == list(range(1, 31))


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before they meet", "while they train"])
def test_of_two_true_processes_one_is_killed(when: str, tmp_path: Path) -> None:
    """The launcher names the death at once, and the other has ended 15 s later."""
    args = [f"--config={cli.EVERYTHING}", f"--workdir={tmp_path}/run", "--processes=2"]
    args += ["--config.total_steps=12", "--config.evals.test.split=test[:64]"]
    killed, ended, lines = 0.0, 0.0, []
    with subprocess.Popen(
        [sys.executable, "-m", "vit_jax.launch.local", *args],
        cwd=cli.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        wait_until(lambda: len(mains(process)) == 2)
        if when == "while they train":
            wait_until((tmp_path / "run" / "checkpoints" / "7").exists)
        os.kill(mains(process)[1], signal.SIGKILL)
        killed = time.monotonic()
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if line.startswith("launch: restart 1"):
                ended = time.monotonic()
    output = "".join(lines)
    assert process.returncode == 0, output
    assert "launch: process 1: killed by SIGKILL" in output
    assert 0 < ended - killed < 30  # of a machine that is busy besides
    logged = [line["step"] for line in cli.metric_lines(tmp_path / "run")]
    assert logged == list(range(1, 13))


def mains(launcher: subprocess.Popen[str]) -> list[int]:
    """The processes of vit_jax.main that a launcher has started."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text()
    return [
        int(pid)
        for pid in children.split()
        if b"vit_jax.main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with four GPUs and JAX's plugin for them."""
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        '#!/bin/sh\n[ "$*" = "--query-gpu=index --format=csv,noheader" ] || exit 1\n'
        "printf '0\\n1\\n2\\n3\\n'\n"
    )
    smi.chmod(0o755)
    (tmp_path / "jax_cuda12_plugin.py").touch()
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("gpus")
def test_gpus_are_shared_out() -> None:
    assert local.device_variables(2, None, {}) == [
        {"CUDA_VISIBLE_DEVICES": "0,1"},
        {"CUDA_VISIBLE_DEVICES": "2,3"},
    ]
    assert local.device_variables(2, 1, {"CUDA_VISIBLE_DEVICES": "3,1"}) == [
        {"CUDA_VISIBLE_DEVICES": "3"},
        {"CUDA_VISIBLE_DEVICES": "1"},
    ]
    assert local.device_variables(1, None, {}) == [{}]
    for processes, each in ((5, None), (2, 3)):
        with pytest.raises(UserError, match="4 can be seen here; JAX_PLATFORMS=cpu"):
            local.device_variables(processes, each, {})


@pytest.mark.usefixtures("gpus")
def test_the_cpu_can_be_asked_for() -> None:
    given = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_a=1"}
    wanted = "--xla_a=1 --xla_force_host_platform_device_count=1"
    assert (
        local.device_variables(2, None, given)
        == [{"XLA_FLAGS": wanted, "JAX_PLATFORMS": "cpu"}] * 2
    )


def test_devices_that_cannot_be_shared_are_refused() -> None:
    with pytest.raises(UserError, match="JAX_PLATFORMS=tpu"):
        local.device_variables(2, None, {"JAX_PLATFORMS": "tpu"})
    for processes, each in ((0, None), (100_000, None), (2, 0), (2, 100_000)):
        with pytest.raises(UserError, match=r"at least 1, and at most 1,024"):
            local.device_variables(processes, each, {})
