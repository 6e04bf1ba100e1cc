"""Training and evaluation: the order of things."""

import contextlib
import json
import shlex
from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath

from vit_jax import (
    checkpoints,
    class_names,
    curves,
    devices,
    distributed,
    metrics,
    preemption,
    progress,
    provenance,
    workdirs,
)
from vit_jax.bad_examples import BadExamples
from vit_jax.checkpoints import Checkpoints, adapt, takeover
from vit_jax.data import shapes
from vit_jax.errors import (
    BadExample,
    NonFiniteLossError,
    OutOfMemory,
    Preempted,
    UserError,
)
from vit_jax.evaluators import Result, records
from vit_jax.observer import Observer, Scalars, Tracer
from vit_jax.run import Run, meet
from vit_jax.state import TrainState, init_state
from vit_jax.timing import RunClock

# Called by the first process once nothing can be refused any more; see `train_from`.
Begin = Callable[[Run, int, list[str]], None]


def train_and_evaluate(
    workdir: epath.Path, config: dict[str, Any], begin: Begin | None = None
) -> Scalars:
    """Trains to the end, or until it is stopped; goes on where `workdir` left off.

    Args:
      workdir: of this run, new or not.
      config: complete, as `vit_jax.config.load` makes it.
      begin: called with the run, its step and its hosts just before it compiles, on the
        first process.

    Returns:
      On the first process the results of the last step by name.

    Raises:
      UserError: before anything is compiled, if something in the config or in the
        data cannot work; later, if the disk is full.
      NonFiniteLossError: when the loss or an update is not finite.
      Preempted: after a signal, once the state is saved.
    """
    clock = RunClock(workdir)
    with contextlib.ExitStack() as lock:
        with distributed.agreed():
            if distributed.is_first():
                lock.enter_context(workdirs.held(workdir))
        with distributed.agreed():
            run = Run(**config)
            run.check_data()
        train_saved(workdir, config, run, clock, begin)
        if not distributed.is_first():
            return {}
        results = summarize(workdir, run, clock.seconds())
        for warning in run.warnings():  # by now the first of these has scrolled away
            print(f"WARNING: {warning}", flush=True)
        return results


def train_saved(
    workdir: epath.Path,
    config: dict[str, Any],
    run: Run,
    clock: RunClock,
    begin: Begin | None,
) -> None:
    """Trains with checkpoints, and says where the run stands if it is ended."""
    # Leaving it waits for a save that is under way, whatever ends the run.
    with Checkpoints(
        workdir / "checkpoints",
        config,
        run.stream,
        run.dataset.label_names,
        **run.checkpoint,
    ) as saved:
        saved.check_best(run.result_names())
        try:
            with devices.enough_memory(devices.advice_on_training(config)):
                state = preemption.wait(first_state, run, saved)
                train_from(state, workdir, config, run, saved, clock, begin)
        except Preempted:
            saved.wait()
            where = where_it_stands(saved, workdir)
            raise Preempted(f"{where}; run the same command to go on") from None
        except BadExample as error:
            if distributed.alone():  # else it is this process alone that knows
                saved.wait()
            raise UserError(
                f"{error} {where_it_stands(saved, workdir)}; the same command goes on "
                "from there, with that flag or once the file is replaced"
            ) from error
        except OutOfMemory as error:
            if distributed.alone():
                saved.wait()
            raise UserError(f"{error}\n{where_it_stands(saved, workdir)}") from error
        except NonFiniteLossError as error:
            saved.wait()
            raise NonFiniteLossError(
                f"{error}\n{where_it_stands(saved, workdir)}. The same command would "
                "end in the same way: lower config.optim.learning_rate, lengthen its "
                "warmup_steps, or set clip_norm"
            ) from None


