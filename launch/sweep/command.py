"""python -m vit_jax.launch.sweep --config=PATH.py[:ARG] --workdir=DIR [flags]

Runs vit_jax.main for each point of a sweep, each in a workdir of its own below DIR, and
writes sweep.csv, sweep.md and sweep.png there, the best trial first. The same command
goes on after a stop, and so does --workdir=DIR alone. The points are one of

  --grid config.optim.learning_rate=1e-3,3e-4 --grid config.seed=0,1,2
  --random 20 --sample config.optim.learning_rate=log:1e-4:1e-2
  --optuna 20 --sample config.model.depth=int:2:8
  what sweep() in PATH.py yields, such as {"optim.learning_rate": 1e-3, "seed": 0}

A sample is log:LOW:HIGH, uniform:LOW:HIGH, int:LOW:HIGH or choice:A,B,...; --grid with
--random runs each sample at each point of the grid, and --grid with --recipe each point
of sweep().

  --config.KEY=VALUE   overrides a key in all trials, such as --config.total_epochs=4
"""

import argparse
import functools
import json
import os
import shlex
import sys
from collections.abc import Sequence

from etils import epath

from vit_jax import config as configs
from vit_jax import limits, recipes, workdirs
from vit_jax.errors import Preempted, UserError, did_you_mean
from vit_jax.launch import job
from vit_jax.launch.sweep import (
    clusters,
    groups,
    picture,
    places,
    points,
    table,
    trials,
)
from vit_jax.launch.sweep.progress import Progress
from vit_jax.launch.sweep.runner import Listed, Runner, Source
from vit_jax.launch.sweep.study import Study
from vit_jax.launch.sweep.table import Row
from vit_jax.launch.sweep.trials import Trial

# What `write_tables` may write besides sweep.csv and sweep.md.
_TABLES = {"sweep_settings.csv", "sweep_groups.csv"}
_COMMAND = "sweep_command.json"
_POINTS = ("--grid", "--random", "--optuna", "--recipe", "--sample", "--random_seed")
_SHOWN = 5  # runs that a sentence names


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns its exit code.

    Raises:
      UserError: before anything is started, if something is wrong with the flags, a
        trial or the directory.
      Preempted: after a signal.
    """
    argv = repeated(argv)
    base, flags = parse(argv)
    metric = chosen_metric(base, flags.metric)
    directory = trials.log_directory(base.workdir)
    wanted = find_points(base, flags)
    listed = trials.unique(trials.make(base, point) for point in wanted)
    check_metric(listed, metric)
    if flags.dry_run:
        dry_run(listed, flags, metric)
        return 0
    if flags.table:
        found = open_study(base, flags, metric).trials if flags.optuna else listed
        write_tables(found, base, metric)
        return 0
    lock = workdirs.lock(epath.Path(directory))  # held until the process ends
    left = unfinished(listed, metric)
    source = open_study(base, flags, metric) if flags.optuna else Listed(listed, left)
    for trial in source.trials:
        trials.refuse_changed(trial, trials.look(trial, metric))
    workdirs.write_atomically(epath.Path(directory / _COMMAND), json.dumps(list(argv)))
    if flags.launcher == "slurm":
        clusters.submit_to_slurm(left, directory, flags)
        return 0
    codes = run(source, flags, metric)
    lock.close()
    return verdict(write_tables(source.trials, base, metric), codes)


def repeated(argv: Sequence[str]) -> list[str]:
    """A command line without --config, after that which its sweep was begun with.

    Raises:
      UserError: if that is not known, or other trials are asked for.
    """
    names = [argument.partition("=")[0] for argument in argv]
    if "--config" in names or "-h" in names or "--help" in names:
        return list(argv)
    parser = job.Parser("sweep", None)
    parser.add_argument("--workdir")
    workdir = parser.parse_known_args(list(argv))[0].workdir
    if not workdir:
        return list(argv)  # that is what is to be said first
    path = trials.log_directory(workdir) / _COMMAND
    if not path.exists():
        raise UserError(
            f"--config is not given, and this machine sees no {path}, the command of "
            "an earlier sweep: give --config and the points"
        )
    for name in names:
        if name in _POINTS or name.startswith("--config."):
            raise UserError(
                f"{name} asks for other trials than {path} says: give --config and "
                "all points again"
            )
    return [*json.loads(path.read_text()), *argv]


def parse(argv: Sequence[str]) -> tuple[job.Job, argparse.Namespace]:
    """Reads the command line.

    Raises:
      UserError: for flags that do not exist or do not go together.
    """
    parser = job.Parser("sweep", __doc__)
    add = parser.add_argument
    add("--grid", action="append", default=[], metavar="KEY=A,B", help="values to try")
    add("--random", type=int, metavar="N", help="N points at random")
    add("--optuna", type=int, metavar="N", help="N points that Optuna proposes")
    add("--recipe", action="store_true", help="what sweep() yields, with --grid too")
    add(
        "--sample",
        action="append",
        default=[],
        metavar="KEY=KIND:...",
        help="what --random and --optuna vary: log:LOW:HIGH, uniform:LOW:HIGH, "
        "int:LOW:HIGH or choice:A,B,...",
    )
    add("--random_seed", type=int, default=0, help="of --random and --optuna (0)")
    add("--metric", help="to compare by, such as test/accuracy or test/loss")
    add("--parallel", type=int, help="trials at a time (1; Slurm: no limit)")
    add("--table", action="store_true", help="write the tables, run nothing")
    add("--launcher", default="local", help="local, slurm, gke or tpu")
    add("--launcher_args", default="", help='flags of it, as in "--nodes=2"')
    base, flags = job.parse(parser, argv)
    if flags.evaluate_only:
        raise UserError(
            "--evaluate_only: a sweep trains; evaluate a trial by itself with "
            "vit_jax.main and its workdir"
        )
    if flags.launcher not in clusters.LAUNCHERS:
        hint = did_you_mean(flags.launcher, clusters.LAUNCHERS)
        raise UserError(f"--launcher={flags.launcher}: {hint}")
    if flags.launcher == "local" and flags.launcher_args:
        raise UserError("--launcher_args: --launcher=local takes none")
    for name in ("parallel", "random", "optuna"):
        value = getattr(flags, name)
        if value is not None and not 1 <= value <= limits.TRIALS:
            raise UserError(
                f"--{name}={value}: it should be at least 1, and at most "
                f"{limits.TRIALS:,}"
            )
    clusters.launcher_args(flags)
    check_points(flags)
    return base, flags


def check_points(flags: argparse.Namespace) -> None:
    """Refuses flags for the points of a sweep that do not go together."""
    if flags.recipe and (flags.random or flags.optuna):
        raise UserError("--recipe says the points: give no --random or --optuna")
    if flags.optuna and (flags.random or flags.grid):
        raise UserError("--optuna chooses the points: give no --random or --grid")
    if bool(flags.sample) != bool(flags.random or flags.optuna):
        raise UserError(
            "--sample says what --random N or --optuna N vary: give one of these, and "
            "at least one --sample"
        )
    if flags.optuna and flags.launcher == "slurm":
        raise UserError(
            "--optuna needs results before it proposes more: --launcher=slurm submits "
            "all trials at once; use --random"
        )


def chosen_metric(base: job.Job, given: str | None) -> str:
    """The metric to compare by: given, the config's own, or an accuracy."""
    config = configs.load(base.config, trials.pairs(base.arguments)).to_dict()
    accuracies = [f"{name}/accuracy" for name in config["evals"]]
    return given or config["checkpoint"]["best"] or [*accuracies, "train/loss"][0]


