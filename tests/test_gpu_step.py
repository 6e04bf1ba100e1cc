"""benchmarks/gpu_step.py, with a model of one layer on the CPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu_step.py"


@pytest.mark.slow
def test_it_checks_results_and_measures() -> None:
    run = subprocess.run(
        [sys.executable, SCRIPT, "--tiny", "--rounds=1", "--seconds=0.01"],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    errors = re.findall(r"auto  ((?: ?[\d.]+e-\d+){4})", run.stdout)
    assert len(errors) == 3
    assert "cpu, bfloat16" in run.stdout
    assert re.search(r"vit_jax +[\d.]+ images/s .* GiB", run.stdout)
