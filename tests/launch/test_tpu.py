"""launch.tpu against a fake gcloud: what goes wrong, and that the run is finished."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests import cli, wheel
from tests.launch.cloud import Cloud
from vit_jax.errors import UserError
from vit_jax.launch import job, tpu

WHERE = ["--name=run1", "--project=p", "--zone=z", "--poll=0.3"]
SPOT = [*WHERE, "--accelerator_type=v5litepod-16", "--spot"]


def arguments(cloud: Cloud, *further: str) -> list[str]:
    config = f"--config={cli.EVERYTHING}"
    return [*SPOT, config, f"--workdir={cloud.workdir}", *further]


def verbs(cloud: Cloud) -> list[str]:
    """The gcloud commands in their order, without looks at the state."""
    said = [" ".join(command[2:4]) for command in cloud["commands"]]
    return [verb for verb in said if "describe" not in verb]


def assert_done(cloud: Cloud, *, created: int) -> None:
    """Ten steps, each once; nothing is left that is paid for."""
    assert cloud.steps() == list(range(1, 11))
    assert cloud["created"] == cloud["deleted"] == created
    assert cloud["requests"] == {}


def test_a_run_is_shipped_run_on_all_workers_and_cleaned_up(cloud, capfd):
    cloud.will(workers=2)
    odd = """--config.data.data_dir=/a b/$HOME/it's "x" `id`;*"""
    assert tpu.main(arguments(cloud, odd, "--evaluate_only")) == 0
    assert_done(cloud, created=1)
    assert cloud["installed"] == 2
    assert cloud.finished()[1:] == [
        f"--workdir={cloud.workdir}",
        odd,
        "--evaluate_only",
    ]
    output = capfd.readouterr().out
    assert "process 0 began" in output and "process 1 began" in output
    assert "step 10\n" in output
    assert "run1: deleted" in output
    (create,) = [c for c in cloud["commands"] if c[3] == "create"]
    assert "--runtime-version=v2-alpha-tpuv5-lite" in create
    assert "--node-id=run1" in create and "--spot" in create


def test_all_workers_of_all_slices_share_a_secret_key(cloud: Cloud, capfd):
    """In files that others cannot read; it is in no command and no log."""
    assert tpu.main(arguments(cloud, "--slices=2", "--keep")) == 0
    (key,) = {key for _, key in cloud["keys"]}
    assert len(key) == 64
    files = list((cloud.root / "vms").glob("*/vit_jax_run_key"))
    assert [file.read_text() for file in files] == [key] * 2
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    logs = [log.read_text() for log in (cloud.root / "vms").rglob("log")]
    said = json.dumps(cloud["commands"]) + str(capfd.readouterr()) + "".join(logs)
    assert key not in said


def test_other_slices_get_another_key(cloud: Cloud):
    """A crash on the same ones does not change it."""
    cloud.will(workers=2, codes=[1], code_after=1, preempt_at=[5])
    assert tpu.main(arguments(cloud)) == 0
    starts: dict[str, set[str]] = {}
    for start, key in cloud["keys"]:
        starts.setdefault(start, set()).add(key)
    first, second, third = starts.values()
    assert len(first) == len(third) == 1 and first == second and first != third


