"""A run that is killed, however often, ends as the run that was not.

Everything random is on: dropout, stochastic depth, mixup and CutMix, augmentation,
accumulation and the average. The processes are real, and the kills come from outside.
"""

import functools
import hashlib
import json
import math
import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import cli, once
from vit_jax import config, data, models

STEPS = 30
# The campaign of a release: VIT_JAX_KILLS=30 make test-slow.
KILLS = int(os.environ.get("VIT_JAX_KILLS", "2"))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The run without a kill, and how many seconds another one takes, about."""
    workdir = once.everything(tmp_path_factory)
    last = cli.metric_lines(workdir, timing=True)[-1]
    return workdir, last["timing/elapsed_s"] + 2  # since its modules were imported


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_resume_is_exact(
    number: signal.Signals, uninterrupted: tuple[Path, float], tmp_path: Path
) -> None:
    """KILLS kills, over as many runs as it takes; each run ends as the whole one."""
    whole, seconds = uninterrupted
    check_randomness(whole)
    random = np.random.default_rng(KILLS)
    runs = kills = uncommitted = 0
    while kills < KILLS or runs == 0:
        workdir = tmp_path / str(runs)
        args = f"--config={cli.EVERYTHING}", f"--workdir={workdir}"
        code, on_signal = None, set[int]()
        while code != 0:
            # The first kill is while a checkpoint is being written, and so are those
            # after it until one has come in time.
            at = random.uniform(0, seconds)
            writing = functools.partial(half_written, workdir)
            early = number == signal.SIGKILL and not uncommitted
            moment = writing if early else at.__lt__
            if kills >= KILLS and not early:
                moment = never
            code, output = cli.run_and_signal(moment, number, *args)
            assert code in (-number, 75, 0), output
            if code == -signal.SIGTERM:
                # Before the handler was there, or while Python took itself down.
                assert not output or "Finished at step" in output
            if code == 75:
                assert "run the same command" in output
                assert_nothing_lost(workdir)
                on_signal.update(cli.saved_steps(workdir)[-1:])
            uncommitted += code == -signal.SIGKILL and half_written(workdir)
            kills += code != 0
        runs += 1
        assert_same_run(workdir, whole, on_signal)
        assert not half_written(workdir)  # what a kill left was cleared away
    print(f"{kills} kills, {uncommitted} of them with an uncommitted checkpoint "
          f"directory, in {runs} runs")  # fmt: skip
    assert uncommitted or number != signal.SIGKILL


def assert_nothing_lost(workdir: Path) -> None:
    """After a signal the newest checkpoint is of the newest step, or the one owed."""
    if (workdir / "metrics.jsonl").exists() and (lines := cli.metric_lines(workdir)):
        newest = cli.saved_steps(workdir)[-1]
        assert newest in (lines[-1]["step"], lines[-1]["step"] + 1)


def never(_: float) -> bool:
    return False


def half_written(workdir: Path, _: float = 0) -> bool:
    return any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def assert_same_run(workdir: Path, whole: Path, on_signal: set[int]) -> None:
    """`on_signal`: the steps saved because a signal came, beside those of `whole`."""
    lines = cli.metric_lines(workdir)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines == cli.metric_lines(whole)
    cli.assert_same_bits(
        cli.saved_arrays(workdir, STEPS), cli.saved_arrays(whole, STEPS)
    )
    assert records(workdir) == records(whole)
    best, *newest = cli.saved_steps(whole)
    assert len(newest) == 2  # config.checkpoint.keep, and the best is not of them
    newest = sorted({*newest, *on_signal})[-2:]
    assert cli.saved_steps(workdir) == sorted({best, *newest})


def records(workdir: Path) -> dict[str, bytes]:
    """What evaluations have left, pictures too."""
    paths = [p for p in (workdir / "evals").iterdir() if p.suffix in (".json", ".png")]
    found = {path.name: path.read_bytes() for path in paths}
    # A record and a confusion matrix of each, and the mistakes of the last.
    assert len(found) == 2 * STEPS // 10 + 1
    return found


def test_a_signal_during_compilation(tmp_path: Path) -> None:
    """Ends at once, though the compiler does not return to Python for seconds."""
    args = f"--config={cli.EVERYTHING}", f"--workdir={tmp_path}"
    before = (tmp_path / "parameters.txt").exists
    code, output = cli.run_and_signal(
        lambda _: before(), signal.SIGTERM, *args, "--config.compilation_cache=none"
    )
    assert code == 75, output
    assert "nothing was saved yet" in output
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_signal_during_an_evaluation(tmp_path: Path) -> None:
    """The evaluation is owed, and done first by the run that goes on."""
    # 200 batches of one image: the evaluation after step 10 takes a while.
    args = (
        f"--config={cli.EVERYTHING}",
        "--config.total_steps=12",
        "--config.evals.test.split=test[:10%]",
        "--config.evals.test.batch_size=1",
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    cli.run(*args, f"--workdir={whole}")

    def in_evaluation(_: float) -> bool:  # line 9 is written once step 10 is under way
        path = killed / "metrics.jsonl"
        return path.exists() and len(path.read_text().splitlines()) >= 9

    code, output = cli.run_and_signal(
        in_evaluation, signal.SIGTERM, *args, f"--workdir={killed}"
    )
    assert code == 75, output
    position = killed / "checkpoints" / "10" / "position" / "metadata"
    assert json.loads(position.read_text())["pending"]["train/loss"] > 0
    assert [line["step"] for line in cli.metric_lines(killed)] == list(range(1, 10))
    cli.run(*args, f"--workdir={killed}")
    assert cli.metric_lines(killed) == cli.metric_lines(whole)
    assert json.loads(position.read_text())["pending"] is None  # settled
    assert cli.saved_steps(killed) == [10, 12]
    cli.assert_same_bits(cli.saved_arrays(killed, 12), cli.saved_arrays(whole, 12))


def check_randomness(workdir: Path) -> None:
    """The first gradients of a run, computed a second way from the documented keys.

    Step s uses k = fold_in(key(seed), s), whose halves are of mixup and of dropout;
    micro-batch i has fold_in(dropout, i) and the rows i, i + m, i + 2m, ... The first
    learning rate of a warm-up is 0, so that the initial parameters serve two steps.
    """
    c = config.load(cli.EVERYTHING, []).to_dict()
    dataset = data.make(**c["data"])
    size, parts = c["batch_size"], c["accumulation_steps"]
    model = models.create(**c["model"] | {"num_classes": 10})
    params = model.init(jax.random.key(c["seed"]), jnp.zeros((1, 28, 28, 3)))["params"]
    lines = cli.metric_lines(workdir)

    @jax.grad
    def gradient(params, images, targets, key):  # of the mean over the whole batch
        variables, rngs = {"params": params}, {"dropout": key}
        logits = jnp.asarray(model.apply(variables, images, train=True, rngs=rngs))
        return -jnp.sum(jax.nn.log_softmax(logits) * targets) / size

    batches = dataset.train_batches(
        batch_size=size, seed=c["seed"], start_step=0, total_steps=2
    )
    for step, batch in enumerate(batches):
        # The data's randomness: golden bits of crops, flips and order.
        digest = hashlib.sha256(batch["image"].tobytes() + batch["label"].tobytes())
        assert digest.hexdigest()[:16] == GOLDEN_BATCHES[step]
        key = jax.random.fold_in(jax.random.key(c["seed"]), step)
        mix_key, dropout_key = jax.random.split(key)
        images = (batch["image"] / np.float32(255) - 0.5) / np.float32(0.5)
        targets = np.eye(10, dtype=np.float32)[batch["label"]] * 0.9 + 0.01
        pixels = shares(mix_key, c["mixup"], c["cutmix"])
        images = pixels * images + (1 - pixels) * np.roll(images, 1, axis=0)
        share = pixels.mean()
        targets = share * targets + (1 - share) * np.roll(targets, 1, axis=0)
        grads = jax.tree.map(jnp.zeros_like, params)
        for i in range(parts):
            micro_key = jax.random.fold_in(dropout_key, i)
            part = images[i::parts], targets[i::parts], micro_key
            grads = jax.tree.map(jnp.add, grads, gradient(params, *part))
        squares = [float(jnp.sum(g**2)) for g in jax.tree.leaves(grads)]
        # The head starts at zero, so that the loss is log(10) with any key; the head's
        # gradient holds the features, which depend on all of them.
        expected = math.sqrt(sum(squares))
        np.testing.assert_allclose(lines[step]["train/grad_norm"], expected, rtol=1e-5)


def shares(key: jax.Array, mixup: float, cutmix: float) -> np.ndarray:
    """What each pixel keeps of its own image, [28, 28, 1], by mixup or by CutMix."""
    _, switch_key, share_key, box_key = jax.random.split(key, 4)
    if not jax.random.bernoulli(switch_key, 0.5):
        drawn = float(jax.random.beta(share_key, mixup, mixup))
        return np.full((28, 28, 1), max(drawn, 1 - drawn), np.float32)
    drawn = float(jax.random.beta(share_key, cutmix, cutmix))
    half = int(28 * math.sqrt(1 - drawn)) // 2
    pixels = np.ones((28, 28, 1), np.float32)
    y, x = (int(jax.random.randint(k, (), 0, 28)) for k in jax.random.split(box_key))
    pixels[max(0, y - half) : y + half, max(0, x - half) : x + half] = 0
    return pixels


GOLDEN_BATCHES = ("f2657f26eb1f7d81", "354d9310b27090b9")
