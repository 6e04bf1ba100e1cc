"""What a run says: before its first step, after its last, and when it stops."""

import json
import shlex
from collections.abc import Sequence
from typing import Any

from etils import epath

from vit_jax import curves, metrics, workdirs
from vit_jax.checkpoints import Checkpoints
from vit_jax.errors import UserError
from vit_jax.evaluators import records
from vit_jax.observer import Scalars
from vit_jax.run import Run


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
