"""A student learns from a teacher what DeiT's equations say."""

import functools
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from scipy import special

from tests import cli
from tests.formats import drawn, files, test_torch_files
from vit_jax import models, steps
from vit_jax.checkpoints import adapt
from vit_jax.checkpoints.formats.opening import open_checkpoint
from vit_jax.checkpoints.teacher import read_teacher
from vit_jax.errors import UserError
from vit_jax.objectives import (
    Classification,
    Distillation,
    Distilled,
    Mixing,
    Teacher,
    losses,
)
from vit_jax.state import TrainState

CLASSES = 5
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return special.rel_entr(p, q).sum(-1)


def expected_loss(
    section: Distillation,
    labels: np.ndarray,
    logits: np.ndarray,
    taught: np.ndarray,
    teacher: np.ndarray,
) -> float:
    """Equations 2 and 3 of arXiv:2012.12877, in float64; `taught` meets the teacher."""
    rows = np.arange(len(labels))
    base = -special.log_softmax(logits, -1)[rows, labels]
    if section.kind == "hard":
        other = -special.log_softmax(taught, -1)[rows, teacher.argmax(-1)]
    else:
        t = section.temperature
        of = [special.softmax(x.astype(np.float64) / t, -1) for x in (teacher, taught)]
        other = t**2 * kl(*of)
    return float(np.mean((1 - section.weight) * base + section.weight * other))