def check_metric(listed: Sequence[Trial], metric: str) -> None:
    """Refuses a metric that a trial would not log, before any starts.

    Raises:
      UserError: with the names of what it would log.
    """
    for trial in listed:
        names = configs.results.names(trial.config)
        if metric in names:
            continue
        hint = did_you_mean(metric, names)
        if "valid names" not in hint:
            hint = f"{hint} The valid names: {', '.join(sorted(names))}"
        raise UserError(
            f"--metric={metric}: trial {trial.name} would log no such result; {hint}"
        )


def find_points(base: job.Job, flags: argparse.Namespace) -> list[points.Point]:
    """The points of a grid, at random, or of the recipe; for Optuna, an example.

    Raises:
      UserError: if there are none.
    """
    space = points.distributions(flags.sample)
    if flags.optuna:
        return [{key: distribution.at(0.5) for key, distribution in space.items()}]
    if flags.recipe:
        found = points.of_recipe(base.config)
        if not found:
            raise UserError(f"--recipe: {base.config} defines no sweep()")
        return points.product(found, points.grid(flags.grid))
    if flags.random:
        sampled = points.random(space, flags.random, flags.random_seed)
        return points.product(sampled, points.grid(flags.grid))
    if flags.grid:
        return points.grid(flags.grid)
    if found := points.of_recipe(base.config):
        return found
    file, _ = recipes.split(base.config)
    raise UserError(
        "nothing to sweep over: give --grid config.seed=0,1,2, or --random N or "
        f"--optuna N with --sample, or define sweep() in {file}"
    )


def open_study(base: job.Job, flags: argparse.Namespace, metric: str) -> Study:
    """What Optuna knows of this sweep.

    Raises:
      UserError: if that is to be shown, and there is nothing.
    """
    directory = trials.log_directory(base.workdir)
    if flags.table and not (directory / Study.FILE).exists():
        raise UserError(f"--table: there is no {directory / Study.FILE} yet")
    return Study(
        directory,
        points.distributions(flags.sample),
        flags.optuna,
        metric=metric,
        seed=flags.random_seed,
        make=functools.partial(trials.make, base),
    )


