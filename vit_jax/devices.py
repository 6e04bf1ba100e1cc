"""The devices that JAX has: none of the kind that was asked for, or full memory."""

import contextlib
import importlib.metadata
import re
from collections.abc import Iterator
from typing import Any

import jax

from vit_jax import host_memory, progress
from vit_jax.errors import OutOfMemory, UserError, did_you_mean

# What may be given as JAX_PLATFORMS, and the extra of vit_jax that brings it.
_EXTRAS = {"cpu": None, "cuda": "cuda", "gpu": "cuda", "rocm": None, "tpu": "tpu"}
_SHOWN = 300  # characters of what JAX says
# Of other processes, which `distributed` explains, not of the devices.
_OF_PEERS = re.compile("DEADLINE_EXCEEDED|UNAVAILABLE|CANCELLED|[Hh]eartbeat")
_OUT_OF_MEMORY = re.compile("RESOURCE_EXHAUSTED|OUT_OF_MEMORY|out of memory", re.I)


def find() -> list[Any]:
    """All devices of the run, as `jax.devices()`.

    Raises:
      UserError: if there is none of the platform that JAX_PLATFORMS asks for.
    """
    host_memory.leave_libtpu_alone()
    try:
        return jax.devices()
    except jax.errors.JaxRuntimeError:
        raise
    except (RuntimeError, AssertionError) as error:
        if _OF_PEERS.search(str(error)):
            raise
        raise UserError(_missing(str(error))) from error


def _missing(said: str) -> str:
    """The message for a platform that is not there.

    Args:
      said: by JAX.
    """
    asked, variable = jax.config.values["jax_platforms"] or "", "JAX_PLATFORMS"
    if named := jax.config.values["jax_platform_name"]:  # an older name
        asked, variable = named, "JAX_PLATFORM_NAME"
    reason = f" ({_short(said.partition('(set JAX_PLATFORMS')[0])})" if said else ""
    if not asked:
        return f"JAX finds no devices{reason}: JAX_PLATFORMS=cpu takes the processor"
    here = ", ".join(["cpu", *sorted(_plugins())])
    for name in asked.split(","):
        if name not in _EXTRAS:
            hint = did_you_mean(name, _EXTRAS)
            return f'{variable}={asked}: JAX knows no platform "{name}"; {hint}'
        if not _has_plugin(name):
            extra = _EXTRAS[name]
            way = f"pip install 'vit_jax[{extra}]', or " if extra else ""
            return (
                f"{variable}={asked}: JAX is installed here for {here}: {way}unset "
                f"{variable} to take what is here"
            )
    return (
        f"{variable}={asked}: no such device is found here{reason}; JAX is installed "
        f"for {here}: unset {variable} to take what is here"
    )


def _plugins() -> set[str]:
    """The platforms, besides the CPU, whose packages are installed.

    >>> sorted(_plugins() - {"cuda", "rocm", "tpu"})
    []
    """
    names = [e.name for e in importlib.metadata.entry_points(group="jax_plugins")]
    found = {p for p in ("cuda", "rocm") for name in names if p in name}
    try:
        importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        return found
    return found | {"tpu"}


def _has_plugin(name: str) -> bool:
    kinds = {"cuda", "rocm"} if name == "gpu" else {name}
    return bool(kinds & {"cpu", *_plugins()})


@contextlib.contextmanager
def enough_memory(advice: str) -> Iterator[None]:
    """Explains what JAX raises when the memory of its devices is full.

    Args:
      advice: what to do, a sentence.

    Raises:
      OutOfMemory: instead.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not _OUT_OF_MEMORY.search(str(error)):
            raise
        raise OutOfMemory(
            f"the memory of {_described()} does not suffice: {_asked(str(error))}. "
            f"{advice}"
        ) from error


ADVICE_ON_EVALUATION = (
    "Lower config.batch_size, or the batch_size of an evaluation in config.evals.NAME"
)


def advice_on_training(config: dict[str, Any]) -> str:
    """What to do where a run does not fit.

    Args:
      config: complete.
    """
    batch, parts = config["batch_size"], config["accumulation_steps"]
    ways = [
        f"lower config.batch_size ({batch:,})",
        f"raise config.accumulation_steps ({parts:,}): the same batch, with fewer "
        "images on a device at a time",
    ]
    if "remat_policy" in config["model"]:
        policy = config["model"]["remat_policy"]
        ways.append(
            f"config.model.remat_policy=nothing_saveable ({policy}) computes again in "
            "the backward pass what it otherwise keeps"
        )
    ways += [
        f"config.mesh.fsdp ({config['mesh']['fsdp']}) divides the state among devices",
        "an evaluation has a config.evals.NAME.batch_size of its own",
        "python -m vit_jax.plan with the same --config and --topology=local says what "
        "smaller steps take",
    ]
    return "\n  ".join(["What helps:", *ways])


def _described() -> str:
    """The devices and the memory of each."""
    found = jax.devices()
    stats = found[0].memory_stats() if found[0].process_index == 0 else None
    there = f"{len(found)} x {found[0].device_kind}"
    if stats and "bytes_limit" in stats:
        return f"{there}, {progress.size(stats['bytes_limit'])} each,"
    if found[0].platform == "cpu":
        return f"{there}, {progress.size(host_memory.physical_bytes())} in all,"
    return there


def _asked(said: str) -> str:
    """What JAX was asked for, in its words; large numbers of bytes to be read.

    >>> _asked("RESOURCE_EXHAUSTED: Out of memory allocating 385931861472 bytes.")
    'Out of memory allocating 386GB'
    """
    text = _short(said.removeprefix("RESOURCE_EXHAUSTED: "))
    return re.sub(r"(\d{4,}) bytes", lambda m: progress.size(int(m[1])), text)


def _short(text: str) -> str:
    """The first line, cut where it is long, without a full stop."""
    line = text.strip().partition("\n")[0].rstrip(". ")
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]} ..."
