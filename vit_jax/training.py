"""Training and evaluation: the order of things."""

import contextlib
import json
from collections.abc import Callable
from typing import Any

import jax
from etils import epath

from vit_jax import (
    checkpoints,
    class_names,
    devices,
    distributed,
    initial,
    lookahead,
    metrics,
    preemption,
    provenance,
    summary,
    workdirs,
)
from vit_jax.bad_examples import BadExamples
from vit_jax.checkpoints import Checkpoints
from vit_jax.errors import (
    BadExample,
    NonFiniteLossError,
    OutOfMemory,
    Preempted,
    Stop,
    UserError,
    WorkerLost,
)
from vit_jax.evaluators import records
from vit_jax.observer import Observer, Scalars, Tracer
from vit_jax.run import Run
from vit_jax.state import TrainState
from vit_jax.timing import RunClock
from vit_jax.votes import NOTHING, OutOfData, Vote

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
            preemption.wait(run.check_data)
        train_saved(workdir, config, run, clock, begin)
        if not distributed.is_first():
            return {}
        results = summary.summarize(workdir, run, clock.seconds())
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
                state = preemption.wait(initial.first_state, run, saved)
                train_from(state, workdir, config, run, saved, clock, begin)
        except Preempted:
            saved.wait()
            where = summary.where_it_stands(saved, workdir)
            raise Preempted(f"{where}; run the same command to go on") from None
        except WorkerLost as error:
            if distributed.alone():
                saved.wait()
            raise WorkerLost(
                f"{error} {summary.where_it_stands(saved, workdir)}; the same command "
                "goes on from there"
            ) from error
        except BadExample as error:
            if distributed.alone():  # else it is this process alone that knows
                saved.wait()
            raise UserError(
                f"{error} {summary.where_it_stands(saved, workdir)}; the same command "
                "goes on from there, with that flag or once the file is replaced"
            ) from error
        except OutOfMemory as error:
            if distributed.alone():
                saved.wait()
            raise UserError(
                f"{error}\n{summary.where_it_stands(saved, workdir)}"
            ) from error
        except NonFiniteLossError as error:
            saved.wait()
            raise NonFiniteLossError(
                f"{error}\n{summary.where_it_stands(saved, workdir)}. The same command "
                "would end in the same way: lower config.optim.learning_rate, lengthen "
                "its warmup_steps, or set clip_norm"
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
            summary.announce(workdir, run, saved, overview)
    # Ahead of time, in a thread: a signal need not wait for the compiler.
    position, train_step = saved.position, None
    if position.step < run.total_steps:
        train_step = preemption.wait(run.compile_train_step)
    if position.step < run.total_steps or position.pending is not None:
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
        finish_step(run, state, saved, observer, workdir, position.pending, NOTHING)
    batches = run.batches(position.step, observer.bad_examples.found)
    with timer.waiting():
        batch = next(batches, None)
    with (
        contextlib.closing(batches),
        lookahead.ends_together(batches, saved.wait),
        contextlib.closing(Tracer(workdir, profile)) as tracer,
        jax.transfer_guard("disallow"),
    ):
        for step in range(position.step + 1, run.total_steps + 1):
            if batch is None:
                raise Preempted  # a signal came while the first one was waited for
            tracer.before(step)
            distributed.progress(step)
            state, scalars = train_step(state, batch)  # returns at once
            observer.push(step, scalars)  # reads the step before; raises if it was bad
            tracer.after(step, state)
            saved.check()
            try:
                with timer.waiting():
                    batch = next(batches, None)  # None: the last, or a signal came
            except (OSError, Stop):
                if distributed.alone():  # of several, see `lookahead`
                    position.step, line = step, observer.drain()
                    save_unfinished(run, state, saved, observer, line)
                raise
            vote = run.votes.ask(lost=batches.failure is not None)
            if vote.lost:
                position.step, line = step, observer.drain()
                save_unfinished(run, state, saved, observer, line)
                raise OutOfData
            if run.pauses_at(step) or saved.due(step) or any(vote):
                # From here on this step is known to be good: never save a bad one.
                position.step, line = step, observer.drain()
                finish_step(run, state, saved, observer, workdir, line, vote)


def save_unfinished(
    run: Run, state: TrainState, saved: Checkpoints, observer: Observer, line: Scalars
) -> None:
    """Saves a step after which no batch can be read; its evaluations are owed."""
    position = saved.position
    if run.pauses_at(position.step):
        position.pending = line
    elif line:
        observer.write(position.step, line)
    observer.flush()
    saved.save(state)


def finish_step(
    run: Run,
    state: TrainState,
    saved: Checkpoints,
    observer: Observer,
    workdir: epath.Path,
    line: Scalars,
    vote: Vote,
) -> None:
    """What is due after a step: evaluations, its line, its checkpoint, in this order.

    The records of evaluations come before the line; a run that is killed in between
    writes the same ones again.

    The line is durable before the checkpoint can be, so a run that resumes from it
    lacks no line. An evaluation that a signal cuts short is owed: its checkpoint holds
    the line so far, and the resumed run evaluates first. So it is while an evaluation
    goes on after a save that a signal asked for.

    Raises:
      Preempted: after a signal, with the state being saved.
      OutOfData: likewise, if a process has no more data to train on.
      NonFiniteLossError: from an evaluation; the state is not saved.
    """
    position, step = saved.position, saved.position.step
    owed = position.pending is not None

    def save_owing() -> None:
        nonlocal owed
        owed, position.pending = True, line
        observer.flush()
        saved.save(state)

    with observer.timer.pause():
        try:
            if run.pauses_at(step) and not distributed.alone():
                run.check(save_owing)  # before it needs data that may not be there
            evaluated = run.evaluate(state, step, lambda: run.check(save_owing))
        except (Preempted, OutOfData, WorkerLost) as error:
            if not isinstance(error, WorkerLost) or distributed.alone():
                save_owing()
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
        vote = vote if vote.stop else Vote(*map(max, vote, run.votes.ask()))
        stop, last = vote.stop and step < run.total_steps, step == run.total_steps
        best = saved.improves(results)
        if saved.due(step) or best or any(vote) or owed or last:
            observer.flush()
            saved.save(state)
        if vote.lost:
            raise OutOfData
        if stop:
            raise Preempted


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