def train_from(
    state: TrainState,
    workdir: epath.Path,
    config: dict[str, Any],
    run: Run,
    saved: Checkpoints,
    clock: RunClock,
    begin: Begin | None = None,
) -> None:
    """Compiles, opens the logs and trains."""
    hosts = distributed.gather(provenance.host())
    with distributed.agreed():
        saved.check_space(run.abstract_state)
        if distributed.is_first():
            if begin is not None:
                begin(run, saved.position.step, hosts)
            workdirs.write_config(workdir, config)
            write_label_names(workdir, run.dataset.label_names, saved.position.step)
            write_class_weights(workdir, run)
            overview = metrics.parameter_overview(run.abstract_state.params)
            workdirs.write_atomically(workdir / "parameters.txt", overview + "\n")
            announce(workdir, run, saved, overview)
    # Ahead of time, in a thread: a signal need not wait for the compiler.
    train_step = preemption.wait(run.compile_train_step)
    preemption.wait(run.compile_evaluators)
    bad_examples = int(jax.device_get(state.bad_examples))
    observed = observe(workdir, run, saved, clock.seconds(), bad_examples)
    with contextlib.closing(observed) as observer:
        observer.logger.write_config(saved.position.step, config)
        distributed.gather("")  # from here on a signal stops all after the same step
        train(run, train_step, state, saved, observer, workdir)


def write_label_names(
    workdir: epath.Path, names: tuple[str, ...] | None, step: int
) -> None:
    """Writes labels.json.

    Raises:
      UserError: if the run has done steps with other names.
    """
    if names is None:
        return
    before = checkpoints.read_label_names(workdir / "checkpoints" / str(step))
    if step > 0 and before not in (None, names):
        raise UserError(
            f"{workdir} has learned the classes {class_names.listed(before or ())}; "
            f"those of the data now are {class_names.listed(names)}: give them their "
            "names and their order back, or use another --workdir"
        )
    text = json.dumps(names, indent=0, ensure_ascii=False) + "\n"
    workdirs.write_atomically(workdir / workdirs.LABEL_NAMES, text)


def write_class_weights(workdir: epath.Path, run: Run) -> None:
    """Writes class_weights.json, where weights were made of the numbers of images."""
    if run.class_counts is None or run.class_weights is None:
        return
    known = run.dataset.label_names or ()
    names = [*known, *map(str, range(len(known), run.num_classes))]
    counted = zip(names, run.class_counts.tolist(), run.class_weights, strict=True)
    lines = [{"class": c, "images": n, "weight": w} for c, n, w in counted]
    text = json.dumps(lines, indent=1, ensure_ascii=False) + "\n"
    workdirs.write_atomically(workdir / workdirs.CLASS_WEIGHTS, text)


def train(
    run: Run,
    train_step: Any,
    state: TrainState,
    saved: Checkpoints,
    observer: Observer,
    workdir: epath.Path,
) -> None:
    """The loop: from the step of `saved.position` to the last."""
    position, timer = saved.position, observer.timer
    profile = run.profile if distributed.is_first() else None
    if position.pending is not None:  # it was stopped during an evaluation
        finish_step(run, state, saved, observer, workdir, position.pending, stop=False)
    batches = run.batches(position.step, observer.bad_examples.found)
    with timer.waiting():
        batch = next(batches, None)
    with (
        contextlib.closing(batches),
        contextlib.closing(Tracer(workdir, profile)) as tracer,
        jax.transfer_guard("disallow"),
    ):
        for step in range(position.step + 1, run.total_steps + 1):
            tracer.before(step)
            distributed.progress(step)
            state, scalars = train_step(state, batch)  # returns at once
            observer.push(step, scalars)  # reads the step before; raises if it was bad
            tracer.after(step, state)
            with timer.waiting():
                batch = next(batches, None)  # None: the last, or a signal ended them
            stop = run.votes.stop()
            if run.pauses_at(step) or saved.due(step) or stop:
                # From here on this step is known to be good: never save a bad one.
                position.step, line = step, observer.drain()
                finish_step(run, state, saved, observer, workdir, line, stop=stop)


