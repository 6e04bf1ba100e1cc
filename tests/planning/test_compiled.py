"""A small model, compiled by the real TPU compiler for a slice of four chips."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from vit_jax import config as configs
from vit_jax.planning import compilation, memory, planner, step_time, topologies
from vit_jax.planning.hlo import Module
from vit_jax.program import Program
from vit_jax.run import Run

pytest.importorskip("libtpu")

V5E = topologies.parse("v5e:2x2")
SMALL = [
    ("model.dtype", "bfloat16"),
    ("model.scan", "true"),
    ("model.depth", "2"),
    ("model.num_heads", "1"),  # of 128 lanes: hardly any padding
    ("mesh.fsdp", "4"),
    ("mixup", "0.0"),
    ("ema", "0.99"),
]


def small_config(*more: tuple[str, str]) -> dict[str, Any]:
    return configs.load("configs/quickstart.py", [*SMALL, *more]).to_dict()


def request(config: dict[str, Any], *, fast: bool) -> compilation.Request:
    shape = planner.Shape.of(config)
    program = shape.program(config)
    return compilation.Request(
        topology=V5E, data=shape.data, program=program, teacher=None, fast=fast
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plans")


@pytest.fixture(scope="module")
def full(cache: Path) -> dict[str, Any]:
    """The plan of a small config, and what the compiler left, in `dump`."""
    kept: dict[str, Any] = {}

    def keeping(directory: Path, *args: Any) -> dict[str, Any]:
        kept["said"] = json.loads((directory / "done.json").read_text())
        kept["hlo"] = compilation.dump(directory, "after_optimizations.txt")
        kept["assigned"] = memory.read(
            compilation.dump(directory, "buffer-assignment.txt"),
            compilation.dump(directory, "live-range.txt"),
            Module(kept["hlo"]),
        )
        return read(directory, *args)

    read = compilation.read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compilation, "read", keeping)
        kept["compiled"] = compilation.run(request(small_config(), fast=False), cache)
    return kept


def test_memory_is_the_compilers_own(full: dict[str, Any]) -> None:
    said, plan = full["said"], full["compiled"]["memory"]
    own = said["arguments"] + said["temporaries"] + said["outputs"] - said["aliased"]
    assert plan["total"] == own > 0
    # What a fast plan reads from the buffer assignment is the same but for padding of
    # small constants.
    assert full["assigned"].total == pytest.approx(own, rel=1e-3)


def test_split_of_memory_adds_up(full: dict[str, Any]) -> None:
    plan = full["compiled"]["memory"]
    by_kind = plan["arguments_by_kind"]
    assert sum(by_kind.values()) == plan["arguments"]
    config = small_config()
    shape = planner.Shape.of(config)
    values = shape.program(config)
    state = Program(shape.data, jax.local_devices()[:4], **values).abstract_state

    def shard_bytes(tree: Any) -> int:
        return sum(
            np.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
            for x in jax.tree.leaves(tree)
        )

    # The compiler pads to tiles.
    for name, tree in (
        ("parameters", state.params),
        ("average of parameters", state.ema_params),
        ("optimizer", state.opt_state),
    ):
        assert 1.0 <= by_kind[name] / shard_bytes(tree) < 1.3, name
    alive = sum(buffer["size"] for buffer in plan["peak"]) + plan["free_at_peak"]
    assert alive == full["assigned"].temporaries


def test_weights_are_gathered_in_the_compute_dtype(full: dict[str, Any]) -> None:
    sent = full["compiled"]["collectives"]
    gathered = [one for one in sent if one["kind"] == "all-gather"]
    kernels = 2 * (4 * 128 * 128 + 2 * 128 * 256)  # of two layers
    in_bf16 = sum(one["bytes"] for one in gathered if one["dtype"] == "bf16")
    assert in_bf16 >= kernels * 2  # each at least once, two bytes an element
    others = sum(one["bytes"] for one in gathered if one["dtype"] != "bf16")
    assert others < 0.1 * in_bf16
    assert all(one["seconds"] > 0 for one in sent)


def test_no_device_holds_the_global_batch(full: dict[str, Any]) -> None:
    """32 images of 16 patches over 4 devices: 8 on each, as the constraints say."""
    assert re.search(r"bf16\[8,16,128\]", full["hlo"])
    assert not re.search(r"\[32,16,\d+", full["hlo"])


def test_time_covers_every_operation(full: dict[str, Any]) -> None:
    time = full["compiled"]["time"]
    assert time["parts"]["MLP"] > 0
    assert time["parts"]["attention"] > 0
    assert time["parts"]["optimizer"] > 0
    total = sum(time["parts"].values())
    assert time["unscheduled"] == 0
    assert max(time["bundles_ms"], time["traffic_ms"]) <= total
    assert total <= time["bundles_ms"] + time["traffic_ms"]


def test_kept_results_are_not_compiled_again(
    full: dict[str, Any], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_reading(*_: Any) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(compilation, "read", no_reading)
    # A fast plan takes what a full one left, and learning rates are in the program.
    again = compilation.run(request(small_config(), fast=True), cache)
    assert again["memory"] == json.loads(json.dumps(full["compiled"]["memory"]))
    with pytest.raises(AssertionError, match="compiled again"):
        compilation.run(
            request(small_config(("optim.learning_rate", "2e-3")), fast=True), cache
        )


def test_plan_and_training_lower_to_the_same_program() -> None:
    """What `Run` compiles for four devices is what a plan compiles for four."""
    config = small_config()
    shape = planner.Shape.of(config)
    four = jax.local_devices()[:4]
    planned = Program(shape.data, four, **shape.program(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: four)
        run = Run(**config)
    assert run.total_steps == shape.total_steps
    running = run.program.lower_train_step().as_text()
    assert planned.lower_train_step().as_text() == running


MATMUL = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from vit_jax.planning import topologies
devices = topologies.devices(topologies.parse("v5e:2x2"))
whole = NamedSharding(Mesh(np.array(devices), "x"), PartitionSpec())
x = jax.ShapeDtypeStruct((8192, 8192), jnp.bfloat16, sharding=whole)
compiled = jax.jit(jnp.matmul, out_shardings=whole).lower(x, x).compile()
open(sys.argv[1], "w").write(compiled.as_text())
"""