@pytest.fixture(scope="module")
def teacher_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `vit` of transformers, whose logits of two images the fixture knows."""
    return files.of_fixture("hf-vit", tmp_path_factory.mktemp("teacher"))


def read(section: Distillation, path: Path, side: int = 28) -> Teacher:
    teacher, _ = read_teacher(
        section,
        epath.Path(path),
        num_classes=CLASSES,
        label_names=None,
        image_size=(side, side),
        dtype="float32",
    )
    return teacher


@pytest.mark.parametrize(
    "accumulation_steps, distilled",
    [
        (1, True),
        pytest.param(1, False, marks=pytest.mark.slow),
        pytest.param(2, True, marks=pytest.mark.slow),
        (2, False),
    ],
)
@pytest.mark.parametrize(
    "section",
    [
        Distillation(teacher="t", weight=0.3),
        Distillation(teacher="t", kind="soft", weight=0.1, temperature=3.0),
    ],
)
def test_the_loss_of_a_step(
    section: Distillation, accumulation_steps: int, distilled: bool, teacher_path: Path
) -> None:
    student = models.create(
        patch_size=14,
        width=16,
        depth=1,
        mlp_dim=16,
        num_heads=2,
        num_classes=CLASSES,
        distilled=distilled,
    )
    normalised = drawn.images((28, 28))  # what the teacher's library saw
    uint8 = np.random.default_rng(3).integers(0, 256, (6, 28, 28, 3), np.uint8)
    images = np.float32((uint8 / 255 - MEAN) / STD)
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32),
        student.init(jax.random.key(0), images)["params"],
    )
    labels = rng.integers(0, CLASSES, 6).astype(np.int32)
    teacher = read(section, teacher_path)
    found = teacher.apply({"params": teacher.arrays}, normalised)
    np.testing.assert_allclose(found, drawn.fixture("hf-vit")["outputs"], atol=1e-5)
    said = teacher.apply({"params": teacher.arrays}, np.float32(uint8 / 127.5 - 1))
    logits = taught = student.apply({"params": params}, images)
    if distilled:
        capture = ("head", "head_dist")
        _, heads = student.apply({"params": params}, images, capture=capture)  # type: ignore[misc]
        logits, taught = heads["head"], heads["head_dist"]
    tx = optax.sgd(0.1)
    step = steps.make_train_step(
        Distilled(
            labels=Classification(
                apply=student.apply,
                loss=losses.make(),
                mixing=Mixing(mixup=0.0),
                num_classes=CLASSES,
                mean=MEAN,
                std=STD,
            ),
            teacher=teacher,
            two_heads=distilled,
        ),
        tx,
        lambda s: 0.1 + 0 * s,
        seed=0,
        accumulation_steps=accumulation_steps,
        ema=None,
    )
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(zero, params, tx.init(params), None, zero)
    mask = np.array([1, 1, 1, 1, 0, 1], bool)
    batch = {"image": uint8, "label": labels, "mask": mask}
    new, scalars = jax.jit(step)(state, batch, teacher.arrays)
    expected = expected_loss(
        section,
        labels[mask],
        *(np.asarray(x)[mask] for x in (logits, taught, said)),
    )
    np.testing.assert_allclose(float(scalars["loss"]), expected, rtol=1e-5)
    if distilled:  # only the teacher reaches the second head, as only labels the first
        change = np.abs(
            new.params["head_dist"]["kernel"] - params["head_dist"]["kernel"]
        )
        assert change.max() > 1e-4


def test_a_student_becomes_its_teacher() -> None:
    """With all the weight on the teacher, the loss is least where both agree."""
    section = Distillation(teacher="t", kind="soft", weight=1.0, temperature=2.0)
    teacher = jnp.asarray(np.random.default_rng(0).normal(size=(3, CLASSES)))

    def loss(student: jax.Array) -> jax.Array:
        return section(student, teacher).sum()

    value, gradient = jax.value_and_grad(loss)(teacher)
    assert abs(float(value)) < 1e-6 and np.abs(gradient).max() < 1e-6
    assert float(loss(teacher + jnp.eye(3, CLASSES))) > 0.1


@pytest.mark.slow
def test_a_run_with_a_teacher(tmp_path: Path) -> None:
    """From a workdir at another resolution, on two devices, and stopped in between."""
    base = (f"--config={cli.EVERYTHING}", "--config.total_steps=6")
    cli.run(*base, f"--workdir={tmp_path}/teacher")
    flags = (
        *base,
        f"--config.distill.teacher={tmp_path}/teacher",
        "--config.model.distilled=true",
        "--config.data.image_size=56",
        "--config.checkpoint.every=3",
    )
    run = tmp_path / "run"
    output = cli.run(*flags, f"--workdir={run}", devices=2)
    assert (
        f"The teacher is {tmp_path}/teacher.\n"
        "  taken from step 6: the average of its parameters (EMA)\n"
        "  position embeddings resampled from 4 x 4 to 8 x 8 (linear)\n"
        "  its classes are taken by name\n"
    ) in output
    first = cli.saved_arrays(run, 6)
    assert not [key for key in first if "teacher" in key]
    shutil.rmtree(run / "checkpoints" / "6")
    assert "Goes on from step 3" in cli.run(*flags, f"--workdir={run}", devices=2)
    again = cli.saved_arrays(run, 6)
    for key, array in first.items():
        np.testing.assert_array_equal(again[key], array)
    shutil.rmtree(tmp_path / "teacher")  # who evaluates needs no teacher
    assert "test/accuracy" in cli.run(*flags, f"--workdir={run}", "--evaluate_only")
    plain = (*base, "--config.model.distilled=true", "--config.data.image_size=56")
    cli.run(*plain, f"--workdir={tmp_path}/plain", devices=2)
    kernel = "params['head_dist']['kernel']"
    alone = cli.saved_arrays(tmp_path / "plain", 6)[kernel]
    assert np.abs(first[kernel] - alone).max() > 1e-5


@pytest.mark.parametrize("name", ["deit.pth", "averaged.pt", "lightning.ckpt"])
def test_what_is_taken_of_a_file_is_said(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `load` says it: which weights, the average or not, and what is stripped."""
    path = epath.Path(test_torch_files.FIXTURES / name)
    opened = functools.partial(open_checkpoint, model=test_torch_files.MODEL)
    monkeypatch.setattr(adapt, "open_checkpoint", opened)
    source = adapt.read_weights(path)
    height, width = source.image_size
    _, said = read_teacher(
        Distillation(teacher="t"),
        path,
        num_classes=len(source.arrays["head/bias"]),
        label_names=None,
        image_size=(2 * height, 2 * width),
        dtype="float32",
    )
    expected = test_torch_files.SAID[name]
    assert tuple(said[: len(expected)]) == expected
    resampled, classes = said[len(expected) :]
    assert resampled.startswith("position embeddings resampled from 2 x 2 to 4 x 4")
    assert classes.startswith("its classes are taken by number")


def test_what_cannot_teach(teacher_path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="knows 5 classes and the data has 7"):
        read_teacher(
            Distillation(teacher="t"),
            epath.Path(teacher_path),
            num_classes=7,
            label_names=None,
            image_size=(28, 28),
            dtype="float32",
        )
    with pytest.raises(UserError, match=r"distill\.weight is 1\.5"):
        Distillation(weight=1.5)
    with pytest.raises(UserError, match=r"distill\.temperature is 0"):
        Distillation(temperature=0.0)
    output = cli.run(
        f"--config={cli.EVERYTHING}",
        f"--workdir={tmp_path}/run",
        f"--config.distill.teacher={tmp_path}/nowhere",
        expect=2,
    )
    assert "nowhere" in output and "Traceback" not in output