def finish_step(
    run: Run,
    state: TrainState,
    saved: Checkpoints,
    observer: Observer,
    workdir: epath.Path,
    line: Scalars,
    *,
    stop: bool,
) -> None:
    """What is due after a step: evaluations, its line, its checkpoint, in this order.

    The records of evaluations come before the line; a run that is killed in between
    writes the same ones again.

    The line is durable before the checkpoint can be, so a run that resumes from it
    lacks no line. An evaluation that a signal cuts short is owed: its checkpoint holds
    the line so far, and the resumed run evaluates first.

    Raises:
      Preempted: after a signal, with the state being saved.
      NonFiniteLossError: from an evaluation; the state is not saved.
    """
    position, step = saved.position, saved.position.step
    owed = position.pending is not None
    with observer.timer.pause():
        try:
            evaluated = run.evaluate(state, step)
        except Preempted:
            position.pending = line
            saved.save(state)
            raise
        except NonFiniteLossError as error:
            if line:
                observer.logger.write(step, line)
            raise NonFiniteLossError(f"step {step}: {error}") from error
        position.pending = None
        results: Scalars = {}
        for name, result in evaluated.items():
            results |= result.scalars
            if distributed.is_first():
                written = records.write(
                    workdir,
                    name,
                    str(step),
                    result,
                    {"step": step},
                    last=step == run.total_steps,
                )
                pictures = {f"{name}/{what}": x for what, x in written.drawn.items()}
                observer.logger.write_images(step, pictures)
        if line or results:
            observer.write(step, line | results)
        stop = (stop or run.votes.stop()) and step < run.total_steps
        best = saved.improves(results)
        if saved.due(step) or best or stop or owed or step == run.total_steps:
            observer.flush()
            saved.save(state)
        if stop:
            raise Preempted


def first_state(run: Run, saved: Checkpoints) -> TrainState:
    """The state to start from, by the first of these that there is:

    1. the newest good checkpoint of this workdir;
    2. `config.resume`: the newest full state of another workdir;
    3. `config.init_from`: the weights of another workdir or library, at step 0;
    4. the initialisation that the seed says.
    """
    if (state := saved.restore(run.abstract_state)) is not None:
        if saved.position.step > run.total_steps:
            raise UserError(
                f"{saved.directory} is at step {saved.position.step}, past the "
                f"{run.total_steps} of this config: raise config.total_steps, or use "
                "another --workdir"
            )
        return state
    if run.resume is not None:
        directory = workdirs.absolute(run.resume) / "checkpoints"
        if not directory.is_dir():
            raise UserError(f"config.resume: there is no {directory}")
        state = saved.restore(run.abstract_state, directory)
        if state is None:
            raise UserError(f"config.resume: no checkpoint in {directory}")
        return state
    state = init_state(run.program.initialize, run.abstract_state)
    if run.init_from is not None:
        path = workdirs.absolute(run.init_from, of="--config.init_from")
        weights = read_init_from(path, run.init_weights)
        params = pretrained(run, weights, state.params)
        ema_params = None
        if state.ema_params is not None:
            ema_params = jax.tree.map(lambda x: x.copy(), params)
        state = state.replace(params=params, ema_params=ema_params)  # type: ignore[attr-defined]
    return state


def read_init_from(path: epath.Path, which: str | None) -> adapt.Weights:
    """The weights of `config.init_from`, of which `config.init_weights` says which."""
    with distributed.agreed():
        return adapt.read_weights(
            path, weights=which, progress=progress.of_reading(path)
        )


def pretrained(run: Run, source: adapt.Weights, initial: Any) -> Any:
    """The weights of `config.init_from`, made to fit this model; the first says how.

    Args:
      run: names them.
      source: what was read.
      initial: the parameters at the start, for what they lack; None keeps the head and
        its classes as they are.
    """
    fields = {**run.model_fields, "num_classes": run.num_classes}
    names = source.label_names if initial is None else run.dataset.label_names
    with distributed.agreed():
        try:
            arrays, said = adapt.adapt(
                source,
                fields,
                run.shape.image_shape[:2],
                head="keep" if initial is None else run.init_head,
                posemb=run.init_posemb,
                label_names=names,
            )
        except UserError as error:
            if differing := takeover.model_flags(source, fields):
                raise UserError(
                    f"{error}\nThe model of {source.path} is had with\n  "
                    + " ".join(differing)
                ) from error
            raise
    here = (run.shape.mean, run.shape.std)
    if differing := takeover.normalization_flags(source, here):
        said.append(
            f"its images were normalised otherwise: {' '.join(differing)} does the same"
        )
    if distributed.is_first():
        print(f"Starts from {source.path}.", *said, sep="\n  ", flush=True)
    return adapt.place(arrays, run.abstract_state.params, initial)


