"""Evaluation alone: of a run's weights, or of those that it would start from."""

from typing import Any

from etils import epath

from vit_jax import checkpoints, devices, distributed, preemption, workdirs
from vit_jax.checkpoints import adapt
from vit_jax.data import shapes
from vit_jax.errors import Preempted, UserError
from vit_jax.evaluators import Result, records
from vit_jax.initial import pretrained, read_init_from
from vit_jax.observer import Scalars
from vit_jax.run import Run, meet


def evaluate_only(workdir: epath.Path, config: dict[str, Any]) -> Scalars:
    """Evaluates `config.init_from` if it is set, else the workdir's own weights.

    A workdir that was itself fine-tuned from `config.init_from` is evaluated, and not
    what it began with. The training data is not opened, unless an evaluation does: what
    the classes are and how many, the weights say.

    Results are printed and written to `workdir/evals/NAME-STEP.json`, or, of weights
    that are no run's, to `workdir/evals/NAME-FILE.json`; only printed where the workdir
    cannot be written.

    Returns:
      On the first process the results by name.

    Raises:
      UserError: as in `train_and_evaluate`; if there is nothing to evaluate.
      NonFiniteLossError: what the model makes of the images is not finite.
    """
    meet(config["compilation_cache"])
    with distributed.agreed():
        if not config["evals"]:
            raise UserError("--evaluate_only: config.evals is empty, nothing to do")
        path, weights = what_to_evaluate(workdir, config["init_from"]), None
        if path == workdir or checkpoints.is_run(path):
            directory = checkpoints.choose(path)
            width = checkpoints.head_width(directory) or 0
            names = checkpoints.read_label_names(directory)
        else:
            directory, weights = path, read_init_from(path, config["init_weights"])
            width, names = adapt.head_width(weights), weights.label_names
        data = shapes.of_section(config["data"], num_classes=width)
        run = Run(data, **config)
        run.check_evaluators(names)
        if weights is None:
            params = checkpoints.read_params(directory, run.abstract_state.params)
        else:
            params = pretrained(run, weights, None)
    writes = False
    if distributed.is_first():
        for note in run.notes():
            print(note, flush=True)
        print(f"Evaluates {directory}.", flush=True)
        writes = can_write(workdir)
    found: Scalars = {}
    place = workdir if writes else None
    try:
        with devices.enough_memory(devices.ADVICE_ON_EVALUATION):
            preemption.wait(run.compile_evaluators)
            # From here on a signal stops all at the same batch.
            distributed.check_same(str(directory), "weights")
            for evaluator in run.evaluators:
                result = evaluator.run(params, run.check)
                if distributed.is_first():
                    found |= result.scalars
                    tell_result(place, directory, evaluator.name, result)
    except Preempted:
        again = "what is not written above is lost: run the command again"
        raise Preempted(again) from None
    return {name: float(value) for name, value in found.items()}


def what_to_evaluate(workdir: epath.Path, init_from: str | None) -> epath.Path:
    """The run or the weights that `evaluate_only` is about."""
    if init_from is None:
        return workdir
    stored = workdirs.read_config(workdir)
    if not stored and (found := checkpoints.newest_config(workdir)) is not None:
        stored, _ = found
    began_there = "init_from" in stored and stored["init_from"] == init_from
    if began_there and checkpoints.is_run(workdir):
        return workdir
    return workdirs.absolute(init_from, of="--config.init_from")


def can_write(workdir: epath.Path) -> bool:
    """Whether results can be written; says if not."""
    try:
        workdirs.check_writable(workdir)
    except UserError as error:
        print(f"Results are printed, not written: {error.__cause__}.", flush=True)
        return False
    return True


def tell_result(
    workdir: epath.Path | None, directory: epath.Path, name: str, result: Result
) -> None:
    """Prints what an evaluation found and writes it to `workdir/evals`."""
    for key, value in result.scalars.items():
        print(f"{key}: {value}", flush=True)
    if workdir is not None:
        about = {"checkpoint": str(directory)}
        at = directory.name
        written = records.write(workdir, name, at, result, about, last=True)
        for path in (written.record, *written.pictures.values()):
            print(f"written to {path}", flush=True)
