"""CutMix, and switching between it and mixup, against NumPy and timm's equations."""

import functools
import importlib
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import NamedSharding, PartitionSpec

from tests import cli
from vit_jax import config
from vit_jax.errors import UserError
from vit_jax.objectives import Mixing, mixing

B, H, W, K = 8, 20, 12, 5
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(B, H, W, 3)).astype(np.float32)
TARGETS = RNG.dirichlet(np.ones(K), size=B).astype(np.float32)
ALL = np.ones(B, bool)
SOME = np.array([i not in (0, 3, 4) for i in range(B)])
BOTH = Mixing(mixup=0.8, cutmix=1.0)


Draws = tuple[np.ndarray, np.ndarray]


@functools.cache
def drawn_by(mix: Mixing, size: tuple[int, int]):
    """A function of keys [n]: shares [n] and pixels' shares [n, h, w]."""
    return jax.jit(jax.vmap(lambda key: mix.draw(key, size)))


def many(mix: Mixing, n: int = 2000, size: tuple[int, int] = (H, W)) -> Draws:
    share, pixels = drawn_by(mix, size)(jax.random.split(jax.random.key(0), n))
    return np.asarray(share), np.asarray(pixels)


@pytest.fixture
def uniform_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beta(1, 1) by another function, which compiles in a tenth of the time."""
    monkeypatch.setattr(jax.random, "beta", lambda key, a, b: jax.random.uniform(key))


def mixed(mix: Mixing, mask: np.ndarray, seed: int, images=IMAGES, targets=TARGETS):
    x, t = jax.jit(mix)(jax.random.key(seed), images, targets, mask)
    return np.asarray(x), np.asarray(t)


def kinds(pixels: np.ndarray) -> tuple[float, float, float]:
    """How often batches are left alone or cut, mixed up."""
    constant = pixels.min((1, 2)) == pixels.max((1, 2))
    alone = constant & (pixels[:, 0, 0] == 1)
    return alone.mean(), (~constant).mean(), (constant & ~alone).mean()


@pytest.mark.parametrize("mask", [ALL, SOME], ids=["all", "some"])
def test_equals_a_loop_over_the_examples(mask: np.ndarray) -> None:
    seen = set()
    for seed in range(6):
        share, pixels = drawn_by(BOTH, (H, W))(jax.random.key(seed)[None])
        a, p = float(share[0]), np.asarray(pixels[0])[..., None]
        seen.add(p.min() == 0)
        x, t = mixed(BOTH, mask, seed)
        for i in range(B):
            if mask[i] and mask[i - 1]:
                image = p * IMAGES[i] + (1 - p) * IMAGES[i - 1]
                target = a * TARGETS[i] + (1 - a) * TARGETS[i - 1]
                np.testing.assert_allclose(x[i], image, rtol=1e-5, atol=1e-6)
                np.testing.assert_allclose(t[i], target, rtol=1e-5, atol=1e-6)
            else:
                np.testing.assert_array_equal(x[i], IMAGES[i])
                np.testing.assert_array_equal(t[i], TARGETS[i])
    assert seen == {True, False}


def test_masked_rows_reach_nobody() -> None:
    images, targets = IMAGES.copy(), TARGETS.copy()
    images[~SOME], targets[~SOME] = np.nan, np.nan
    mix = Mixing(mixup=0.0, cutmix=1.0)
    clean, dirty = mixed(mix, SOME, 0), mixed(mix, SOME, 0, images, targets)
    for before, after in zip(clean, dirty, strict=True):
        np.testing.assert_array_equal(before[SOME], after[SOME])
        assert np.isnan(after[~SOME]).all()


def test_every_box_is_a_rectangle_and_the_share_is_its_area() -> None:
    shares, pixels = many(Mixing(mixup=0.0, cutmix=1.0))
    assert set(np.unique(pixels)) == {0, 1}
    np.testing.assert_allclose(shares, pixels.mean((1, 2)), rtol=1e-6)
    inside = pixels == 0
    rows, columns = inside.any(2), inside.any(1)
    np.testing.assert_array_equal(inside, rows[:, :, None] & columns[:, None])
    for line in (rows, columns):  # without gaps
        steps = np.diff(np.pad(line, ((0, 0), (1, 1))).astype(int))
        assert (np.abs(steps).sum(1) <= 2).all()


def timm_boxes(n: int, alpha: float, size: tuple[int, int]) -> np.ndarray:
    """timm's `rand_bbox` and the area left, with NumPy's random numbers: [n, 5]."""
    random, rows = np.random.default_rng(1), []
    for lam in random.beta(alpha, alpha, n):
        sides = []
        for length in size:
            cut = int(length * np.sqrt(1 - lam))
            centre = random.integers(0, length)
            low, high = np.clip([centre - cut // 2, centre + cut // 2], 0, length)
            sides.append((low, high))
        (y0, y1), (x0, x1) = sides
        area = (y1 - y0) * (x1 - x0)
        ends = (y0, y1, x0, x1) if area else (0, 0, 0, 0)
        rows.append([1 - area / (size[0] * size[1]), *ends])
    return np.array(rows)


def test_boxes_are_distributed_as_timms() -> None:
    size, n, alpha = (36, 36), 4000, 0.4
    shares, pixels = many(Mixing(mixup=0.0, cutmix=alpha), n, size)
    inside = pixels == 0
    ends = []
    for line in (inside.any(2), inside.any(1)):
        numbers = 1 + np.arange(line.shape[1])
        ends += [line.argmax(1), (line * numbers).max(1)]  # top and bottom, or sides
    got = np.column_stack([shares, *ends])
    want = timm_boxes(n, alpha, size)
    # Each by itself, and some sums: do the sides go with each other as there?
    sums = (0, 1, -1, 1, -1), (0, 1, 1, 1, 1), (9, 1, 0, 0, 1)
    for weights in (*np.eye(5), *sums):
        test: Any = scipy.stats.ks_2samp(got @ weights, want @ weights)
        assert test.pvalue > 1e-3, weights


@pytest.mark.usefixtures("uniform_shares")
def test_mixup_and_cutmix_take_turns() -> None:
    n = 2000
    error = 4 * 0.5 / n**0.5
    for mix, expected in (
        (Mixing(mixup=0.7, cutmix=1.0), (0, 0.5, 0.5)),
        (
            Mixing(mixup=0.7, cutmix=1.0, mixup_prob=0.7, mixup_switch_prob=0.2),
            (0.3, 0.14, 0.56),
        ),
        (Mixing(mixup=0.7, mixup_prob=0.25), (0.75, 0, 0.25)),
    ):
        found = kinds(many(mix, n)[1])
        # A tiny box may be empty: CutMix with alpha 1 leaves 1 in 14 batches alone.
        slack = 0.09 if mix.cutmix else 0
        np.testing.assert_allclose(found, expected, rtol=0, atol=error + slack)


def test_shares_of_mixup_beside_cutmix() -> None:
    """Beta(0.8, 0.8), folded at a half, where the batch is mixed up."""
    shares, pixels = many(BOTH)
    up = (pixels.min((1, 2)) == pixels.max((1, 2))) & (shares < 1)
    beta = scipy.stats.beta(0.8, 0.8)
    test = scipy.stats.kstest(shares[up], lambda x: beta.cdf(x) - beta.cdf(1 - x))
    assert test.pvalue > 1e-3


def test_mixup_alone_is_the_same_program() -> None:
    """So that runs which have it keep their bits."""
    arguments = jax.random.key(0), IMAGES, TARGETS, ALL
    alone = jax.jit(functools.partial(mixing.mixup, alpha=0.4)).lower(*arguments)
    mix = jax.jit(Mixing(mixup=0.4)).lower(*arguments)
    texts = [lowered.as_text().split("\n", 1)[1] for lowered in (alone, mix)]
    assert texts[0] == texts[1]
    assert jax.jit(BOTH).lower(*arguments).as_text().split("\n", 1)[1] != texts[0]


def test_the_mesh_changes_nothing() -> None:
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), (jax.sharding.AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    inputs = [jax.device_put(x, sharding) for x in (IMAGES, TARGETS, SOME)]
    spread = jax.jit(BOTH, out_shardings=sharding)
    program = spread.lower(jax.random.key(0), *inputs).compile()
    text = str(program.as_text())
    assert "collective-permute" in text
    assert "all-gather" not in text
    for seed in range(4):
        for x, y in zip(
            mixed(BOTH, SOME, seed), program(jax.random.key(seed), *inputs), strict=True
        ):
            np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mixup": -1.0}, "config.mixup is -1.0: it should be 0 .off. or more"),
        ({"cutmix": -0.5}, "config.cutmix is -0.5: it should be 0 .off. or more"),
        ({"mixup_prob": 0.5}, "mixup_prob is 0.5, which has no effect: .*above 0"),
        ({"mixup": 0.2, "mixup_switch_prob": 0.5}, "mixup_switch_prob is 0.5, which"),
        ({"mixup": 0.2, "mixup_prob": 1.5}, "config.mixup_prob is 1.5: .*0..1"),
        (
            {"mixup": 0.2, "cutmix": 1.0, "mixup_switch_prob": -0.1},
            "mixup_switch_prob is -0.1: it should be in 0..1",
        ),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused(keys: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Mixing(**{"mixup": 0.0} | keys)


def test_the_keys_of_a_config_reach_the_program() -> None:
    """Each changes the step that training and planning compile."""
    from vit_jax.planning import compilation, data_shapes
    from vit_jax.program import Program

    def lowered(*overrides: tuple[str, str]) -> str:
        small = (("model.depth", "1"), ("accumulation_steps", "1"))
        c = config.load(cli.EVERYTHING, [*small, *overrides]).to_dict()
        program = Program(
            data_shapes.of_config(c["data"]),
            jax.devices()[:1],
            total_steps=60,
            num_classes=10,
            **{key: c[key] for key in compilation.PROGRAM_KEYS},
        )
        return program.lower_train_step().as_text()

    both = (("mixup", "0.3"), ("cutmix", "0.5"))
    texts = {
        lowered(*overrides)
        for overrides in (
            (both[0], ("cutmix", "0.0")),
            both,
            (*both, ("mixup_prob", "0.5")),
            (*both, ("mixup_switch_prob", "0.4")),
        )
    }
    assert len(texts) == 4


@pytest.mark.crosscheck
def test_the_mixture_is_timms() -> None:
    """timm mixes with the reversed batch; ours is given so that partners agree."""
    torch = importlib.import_module("torch")
    timm_mixup = importlib.import_module("timm.data.mixup")

    box = (3, 11, 2, 9)
    theirs = timm_mixup.Mixup(mixup_alpha=0.0, num_classes=K, label_smoothing=0.0)
    area = 1 - (box[1] - box[0]) * (box[3] - box[2]) / (H * W)
    images = torch.from_numpy(IMAGES[:2].transpose(0, 3, 1, 2).copy())
    labels = torch.tensor([1, 4])
    with (
        mock.patch.object(timm_mixup, "cutmix_bbox_and_lam", return_value=(box, area)),
        mock.patch.object(theirs, "_params_per_batch", return_value=(0.5, True)),
    ):
        x, t = theirs(images, labels)
    pixels = np.ones((H, W, 1), np.float32)
    pixels[box[0] : box[1], box[2] : box[3]] = 0
    ours = mixing.blend(
        jnp.asarray(IMAGES[:2]),
        jnp.eye(K)[jnp.array([1, 4])],
        jnp.ones(2, bool),
        share=jnp.asarray(pixels.mean()),
        pixels=jnp.asarray(pixels),
    )
    np.testing.assert_allclose(ours[0], x.numpy().transpose(0, 2, 3, 1), atol=1e-6)
    np.testing.assert_allclose(ours[1], t.numpy(), atol=1e-6)