def observe(
    workdir: epath.Path,
    run: Run,
    saved: Checkpoints,
    elapsed_s: float = 0.0,
    bad_examples: int = 0,
) -> Observer:
    """Opens the logs; lines of steps that will be done again are dropped.

    Args:
      workdir: of the run.
      run: see `Run`.
      saved: says where the run stands.
      elapsed_s: what the run has taken so far.
      bad_examples: those that the state counts so far.
    """
    position = saved.position
    kept = position.step if position.pending is None else position.step - 1
    logger = metrics.MetricLogger(
        workdir, restored_step=kept, total_steps=run.total_steps
    )
    return Observer(
        logger,
        run.timer(position.step, elapsed_s),
        BadExamples(
            workdir,
            run.dataset,
            restored_step=position.step,
            count=bad_examples,
            tell=logger.print,
        ),
        batch_size=run.batch_size,
        num_examples=run.dataset.num_examples,
        log_every=run.log_every,
        total_steps=run.total_steps,
    )


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
        # A teacher may be gone too, and is not asked.
        untaught = {**config["distill"], "teacher": None}
        run = Run(data, **{**config, "distill": untaught})
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
            distributed.gather("")  # from here on a signal stops all at the same batch
            for evaluator in run.evaluators:
                result = evaluator.run(params, run.votes.check)
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


def announce(workdir: epath.Path, run: Run, saved: Checkpoints, overview: str) -> None:
    """Says what is about to run, before the first compilation makes it silent."""
    device = run.mesh.devices.flat[0].device_kind
    axes = " x ".join(f"{axis} {size}" for axis, size in run.mesh.shape.items())
    step = saved.position.step
    print(
        f"{overview.splitlines()[-1].removeprefix('Total: ')} of parameters; "
        f"{run.dataset.num_examples:,} training images, {run.num_classes} classes; "
        f"{run.total_steps:,} steps of {run.batch_size} on {run.mesh.size} x {device} "
        f"({axes}).\n"
        + "".join(f"{note}\n" for note in run.notes())
        + "".join(f"WARNING: {warning}\n" for warning in run.warnings())
        + (f"Goes on from step {step}. " if step else "")
        + "".join(f"Note: {note}.\n" for note in saved.notes)
        + f"Compiling; logs go to {workdir}.",
        flush=True,
    )


def where_it_stands(saved: Checkpoints, workdir: epath.Path) -> str:
    """What a run that did not finish has saved."""
    step = saved.latest_step()
    if step is None:
        return f"nothing was saved yet in {workdir}"
    return f"{workdir} is saved at step {step}"


def curves_of(workdir: epath.Path, lines: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Writes the learning curves; their path, by "curves"."""
    path = workdir / curves.FILE
    picture = curves.draw(lines, title=f"{workdir.name}: learning curves")
    if picture is None:
        return {}
    try:
        workdirs.write_atomically(path, records.to_png(picture))
    except UserError as error:  # all else is written: no reason to fail
        print(f"WARNING: {error}", flush=True)
        return {}
    return {"curves": str(path)}


def pictures_of(workdir: epath.Path, run: Run) -> dict[str, str]:
    """The paths of what the last evaluations have drawn, by NAME/WHAT."""
    return {
        f"{evaluator.name}/{what}": str(path)
        for evaluator in run.evaluators
        for what, path in records.pictures(
            workdir, evaluator.name, str(run.total_steps)
        ).items()
    }


def summarize(workdir: epath.Path, run: Run, seconds: float) -> Scalars:
    """The last words: results, where things are, what to try next.

    Returns:
      The last line of metrics.jsonl, without its step and times.
    """
    path = workdir / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    last = lines[-1] if lines else {}
    prefixes = [f"{evaluator.name}/" for evaluator in run.evaluators]
    results = {
        prefix[:-1]: {
            key.removeprefix(prefix): value
            for key, value in last.items()
            if key.startswith(prefix)
        }
        for prefix in prefixes
    }
    metrics.print_summary(
        step=run.total_steps,
        results=results,
        seconds=seconds,
        places={
            "checkpoints": str(workdir / "checkpoints"),
            "metrics": str(path),
            **curves_of(workdir, lines),
            **pictures_of(workdir, run),
        },
        # Of the parent: runs then have their names, and stand beside their neighbours.
        next_command=f"tensorboard --logdir={shlex.quote(str(workdir.parent))}",
    )
    return {
        name: float(value)
        for name, value in last.items()
        if name != "step" and not name.startswith("timing/")
    }