def test_a_run_that_has_begun_in_a_bucket_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its workdir alone; new slices have nothing of what is on a disk here."""
    monkeypatch.chdir(cli.ROOT)
    monkeypatch.setattr(job, "recipe_of", lambda workdir: "")
    monkeypatch.setattr(job.configs, "load", lambda recipe, overrides: None)
    assert tpu.main([*SPOT, "--workdir=gs://b/run", "--dry_run"]) == 0
    output = capsys.readouterr().out
    assert "vit_jax.main --workdir=gs://b/run" in output and "--config=" not in output
    with pytest.raises(UserError, match="is on a disk of the workers"):
        tpu.main([*SPOT, f"--workdir={tmp_path}", "--dry_run"])


def test_preempted_capacity_is_asked_for_again(cloud, capfd):
    """Twice, in mid-run; the connection hangs, then breaks."""
    cloud.will(preempt_at=[3, 6], hangs=[1], waits=1)
    assert tpu.main(arguments(cloud)) == 0
    assert_done(cloud, created=3)
    assert cloud["installed"] == 3
    output = capfd.readouterr().out
    assert output.count("run1: lost") == 2
    # Each slice goes on where the one before it was taken away.
    assert output.count("step 1\n") == 1 and output.count("step 10\n") == 1


def test_a_crash_is_started_again_on_the_same_slices(cloud):
    cloud.will(codes=[1, 75], workers=2)
    assert tpu.main(arguments(cloud, "--max_restarts=1")) == 0
    assert_done(cloud, created=1)
    assert len(cloud["runs"]) == 3
    assert len(set(cloud["runs"])) == 3, "each start has a number of its own"
    assert cloud["installed"] == 2


def test_a_run_that_would_fail_again_is_not_started_again(cloud):
    cloud.will(codes=[2], workers=2)
    assert tpu.main(arguments(cloud)) == 2
    assert len(cloud["runs"]) == 1
    assert cloud["deleted"] == 1


def test_crashes_without_progress_are_given_up(cloud):
    """One that makes progress would be started a third time: see above."""
    cloud.will(codes=[9] * 9, code_after=0)
    assert tpu.main(arguments(cloud, "--max_restarts=2")) == 9
    assert len(cloud["runs"]) == 3
    assert cloud["deleted"] == 1


def test_lost_workers(cloud):
    """One that cannot be reached is tried again; twice in a row, its slice is replaced.

    In between a run crashes, which has nothing to do with it.
    """
    cloud.will(lost_workers=[1, None, 0, 0], codes=[1], workers=2)
    assert tpu.main(arguments(cloud)) == 0
    assert_done(cloud, created=2)
    assert len(cloud["runs"]) == 5


QUOTA = (
    "RESOURCE_EXHAUSTED: Quota limit 'TPUV5sPreemptibleLitepodPerProjectPerZone' has "
    "been exceeded. Limit: 0 in zone z."
)
STOCKOUT = 'RESOURCE_EXHAUSTED: There is no more capacity in the zone "z"'


@pytest.mark.parametrize("where", ["refusals", "failures"])
def test_without_quota_it_stops_with_one_message(cloud, where: str):
    cloud.will(**{where: [QUOTA]})
    with pytest.raises(UserError, match=r"no quota .* waiting does not help.*Limit: 0"):
        tpu.main(arguments(cloud))
    assert cloud["requests"] == {}
    assert cloud["runs"] == []


def test_a_stockout_is_waited_for(cloud, capfd):
    cloud.will(refusals=[STOCKOUT] * 2, failures=[STOCKOUT], waits=3)
    assert tpu.main(arguments(cloud)) == 0
    assert_done(cloud, created=2)
    output = capfd.readouterr().out
    assert "no capacity: asking again" in output
    assert f"FAILED ({STOCKOUT}): asking again" in output
    assert "WAITING_FOR_RESOURCES" in output


def test_what_gcloud_says_is_passed_on(cloud):
    cloud.will(refusals=["PERMISSION_DENIED: tpu.queuedResources.create"])
    with pytest.raises(UserError, match="PERMISSION_DENIED"):
        tpu.main(arguments(cloud))
    with pytest.raises(UserError, match="unrecognized arguments: --reserv"):
        tpu.main(arguments(cloud, "--create_flag=--reserv"))


def test_several_slices_are_one_run(cloud):
    assert tpu.main(arguments(cloud, "--slices=2")) == 0
    assert_done(cloud, created=1)
    (create,) = [c for c in cloud["commands"] if c[3] == "create"]
    assert "--node-count=2" in create and "--node-prefix=run1" in create
    reached = {c[4] for c in cloud["commands"] if c[2:4] == ["tpu-vm", "ssh"]}
    assert reached == {"run1-0", "run1-1"}


def test_kept_slices_are_taken_again(cloud, capfd):
    assert tpu.main(arguments(cloud, "--keep")) == 0
    assert cloud["deleted"] == 0
    assert "is kept, and paid for" in capfd.readouterr().out
    with pytest.raises(UserError, match="of type v5litepod-16, not v6e-16"):
        tpu.main(arguments(cloud, "--accelerator_type=v6e-16"))
    assert cloud["deleted"] == 0, "it belongs to another run"
    (cloud.workdir / "finished").unlink()
    assert tpu.main(arguments(cloud)) == 0
    assert_done(cloud, created=1)
    assert cloud["installed"] == 1, "the same code is installed once"


def signalled(cloud: Cloud, number: signal.Signals, *, before: Sequence[str] = ()):
    """A launcher that has got a signal after the second step."""
    launcher = subprocess.Popen(
        [*before, sys.executable, "-m", "vit_jax.launch.tpu", *arguments(cloud)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not (cloud.workdir / "checkpoints" / "2").exists():
        assert launcher.poll() is None
        time.sleep(0.02)
    launcher.send_signal(number)
    return launcher


# SIGHUP is the next test's.
@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        signal.SIGTERM,
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_deletes(cloud, number: signal.Signals):
    cloud.will(step_seconds=1.5)
    launcher = signalled(cloud, number)
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 75, output
    assert "exited with 75" in output
    assert "run1: deleted" in output
    assert not (cloud.workdir / "finished").exists()


def test_a_terminal_that_is_closed_saves_and_deletes(cloud):
    """It sends SIGHUP, and then nothing can be printed."""
    cloud.will(step_seconds=1.5)
    launcher = signalled(cloud, signal.SIGHUP)
    assert launcher.stdout is not None
    launcher.stdout.close()
    assert launcher.wait(timeout=60) == 75
    assert cloud["created"] == cloud["deleted"] == 1
    assert not (cloud.workdir / "finished").exists()


def test_nohup_keeps_sighup_away(cloud):
    cloud.will(step_seconds=0.2)
    launcher = signalled(cloud, signal.SIGHUP, before=["nohup"])
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 0, output
    assert_done(cloud, created=1)


@pytest.mark.slow
def test_the_true_program(cloud, capfd):
    """The shipped checkout itself trains on a worker."""
    cloud.will(true_main=True)
    assert tpu.main(arguments(cloud, "--config.total_steps=8")) == 0
    assert cloud["created"] == cloud["deleted"] == 1
    assert cli.saved_steps(cloud.workdir) == [7, 8]
    logged = [line["step"] for line in cli.metric_lines(cloud.workdir)]
    assert logged == list(range(1, 9))
    assert "Finished at step 8" in capfd.readouterr().out


@pytest.mark.slow
def test_the_true_program_on_capacity_that_is_preempted(cloud):
    """Three slices; in the end the same metrics and weights as on one."""
    cloud.will(true_main=True, preempt_at=[7, 14])
    assert tpu.main(arguments(cloud)) == 0
    assert cloud["created"] == cloud["deleted"] == 3
    undisturbed = cloud.root / "undisturbed"
    cli.run(f"--config={cli.EVERYTHING}", f"--workdir={undisturbed}")
    assert cli.metric_lines(cloud.workdir) == cli.metric_lines(undisturbed)
    cli.assert_same_bits(
        cli.saved_arrays(cloud.workdir, 30), cli.saved_arrays(undisturbed, 30)
    )


def packed(folder: Path, site: Path) -> bytes:
    """What an installed vit_jax would ship for the recipe mine.py of a folder."""
    code = "import sys; from vit_jax.launch import checkout\n"
    code += "sys.stdout.buffer.write(checkout.pack('mine.py')[0])"
    environment = os.environ | {"PYTHONPATH": str(site)}
    run = [sys.executable, "-c", code]
    return subprocess.check_output(run, cwd=folder, env=environment)


@pytest.mark.slow
def test_an_installed_vit_jax_is_shipped_as_its_wheel(cloud: Cloud, tmp_path: Path):
    """From a folder with a recipe of its own, which builds on another."""
    built = wheel.build_offline(tmp_path / "wheel")
    site, here = tmp_path / "site", tmp_path / "here"
    shutil.unpack_archive(built, site, "zip")
    (here / "configs").mkdir(parents=True)
    (here / "configs" / "base.py").write_text("from configs.quickstart import *\n")
    (here / "mine.py").write_text("from configs.base import get_config\n")
    (here / "other.py").write_text("1 / 0\n")
    argv = [*SPOT, "--config=mine.py", f"--workdir={cloud.workdir}"]
    done = subprocess.run(
        [sys.executable, "-m", "vit_jax.launch.tpu", *argv],
        cwd=here,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert_done(cloud, created=1)
    assert cloud["installed"] == 1
    sent = tmp_path / "sent"
    with tarfile.open(fileobj=io.BytesIO(packed(here, site))) as archive:
        archive.extractall(sent, filter="data")
    recipes = {p.relative_to(sent).as_posix() for p in sent.rglob("*.py")}
    assert recipes == {"mine.py", "configs/base.py"}
    (sent,) = sent.glob("*.whl")
    assert wheel.contents(sent) == wheel.contents(built)
    assert packed(here, site) == packed(here, site)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--target", tmp_path / "again", sent], check=True)
    again = {
        p.relative_to(tmp_path / "again").as_posix()
        for p in (tmp_path / "again" / "vit_jax").rglob("*")
        if p.is_file() and p.suffix != ".pyc"
    }
    assert again == wheel.contents(built)