def test_bundles_of_a_matrix_product(tmp_path: Path) -> None:
    """8192^3 in bfloat16: 2 * 8192^3 FLOPs at 197e12 a second are 5.58 ms.

    The compiler's own cost model, which a plan does not use, says 1.14 times that.
    """
    llo = f"--xla_jf_dump_to={tmp_path}/llo --xla_jf_dump_llo_text=true"
    only = "--xla_jf_dump_llo_pass_label_regex=final_bundles"
    subprocess.run(
        [sys.executable, "-c", MATMUL, str(tmp_path / "hlo.txt")],
        env=os.environ
        | topologies.ENVIRONMENT
        | {"LIBTPU_INIT_ARGS": f"{llo} {only}", "JAX_ENABLE_COMPILATION_CACHE": "0"},
        check=True,
    )
    text = (tmp_path / "hlo.txt").read_text()
    estimate = step_time.estimate(Module(text), tmp_path / "llo", V5E.chip)
    roofline = 1e3 * 2 * 8192**3 / V5E.chip.peak_flops
    # Bundles do not wait for the matrix units, which such a product keeps busy.
    assert 0.8 < estimate.total_ms / roofline < 1.0
    (own,) = re.findall(r'estimated_cycles":"(\d+)"', text)
    assert int(own) / V5E.chip.clock == pytest.approx(1.14e-3 * roofline, rel=0.01)
    # Three arrays of 128 MiB, each moved at least once.
    assert estimate.traffic_ms >= 1e3 * 3 * 2 * 8192**2 / V5E.chip.hbm_bandwidth
