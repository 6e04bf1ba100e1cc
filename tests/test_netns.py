"""Two hosts that share no loopback: network namespaces joined by a cable of their own.

The cable is a veth pair; all traffic stays on it. Needs root and iproute2.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import cli
from tests.test_hosts import ARGS, STEPS, TIMEOUT, assert_same_curves, layout

pytestmark = [
    pytest.mark.campaign,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("ip") is None,
        reason="needs root and iproute2, to make network namespaces",
    ),
]

HOSTS = {f"vitjax{i}-{os.getpid()}": f"10.213.7.{i + 1}" for i in range(2)}
FIRST, SECOND = HOSTS


def sh(command: str) -> None:
    subprocess.run(command, shell=True, check=True)


def cable(state: str) -> None:
    """Plugs in ("up") or cuts ("down") the first host's end."""
    sh(f"ip -n {FIRST} link set veth0 {state}")


@pytest.fixture(scope="module")
def hosts() -> Iterator[None]:
    """The namespaces; each knows the other's name, and its own as its address."""
    try:
        for name in HOSTS:
            folder = Path("/etc/netns") / name
            folder.mkdir(parents=True)
            lines = [f"{address} {host}\n" for host, address in HOSTS.items()]
            (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))
            sh(f"ip netns add {name}")
        sh(f"ip -n {FIRST} link add veth0 type veth peer name veth0 netns {SECOND}")
        for name, address in HOSTS.items():
            sh(f"ip -n {name} addr add {address}/30 dev veth0")
            sh(f"ip -n {name} link set lo up && ip -n {name} link set veth0 up")
        yield
    finally:
        for name in HOSTS:
            subprocess.run(["ip", "netns", "del", name], check=False)
            shutil.rmtree(f"/etc/netns/{name}", ignore_errors=True)


def start(workdir: Path) -> list[subprocess.Popen[str]]:
    command = [
        sys.executable,
        "-m",
        "vit_jax.main",
        *ARGS,
        *layout((2, 2, 1)),
        f"--workdir={workdir}",
        f"--coordinator_address={FIRST}:8476",
        "--num_processes=2",
        "--process_id",  # the number follows
    ]
    env = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": str(cli.ROOT),
    }
    inside = 'hostname "$0"; exec "$@"'
    unshared = ["unshare", "-u", "sh", "-c", inside]
    return [
        subprocess.Popen(
            ["ip", "netns", "exec", name, *unshared, name, *command, str(i)],
            cwd=cli.ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i, name in enumerate(HOSTS)
    ]


@pytest.mark.usefixtures("hosts")
def test_a_cut_link_is_found_and_the_run_goes_on(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    codes, outputs = cli.ends(start(whole))
    assert codes == [0, 0], outputs

    processes = start(cut)
    path = cut / "metrics.jsonl"
    while not (path.exists() and len(path.read_text().splitlines()) >= 8):
        assert all(p.poll() is None for p in processes), cli.ends(processes)
        time.sleep(0.002)
    cable("down")
    began = time.monotonic()
    codes, outputs = cli.ends(processes)
    seconds = time.monotonic() - began
    assert codes == [76, 76], outputs
    assert TIMEOUT - 1 < seconds < TIMEOUT + 10
    for output, other in zip(outputs, reversed(HOSTS), strict=True):
        assert f"no sign of life for {TIMEOUT} s from process" in output
        assert f"({other}) since step" in output
        assert "Traceback" not in output
    print(f"the cut link was found after {seconds:.1f} s:\n{outputs[0]}")

    cable("up")
    codes, outputs = cli.ends(start(cut))
    assert codes == [0, 0], outputs
    assert "Goes on from step" in outputs[0]
    assert_same_curves(cut, whole, rtol=0)
    cli.assert_same_bits(cli.saved_arrays(cut, STEPS), cli.saved_arrays(whole, STEPS))
