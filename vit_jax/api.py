"""Training and evaluation from Python: what `python -m vit_jax.main` does.

    results = vit_jax.train("configs/quickstart.py", "workdirs/mine", {"seed": 1})
    print(results["test/accuracy"])

The command line is a thin layer over `run`.
"""

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from vit_jax import cluster, errors, preemption, workdirs
from vit_jax import config as configs

Config = str | os.PathLike[str] | Mapping[str, Any] | ConfigDict
Results = dict[str, float]
Changes = Mapping[str, Any] | Sequence[tuple[str, Any]]

_busy = threading.Lock()


def load_config(
    config: Config, overrides: Mapping[str, Any] | None = None
) -> ConfigDict:
    """A complete config, to look at, to change and to give to `train`.

    Args:
      config: a recipe such as "configs/quickstart.py" or "configs/imagenet1k.py:B/16",
        the workdir of a run, or what a recipe returns: a ConfigDict or a dict.
      overrides: keys to change, {"optim.learning_rate": 3e-4} or, the same,
        {"optim": {"learning_rate": 3e-4}}. None removes an evaluation.

    Returns:
      A ConfigDict that knows all keys: a misspelt one raises AttributeError, a value of
      another type TypeError.

    Raises:
      vit_jax.errors.UserError: for a recipe that is not there or fails, an unknown key,
        a value of a wrong type.
    """
    given = os.fspath(config) if isinstance(config, os.PathLike) else config
    return configs.load(given, {} if overrides is None else overrides)


def train(
    config: Config | None,
    workdir: str | os.PathLike[str],
    overrides: Mapping[str, Any] | None = None,
) -> Results:
    """Trains to the end; goes on where `workdir` left off.

    In the main thread SIGTERM and Ctrl-C are taken over meanwhile: the run saves, and
    then the call raises. A second Ctrl-C interrupts at once.

    Args:
      config: see `load_config`; None is the config of the run in `workdir`.
      workdir: of the run, new or not.
      overrides: see `load_config`.

    Returns:
      The last results by their names in metrics.jsonl, such as "test/accuracy".

    Raises:
      vit_jax.errors.UserError: for what cannot work, before anything is compiled, with
        what to do about it; if a run is at work in this process; if the disk is full.
      vit_jax.errors.NonFiniteLossError: when the loss is not finite.
      vit_jax.errors.Preempted: after SIGTERM, once the state is saved.
      KeyboardInterrupt: after Ctrl-C, once the state is saved.
    """
    return _call("train", config, workdir, overrides)


def evaluate(
    config: Config | None,
    workdir: str | os.PathLike[str],
    overrides: Mapping[str, Any] | None = None,
    *,
    evals: Sequence[str] | None = None,
) -> Results:
    """Evaluates the best checkpoint of a workdir, or `config.init_from`.

    Args:
      config: see `load_config`; None is the config of the run in `workdir`.
      workdir: of the run; results are written to its folder evals/.
      overrides: see `load_config`.
      evals: names in `config.evals`; None is all.

    Returns:
      The results by name, such as "test/accuracy".

    Raises:
      vit_jax.errors.UserError: as `train`.
      vit_jax.errors.Preempted: after SIGTERM.
      KeyboardInterrupt: after Ctrl-C.
    """
    return _call("evaluate", config, workdir, overrides, evals)


def _call(
    command: str,
    config: Config | None,
    workdir: str | os.PathLike[str],
    overrides: Mapping[str, Any] | None,
    evals: Sequence[str] | None = None,
) -> Results:
    if cluster.find(None, None, None) is not None:
        raise errors.UserError(
            f"vit_jax.{command}: this process is one of several, and from Python a run "
            "is of one: start python -m vit_jax.main in each"
        )
    with _one_at_a_time(), preemption.handled():
        try:
            return run(
                config,
                workdir,
                {} if overrides is None else overrides,
                evaluate_only=command == "evaluate",
                evals=evals,
                command=[f"vit_jax.{command}"],
            )
        except errors.Preempted as stop:
            if preemption.by_keyboard():
                raise KeyboardInterrupt(str(stop)) from None
            raise


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Signals, logs and the devices are of one run at a time."""
    if not _busy.acquire(blocking=False):
        raise errors.UserError(
            "vit_jax is training or evaluating in another thread of this process: wait "
            "for it, or start another process"
        )
    try:
        yield
    finally:
        _busy.release()


def run(
    config: Config | None,
    workdir: str | os.PathLike[str],
    changes: Changes,
    *,
    evaluate_only: bool,
    evals: Sequence[str] | None,
    command: Sequence[str],
    place: cluster.Place | None = None,
) -> Results:
    """Trains or evaluates, on one process of a run or on the only one.

    Args:
      config: see `load_config`; None is the config of the run in `workdir`.
      workdir: of the run.
      changes: keys of the config, and values or texts that mean them.
      evaluate_only: instead of training.
      evals: with it, those of `config.evals` to run; None is all.
      command: what was typed or called, for the workdir's records.
      place: of this process among those of the run; see `distributed.joined`.
    """
    quiet_tensorflow()
    path = workdirs.absolute(workdir, of="--workdir")
    given = os.fspath(path) if config is None else config
    known = (workdirs.CONFIG, "checkpoints")
    if config is None and not any((path / name).exists() for name in known):
        raise errors.UserError(
            f"--config is not given, and {path} holds no run with a config.json: name "
            "a recipe"
        )
    given = os.fspath(given) if isinstance(given, os.PathLike) else given
    complete = configs.load(given, changes).to_dict()
    if evals is not None:
        complete["evals"] = chosen(complete["evals"], evals)
    # Slow to import: after the config is good.
    from vit_jax import console, distributed, provenance, training

    pairs = configs.pairs(changes)
    recipe = given if isinstance(given, str) else None
    about = provenance.collect(command, recipe, pairs)
    timeouts = {name: complete[name] for name in ("peer_timeout", "stall_timeout")}
    with distributed.joined(place, **timeouts), console.recorded() as log:
        if evaluate_only:
            return training.evaluate_only(path, complete)

        def begin(run: Any, step: int, hosts: list[str]) -> None:
            kind = run.mesh.devices.flat[0].device_kind
            devices = f"{run.mesh.size} x {kind}"
            provenance.write(
                path, about, complete, step=step, hosts=hosts, devices=devices
            )
            if not workdirs.is_remote(path):
                log.open(path / console.LOG)

        return training.train_and_evaluate(path, complete, begin)


def chosen(evals: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The evaluations of these names.

    >>> chosen({"val": 1, "real": 2}, ["real"])
    {'real': 2}
    """
    for name in names:
        if name not in evals:
            hint = errors.did_you_mean(name, evals)
            raise errors.UserError(f'--evals: config.evals has no "{name}"; {hint}')
    return {name: evals[name] for name in names}


def quiet_tensorflow() -> None:
    """Where it is imported (object stores), it need not greet and complain."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