def dry_run(listed: Sequence[Trial], flags: argparse.Namespace, metric: str) -> None:
    """Prints the command of each trial that would be run."""
    left = unfinished(listed, metric)
    if flags.optuna:
        print(f"# {flags.optuna} trials that Optuna proposes one by one, such as")
    else:
        print(f"# {len(left)} trials; {len(listed) - len(left)} more have ended.")
    if flags.launcher == "slurm":
        print(clusters.slurm_script(left, flags), end="")
        return
    for trial in left:
        print(shlex.join(clusters.command(trial, flags)))


def unfinished(found: Sequence[Trial], metric: str) -> list[Trial]:
    """The trials that are not at their end."""
    ends = ("finished", "diverged")
    return [t for t in found if trials.look(t, metric).state not in ends]


def run(source: Source, flags: argparse.Namespace, metric: str) -> dict[str, int]:
    """Runs what is to be run; returns the exit codes of the trials that failed.

    Raises:
      Preempted: after a signal.
    """
    parallel = flags.parallel or 1
    at_hand = [places.Place()] * parallel
    if flags.launcher == "local":
        at_hand = places.share_out(parallel, os.environ)
    look = functools.partial(trials.look, metric=metric)
    states = [look(trial).state for trial in source.trials]
    ended = sum(state in ("finished", "diverged") for state in states)
    print(
        f"{source.left()} trials to run, {parallel} at a time; {ended} have "
        "ended before.",
        flush=True,
    )
    runner = Runner(
        source,
        at_hand,
        command=lambda trial: clusters.command(trial, flags),
        look=look,
        progress=Progress(metric, look),
    )
    runner.run()
    if runner.stopped:
        raise Preempted("run the same command to go on")
    return runner.codes


def write_tables(found: Sequence[Trial], base: job.Job, metric: str) -> list[Row]:
    """Writes and announces the tables and the picture; returns the ranked rows.

    Raises:
      UserError: if nothing has been logged, or not this metric.
    """
    directory = trials.log_directory(base.workdir)
    rows = [Row(trial, trials.look(trial, metric)) for trial in found]
    rows = table.ranked(rows, metric)
    if rows and rows[0].status.state == "finished":
        trials.check_metric(rows[0].trial, metric)
    title = f"Sweep of {base.config}"
    text = table.as_markdown(rows, metric, title)
    files = {"sweep.csv": table.as_csv(rows, metric), "sweep.md": text}
    if found_settings := table.ranked_settings(rows, metric):
        files["sweep_settings.csv"] = table.settings_csv(found_settings, metric)
    if rows and (group_of := groups.of_recipe(base.config)):
        found_groups = groups.grouped(rows, group_of)
        text = f"{text}\n{groups.as_markdown(found_groups, metric)}"
        files["sweep.md"] = text
        files["sweep_groups.csv"] = groups.as_csv(found_groups, metric)
    if others := not_asked_for(base, found):
        text = f"{text}\n{others}\n"
        files["sweep.md"] = text
    for name, content in files.items():
        workdirs.write_atomically(epath.Path(directory / name), content)
    for name in _TABLES - files.keys():  # of an earlier command, with other trials
        (directory / name).unlink(missing_ok=True)
    if picture.is_possible():
        picture.draw(rows, metric, title, directory / "sweep.png")
        files["sweep.png"] = ""
    print(f"\n{text}")
    print("Written to " + ", ".join(str(directory / name) for name in files))
    if not picture.is_possible():
        print("For a picture: pip install matplotlib, and this command with --table")
    return rows


def not_asked_for(base: job.Job, found: Sequence[Trial]) -> str:
    """What else lies in the folder of the sweep, as a sentence; "" if nothing does."""
    folder = workdirs.absolute(base.workdir)
    names = {trial.name for trial in found}
    others = sorted(
        path.name
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.name not in names and (path / "config.json").exists()
    )
    if not others:
        return ""
    shown = ", ".join(others[:_SHOWN]) + (", ..." if len(others) > _SHOWN else "")
    return (
        f"{len(others)} more runs in {folder} are not in the tables, since this "
        f"command does not ask for them: {shown}"
    )


def verdict(rows: Sequence[Row], codes: dict[str, int]) -> int:
    """The exit code of a sweep; says which trials have not finished.

    That of the first trial that failed, one that is worth a restart before others:
    what starts the sweep again then does so if it can help.
    """
    failed = [row for row in rows if row.status.state != "finished"]
    if not failed:
        return 0
    print(f"{len(failed)} of {len(rows)} trials have failed:", file=sys.stderr)
    for row in failed:
        words = row.status.message or f"see {row.trial.log}"
        print(f"  {row.trial.name}: {row.status.state}: {words}", file=sys.stderr)
    ends = [codes[n] if (n := row.trial.name) in codes else 70 for row in failed]
    code = next((c for c in ends if job.should_restart(c)), ends[0])
    return code if 0 < code < 128 else 1
