"""Platforms that are not here, and memory that does not suffice: one message."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from tests import cli
from vit_jax import devices, training
from vit_jax.errors import OutOfMemory, UserError


def run(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args],
        env={**os.environ, "PYTHONPATH": str(cli.ROOT), **environment},
        cwd=cli.ROOT,
        capture_output=True,
        text=True,
    )


def message(done: subprocess.CompletedProcess[str]) -> str:
    """The one message of a command that ends with 2; JAX's own warnings left out."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1
    return done.stderr.partition("error: ")[2].strip()


ASKED = {
    "cuda": r"JAX_PLATFORMS=cuda: .*unset JAX_PLATFORMS",
    "rocm": r"JAX_PLATFORMS=rocm: .*unset JAX_PLATFORMS",
    "cdua": r'JAX knows no platform "cdua"; did you mean "cuda"',
    "gpu": r"JAX_PLATFORMS=gpu: .*unset JAX_PLATFORMS",
}
WEIGHTS = cli.ROOT / "tests/formats/fixtures/torch/hugging-face"
FROM_PYTHON = """
import sys, jax, vit_jax
from vit_jax import devices
def all_of_them():
    for name in ("cuda", "rocm", "cdua", "gpu"):
        yield name, devices.find
    yield "rocm", lambda: vit_jax.load(sys.argv[1])
    yield "rocm", lambda: vit_jax.train("configs/quickstart.py", sys.argv[2])
for name, use in all_of_them():
    jax.config.update("jax_platforms", name)
    try:
        use()
    except vit_jax.errors.UserError as error:
        print(error)
"""
needs_none = pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="there is an accelerator"
)


@needs_none
def test_a_platform_that_is_not_here(tmp_path: Path) -> None:
    lines = run("-c", FROM_PYTHON, str(WEIGHTS), f"{tmp_path}/w").stdout.splitlines()
    expected = [*ASKED.values(), ASKED["rocm"], ASKED["rocm"]]
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected, strict=True):
        assert re.search(pattern, line), line
    if not devices._plugins():
        assert "pip install 'vit_jax[cuda]'" in lines[0]
    assert not any(tmp_path.iterdir())


@needs_none
@pytest.mark.parametrize("command", ["main", "predict", "convert", "plan"])
def test_commands_on_a_platform_that_is_not_here(command: str, tmp_path: Path) -> None:
    recipe = "--config=configs/quickstart.py"
    args = {
        "main": (recipe, f"--workdir={tmp_path}/w"),
        "predict": (f"--checkpoint={WEIGHTS}", __file__),
        "convert": (str(WEIGHTS), f"{tmp_path}/x", "--to=timm"),
        "plan": (recipe, "--topology=local"),
    }[command]
    done = run("-m", f"vit_jax.{command}", *args, JAX_PLATFORMS="rocm")
    assert message(done).startswith("JAX_PLATFORMS=rocm: ")
    assert not any(tmp_path.iterdir())


def test_memory_that_does_not_suffice_is_explained() -> None:
    """As JAX itself raises it, for what no machine has: an exabyte."""
    with (
        pytest.raises(OutOfMemory, match="25 ways") as caught,
        devices.enough_memory("There are 25 ways."),
    ):
        jnp.zeros(2**58).block_until_ready()
    assert f"the memory of {len(jax.devices())} x " in str(caught.value)
    assert "allocating 1.15E" in str(caught.value)
    assert isinstance(caught.value, UserError)


@pytest.mark.parametrize("what", ["INTERNAL: a defect", "UNAVAILABLE: peer"])
def test_other_errors_of_jax_stay(what: str) -> None:
    with (
        pytest.raises(jax.errors.JaxRuntimeError, match=what),
        devices.enough_memory(""),
    ):
        raise jax.errors.JaxRuntimeError(what)


# As JAX words it: on a GPU in a step, on a TPU in the compiler, by cuDNN or NCCL.
WORDS = (
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 91268055040 bytes.",
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
    "space hbm. Used 20.16G of 15.48G hbm. Exceeded hbm capacity by 4.68G.\n\nTotal",
    "INTERNAL: CUDA error: : CUDA_ERROR_OUT_OF_MEMORY: out of memory",
)


@pytest.mark.parametrize("words", WORDS)
def test_a_step_that_does_not_fit(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What helps is named with its values, and where the run stands."""
    from vit_jax import api

    def raises(*args: object) -> None:
        raise jax.errors.JaxRuntimeError(words)

    monkeypatch.setattr(training.Run, "compile_train_step", raises)
    with pytest.raises(UserError) as caught:
        api.train(cli.EVERYTHING, tmp_path / "w")
    told = str(caught.value)
    for key in (
        "lower config.batch_size (16)",
        "raise config.accumulation_steps (2)",
        "config.model.remat_policy=nothing_saveable (auto)",
        "config.mesh.fsdp",
        "config.evals.NAME.batch_size",
        "python -m vit_jax.plan",
        "nothing was saved yet in",
    ):
        assert key in told, told
    assert words.partition("\n")[0].partition(": ")[2].partition(" ")[0] in told
    assert len(told) < 1500


@pytest.mark.slow
def test_a_run_that_does_not_fit(tmp_path: Path) -> None:
    """A step that asks the processor's memory for 1.5 TB."""
    args = ("--config.batch_size=1024", "--config.model.registers=4096")
    told = message(
        run(
            "-m",
            "vit_jax.main",
            f"--config={cli.EVERYTHING}",
            *args,
            f"--workdir={tmp_path}",
        )
    )
    assert "Out of memory allocating" in told
    assert "lower config.batch_size (1,024)" in told
