"""Compiles one training step for devices that are not here: a process of its own.

    python -m vit_jax.planning.worker DIRECTORY

`compilation` starts it with what libtpu reads from the environment, and may end it once
the files it waits for are written. It reads DIRECTORY/request.json and writes there:

    program.json   the layout, parameters and FLOPs; and the key of the cache
    hlo/           dumps of the compiler: optimised HLO, buffer assignment
    llo/           its final schedules, where LIBTPU_INIT_ARGS asks for them
    done.json      last: the compiler's memory analysis, or why it refused
"""

import hashlib
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import jax

from vit_jax import compiler, sharding, steps
from vit_jax.data.shapes import DataShape
from vit_jax.errors import UserError
from vit_jax.planning import flops, topologies
from vit_jax.planning.teachers import Described
from vit_jax.program import Program


def main(directory: Path) -> None:
    """Does what the request says."""
    jax.config.update("jax_enable_compilation_cache", False)  # it would dump nothing
    request = with_tuples(json.loads((directory / "request.json").read_text()))
    topology = topologies.Topology(*request["topology"])
    devices = topologies.devices(topology)
    data, teacher = DataShape(**request["data"]), None
    if request["teacher"] is not None:
        teacher = Described(**request["teacher"]).build(data.image_shape)
    program = Program(data, devices, teacher, **request["program"])
    traced = program.trace_train_step()
    lowered = traced.lower()
    key = cache_key(lowered, topology, devices[0], request["flags"])
    write(
        directory / "program.json",
        {
            "key": key,
            **describe(program, request["data"]["image_shape"]),
            "hardware_flops": flops.traced_flops(traced.jaxpr.jaxpr),
        },
    )
    kept = [Path(request["cache"]) / f"{key}{end}" for end in request["ends"]]
    if any(path.exists() for path in kept):
        return
    dumps = {
        "xla_dump_to": str(directory / "hlo"),
        "xla_dump_hlo_as_text": True,
        "xla_dump_hlo_module_re": "jit_train_step",
    }
    try:
        compiled = steps.compile_train_step(lowered, program.mesh, dumps)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        write(directory / "done.json", {"refused": str(error)})
        return
    analysis = compiled.memory_analysis()
    assert analysis is not None
    write(
        directory / "done.json",
        {
            "arguments": analysis.argument_size_in_bytes,
            "temporaries": analysis.temp_size_in_bytes,
            "outputs": analysis.output_size_in_bytes,
            "aliased": analysis.alias_size_in_bytes,
        },
    )


def with_tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were.

    >>> with_tuples({"remat_names": ["q", "k"], "patch_size": 16})
    {'remat_names': ('q', 'k'), 'patch_size': 16}
    """
    if isinstance(value, dict):
        return {key: with_tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(with_tuples(item) for item in value)
    return value


def cache_key(
    lowered: jax.stages.Lowered,
    topology: topologies.Topology,
    device: Any,
    flags: tuple[str, ...],
) -> str:
    """A digest of all that the compiler's output depends on."""
    versions = [importlib.metadata.version(name) for name in ("jax", "libtpu")]
    options = sorted(compiler.options(device).items())
    text = [lowered.as_text(), str(topology), *versions, str(options), *flags]
    return hashlib.sha256("\n".join(text).encode()).hexdigest()[:24]


def describe(program: Program, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """What a plan says of a program besides the compiler's part."""
    leaves = [
        (sharding.path_name(path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(program.abstract_state)
    ]
    parameters = sum(x.size for name, x in leaves if name.startswith("params/"))
    whole = [
        {"name": name, "bytes": leaf.size * leaf.dtype.itemsize}
        for name, leaf in leaves
        if leaf.sharding.shard_shape(leaf.shape) == leaf.shape
    ]
    return {
        "layout": str(program.layout) + (" (ZeRO-1)" if program.layout.zero1 else ""),
        "parameters": parameters,
        "replicated": sorted(whole, key=lambda leaf: -leaf["bytes"]),
        # The devices of a topology of one slice lack its number.
        "places": [
            (getattr(device, "slice_index", 0), *device.coords)
            for device in program.mesh.devices.flat
        ],
        "model_flops": flops.model_flops(
            program.model, image_shape, program.batch_size
        ),
    }


def write(path: Path, values: dict[str, Any]) -> None:
    """Writes JSON so that whoever finds the file finds all of it."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(values))
    part.rename(path)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except UserError as error:
        write(Path(sys.argv[1]) / "done.json", {"user_error": str(error)})
