"""Command lines with odd flags and values are run, or refused with exit code 2."""

import contextlib
import importlib
import io
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import cli
from tests.fuzz import mutation
from vit_jax import evaluation, flags, plan, training
from vit_jax.data import augment_sheet, check
from vit_jax.data.prepare import __main__ as prepare
from vit_jax.errors import UserError
from vit_jax.launch import checkout
from vit_jax.launch.sweep import command as sweep

pytestmark = pytest.mark.slow

COUNT = 600
RECIPE = str(cli.ROOT / "configs" / "quickstart.py")
WEIGHTS = str(cli.ROOT / "tests/formats/fixtures/torch/hugging-face")
OVERRIDES = (
    *("--config.seed=1", "--config.optim.learning_rate=3e-4", "--config.ema=none"),
    *("--config.data.mean=0.5,0.5,0.5", "--config.evals.few.type=fewshot"),
    *("--config.evals.test=none", "--config.model.name=mixer", "--config.batch_size=8"),
    *("--config.model.variant=S/16", "--config.data.name=folder", "--config.lr=1"),
)
# What a command is called with, and flags that it knows besides.
COMMANDS: dict[str, tuple[list[str], list[str]]] = {
    "main": (
        [f"--config={RECIPE}", "--workdir=w"],
        [
            *("--evaluate_only", "--evals=test", "--print_config", "--num_processes=2"),
            *("--process_id=0", "--coordinator_address=localhost:8476"),
        ],
    ),
    "plan": (
        [f"--config={RECIPE}", "--topology=v5e:2x2"],
        ["--slices=2", "--fast", "--search", "--price=1.2", "--num_examples=7"],
    ),
    "predict": (
        [f"--checkpoint={WEIGHTS}", "x.png"],
        ["--step=1", "--weights=a", "--top=2", "--json", "--image_size=8,8"],
    ),
    "convert": ([WEIGHTS], ["out", "--to=timm", "--step=1", "--image_size=32"]),
    "data.check": (
        [f"--config={RECIPE}", "--sample=2"],
        ["--output=o", "--verify_checksums"],
    ),
    "data.prepare": (
        ["train=photos", "--data_dir=d", "--name=mine", "--num_workers=1"],
        [
            *("--version=1.0.0", "--num_shards=2", "--on_bad=skip", "--labels=l.txt"),
            *("--file_format=tfrecord", "--drop_duplicates", "--label_column=a,b"),
        ],
    ),
    "data.catalog": ([], ["--help"]),
    "data.augment_sheet": (["x.png"], ["--output=sheet.png", "--seed=1"]),
    "launch.local": (
        [f"--config={RECIPE}", "--workdir=w", "--dry_run"],
        ["--processes=2", "--devices_per_process=2", "--grace=3", "--evaluate_only"],
    ),
    "launch.slurm": (
        [f"--config={RECIPE}", "--workdir=/w", "--dry_run"],
        [
            *("--nodes=2", "--gpus_per_node=8", "--time=8:00:00", "--partition=p"),
            *("--tasks_per_node=8", "--cpus_per_task=4", "--sbatch=--mem=0"),
            *("--account=a", "--python=python3"),
        ],
    ),
    "launch.gke": (
        [
            *(f"--config={RECIPE}", "--workdir=gs://b/w", "--image=i", "--dry_run"),
            *("--topology=v5e:4x4", "--name=n"),
        ],
        [
            *("--gpus=8", "--nodes=2", "--gpu_type=nvidia-h100-80gb", "--slices=2"),
            *("--max_restarts=3", "--volume=/x=pvc:y", "--namespace=n", "--spot"),
            *("--chips_per_host=4", "--grace=30", "--poll=5", "--service_account=s"),
        ],
    ),
    "launch.tpu": (
        [
            *(f"--config={RECIPE}", "--workdir=gs://b/w", "--zone=z", "--project=p"),
            *("--name=n", "--accelerator_type=v5litepod-16", "--dry_run"),
        ],
        [
            *("--spot", "--runtime_version=r", "--slices=2", "--max_restarts=1"),
            *("--create_flag=--x=y", "--ssh_flag=--z", "--keep", "--poll=5"),
        ],
    ),
    "launch.sweep": (
        [f"--config={RECIPE}", "--workdir=w", "--dry_run", "--grid=config.seed=0,1"],
        [
            *("--random=2", "--sample=config.optim.learning_rate=log:1e-4:1e-2"),
            *("--metric=test/loss", "--parallel=2", "--launcher=slurm", "--recipe"),
            *("--launcher_args=--nodes=2", "--table", "--random_seed=3"),
        ],
    ),
}
TEXTS = (
    *("", " ", "0", "-1", "1", "7", "1e9", "1e400", "nan", "inf", "1,2", "x", "ünï 中"),
    *("none", "true", "[", "{[]:1}", "(" * 3000, "9" * 5000, "a" * 3000, "a\nb"),
    *("\udcff", "\x1b[31m", "--", "-", "=", "~", "~nobody/x", "/dev/null", "a:b:c"),
    *(
        "s3://b/w",
        "https://x/y",
        "http:",
        "$(x)`y`'\"",
        "%s{0}",
        "test",
        "1:2",
        "log:a",
    ),
    *("0x", "1_000", "٣", "1" * 25, "-0", "+1", "8476", "localhost:0", "[::1]:99999"),
    *("v5e:0x0", "v5e:4x4x4", "v9:2x2", "local", "config.seed=", "config.seed=a,b"),
)
ODD = (
    *("--", "-", "=", "--=", "--=x", "---", "-x", "-h=1", "--config.", "--config.=1"),
    *("--config..=1", "--config.a", "--config.seed", "--config.seed.x=1", "--Config=x"),
    *(
        "--config.evals.x.split=test",
        "--config.model=1",
        "--confi=x",
        "x",
        "--\udcff=1",
    ),
    *("--config.data.mixture.a.name=x", "--config.evals.test.data.name=folder"),
    *(
        "--config.seed==1",
        "--config.seed= 1",
        "@x",
        "@/dev/null",
        "--no-fast",
        "--fast=1",
    ),
)


