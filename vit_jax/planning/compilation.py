"""Compiles a step in a process of its own, reads what that leaves, and keeps it.

A result is kept under the digest of the program that was compiled, its topology, the
compiler's version and options. So a table of many plans can be stopped and goes on
where it was, and a change of the code that changes no program costs no compilation.
"""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from vit_jax.data.shapes import DataShape
from vit_jax.errors import UserError
from vit_jax.planning import collectives, memory, step_time, topologies
from vit_jax.planning.hlo import Module
from vit_jax.planning.teachers import Described
from vit_jax.planning.topologies import Topology

# Of `Program`; what else a config says does not change the step.
PROGRAM_KEYS = (
    "seed",
    "batch_size",
    "accumulation_steps",
    "mixup",
    "cutmix",
    "mixup_prob",
    "mixup_switch_prob",
    "ema",
    "model",
    "loss",
    "optim",
    "mesh",
)
# Raised when what is read from a compilation changes its meaning.
_FORMAT = "5"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What to compile.

    Attributes:
      topology: to compile for.
      data: the shape of the training data.
      program: the keyword arguments of `vit_jax.program.Program`.
      teacher: of the config, if it has one.
      fast: stop before code is generated: memory and collectives, but no times.
    """

    topology: Topology
    data: DataShape
    program: dict[str, Any]
    teacher: Described | None
    fast: bool


def run(request: Request, cache: Path) -> dict[str, Any]:
    """What the compiler makes of a step.

    Returns:
      "program": what `worker.describe` says; "memory", "collectives" and "time" (None
      if fast): what `memory`, `collectives` and `step_time` read; "uncounted_loops";
      "refused": what the compiler says when the step does not fit, else None;
      "seconds": it took.

    Raises:
      UserError: if the config cannot work on this topology, or libtpu is not
        installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "planning for a TPU needs its compiler: pip install libtpu, or plan this "
            "machine with --topology=local"
        )
    cache.mkdir(parents=True, exist_ok=True)
    ends = [".json", ".fast.json"] if request.fast else [".json"]
    with tempfile.TemporaryDirectory(prefix="vit_jax_plan_") as name:
        directory = Path(name)
        topology = request.topology
        asked = {
            "topology": (topology.version, topology.shape, topology.slices),
            "data": dataclasses.asdict(request.data),
            "program": request.program,
            "teacher": request.teacher and dataclasses.asdict(request.teacher),
            "flags": [_FORMAT],
            "cache": str(cache),
            "ends": ends,
        }
        (directory / "request.json").write_text(json.dumps(asked))
        began = time.monotonic()
        compile_in_child(directory, fast=request.fast)
        program = json.loads((directory / "program.json").read_text())
        for end in ends:
            path = cache / f"{program['key']}{end}"
            if path.exists():
                return {"program": program, **json.loads(path.read_text())}
        result = read(directory, request, program["places"])
        result["seconds"] = time.monotonic() - began
    path = cache / f"{program['key']}{ends[-1]}"
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(result))
    part.rename(path)
    return {"program": program, **result}


def compile_in_child(directory: Path, *, fast: bool) -> None:
    """Runs `worker`; with `fast` ends it once the buffers are assigned.

    Raises:
      UserError: that it met.
      RuntimeError: if it failed, with what it said.
    """
    environment = os.environ | topologies.ENVIRONMENT
    if not fast:
        dump = f"--xla_jf_dump_to={directory / 'llo'}"
        text = "--xla_jf_dump_llo_text=true"
        only = "--xla_jf_dump_llo_pass_label_regex=final_bundles"
        given = environment.get("LIBTPU_INIT_ARGS", "")
        environment["LIBTPU_INIT_ARGS"] = f"{given} {dump} {text} {only}".strip()
    log = directory / "log.txt"
    with log.open("w") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "vit_jax.planning.worker", str(directory)],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        ended = False
        try:
            while child.poll() is None:
                if fast and list((directory / "hlo").glob("*after_buffer_assignment*")):
                    ended = True
                    break
                time.sleep(0.1)
        finally:
            child.kill()
            child.wait()
    done = directory / "done.json"
    if done.exists() and "user_error" in (said := json.loads(done.read_text())):
        raise UserError(said["user_error"])
    if child.returncode and not ended:
        raise RuntimeError(f"the compiler's process failed:\n{log.read_text()[-4000:]}")


def read(directory: Path, request: Request, places: list[list[int]]) -> dict[str, Any]:
    """What the dumps of a compilation say."""
    module = Module(dump(directory, "after_optimizations.txt"))
    buffers = memory.read(
        dump(directory, "buffer-assignment.txt"),
        dump(directory, "live-range.txt"),
        module,
    )
    done = directory / "done.json"
    said = json.loads(done.read_text()) if done.exists() else {}
    if "temporaries" in said:  # the compiler's own figures, where it came to the end
        buffers = dataclasses.replace(
            buffers,
            arguments=said["arguments"],
            temporaries=said["temporaries"],
            outputs=said["outputs"] - said["aliased"],
            constants=0,
        )
    sent = collectives.read(module, request.topology, [tuple(p) for p in places])
    times = None
    if not request.fast and "refused" not in said:
        times = step_time.estimate(module, directory / "llo", request.topology.chip)
    return {
        "memory": {
            **dataclasses.asdict(buffers),
            "total": buffers.total,
            "arguments_by_kind": memory.split_arguments(module),
        },
        "collectives": [dataclasses.asdict(collective) for collective in sent],
        "time": dataclasses.asdict(times) if times else None,
        "uncounted_loops": module.uncounted_loops(),
        "refused": said["refused"] if "refused" in said else None,
    }


def dump(directory: Path, end: str) -> str:
    """The text of the compiler's dump whose name ends so."""
    (path,) = (directory / "hlo").glob(f"*{end}")
    return path.read_text()