def changed(name: str, rng: np.random.Generator) -> list[str]:
    """A command line in which one to three arguments are others, missing or added."""
    needed, known = COMMANDS[name]
    has_config = any(argument.startswith("--config") for argument in needed)
    argv, extra = list(needed), [*known, *(OVERRIDES if has_config else ())]
    for _ in range(rng.integers(0, 3) if extra else 0):
        argv.append(extra[rng.integers(len(extra))])
    dry = "--dry_run" in argv
    for _ in range(rng.integers(1, 4)):
        i = int(rng.integers(len(argv) + 1))
        flag, _, _ = argv[i].partition("=") if i < len(argv) else ("x", "", "")
        text = TEXTS[rng.integers(len(TEXTS))]
        match rng.integers(6):
            case 0 if i < len(argv):
                del argv[i]
            case 1:
                argv[i : i + 1] = [f"{flag}={text}" if flag[:1] == "-" else text]
            case 2:
                argv[i : i + 1] = [flag, text]
            case 3:
                argv.insert(i, ODD[rng.integers(len(ODD))])
            case 4 if extra:
                flag = extra[rng.integers(len(extra))].partition("=")[0]
                argv.insert(i, f"{flag}={text}")
            case _:
                argv += argv[i : i + 1]
    return [*argv, "--dry_run"] if dry else argv


def function(name: str) -> Callable[[Sequence[str]], int | None]:
    """What runs the arguments of a command, without its name."""
    place = {"launch.sweep": ".command"} | dict.fromkeys(
        ("data.prepare", "data.catalog"), ".__main__"
    )
    module = importlib.import_module(f"vit_jax.{name}{place.get(name, '')}")
    if name.startswith("launch."):
        return lambda argv: flags.run(None, argv, lambda: module.main(argv))
    return lambda argv: module.main([name, *argv])


RUN: list[dict[str, Any]] = []  # configs of training that has been asked for


def noted(workdir: object, config: dict[str, Any], *_: object) -> dict[str, float]:
    RUN.append(config)
    return {}


def assert_obeyed(config: dict[str, Any], argv: Sequence[str]) -> None:
    """Each key that was set has its value, unless it was set again, or its section."""
    given = dict(a.removeprefix("--config.").split("=", 1) for a in argv if set_key(a))
    for key, text in given.items():
        value: Any = config
        names = key.split(".")
        while names and isinstance(value, dict) and names[0] in value:
            value = value[names.pop(0)]
        if names:  # an evaluation that was removed, or its parts
            assert "none" in (text, given.get(key.rpartition(".")[0])), key
        elif isinstance(value, tuple):
            assert ",".join(map(str, value)) == text
        elif isinstance(value, int | float):
            assert float(text) == value
        else:
            assert str(value).lower() == text.lower() or (not text and value is None)


def set_key(argument: str) -> bool:
    return argument.startswith("--config.") and "=" in argument


def logits(model: Any, images: np.ndarray) -> np.ndarray:
    return np.zeros((len(images), model.module.num_classes))


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Without what comes after the flags, and takes long."""
    from vit_jax import distributed, loading

    monkeypatch.setattr(training, "train_and_evaluate", noted)
    monkeypatch.setattr(evaluation, "evaluate_only", noted)
    monkeypatch.setattr(
        distributed, "joined", lambda *_, **__: contextlib.nullcontext()
    )
    monkeypatch.setattr(plan, "run", lambda *_: "planned")
    monkeypatch.setattr(check, "check", lambda *_: [])
    monkeypatch.setattr(prepare, "prepare", lambda options: None)
    monkeypatch.setattr(checkout, "pack", lambda *_: (b"", "digest"))
    monkeypatch.setattr(sweep, "open_study", lambda *_: None)
    monkeypatch.setattr(loading.Model, "__call__", logits)
    for rows in ("operation_rows", "transform_rows", "mixing_rows"):
        row = [("x", [("", np.zeros((128, 128, 3), np.uint8))])]
        monkeypatch.setattr(augment_sheet, rows, lambda *_, row=row: row)
    monkeypatch.chdir(tmp_path)

    term = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, term)  # `plan` takes it over


def outcome(run: Callable[[Sequence[str]], Any], argv: Sequence[str]) -> int:
    """The exit code; 2 comes with one message, and no other but 0 is possible."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = run(argv)
        except SystemExit as end:  # of argparse, after its help
            code = end.code
    said = err.getvalue()
    assert code in (0, 2), (code, argv)
    assert "Traceback" not in said + out.getvalue()
    if code == 2:
        assert said.count("error: ") >= 1, said
        assert len(said) < 12_000, said[:200]  # the command's help may be in it
    return code


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.usefixtures("stubbed")
def test_command_lines(name: str, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "x.png")
    run = function(name)

    def use(number: bytes) -> None:
        argv = changed(name, np.random.default_rng(int(number)))
        RUN.clear()
        try:
            code = outcome(run, argv)
            for config in RUN:
                assert_obeyed(config, argv)
        except Exception as error:
            raise AssertionError(f"{argv} ended in {error!r}") from error
        if code == 2:
            raise UserError("as it should be")

    numbers = (b"%d" % i for i in mutation.rounds(COUNT))
    used, _ = mutation.check(use, numbers, tmp_path / "input")
    assert used
