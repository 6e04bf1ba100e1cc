"""Names of classes decide: in evaluations, heads and teachers."""

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath
from PIL import Image

from tests import cli
from tests.evaluators import told
from tests.formats import files
from vit_jax import class_names
from vit_jax.checkpoints import adapt
from vit_jax.checkpoints.teacher import read_teacher
from vit_jax.data.catalog import common
from vit_jax.errors import UserError
from vit_jax.objectives import Distillation

WNIDS = ("n01440764", "n01443537", "n01484850")
WORDS = ("tench, Tinca tinca", "goldfish, Carassius auratus", "great white shark")
ANIMALS = ("cat", "cow", "dog", "owl")
COLOURS = {
    "0": (255, 0, 0),
    "180": (0, 0, 255),
    "270": (255, 255, 0),
    "90": (0, 255, 0),
}


@pytest.mark.parametrize(
    ("names", "others", "places"),
    [
        (ANIMALS, ANIMALS, (0, 1, 2, 3)),
        (("0", "270", "90"), ("0", "180", "270", "90"), (0, 2, 3)),
        (
            ("Great_White-Shark", "CAFE\u0301"),
            ("caf\u00e9", "great white shark"),
            (1, 0),
        ),
        (
            common.CLOTHES,
            [f" {n.replace('/', ' / ')}" for n in common.CLOTHES],
            range(10),
        ),
        # Where punctuation alone tells classes apart, it counts.
        (("c++", "c"), ("c", "c++", "c#"), (1, 0)),
        (("C", "c"), ("c", "C"), (1, 0)),
        (("c", "+"), ("+", "c"), (1, 0)),
        # ImageNet has two kinds of crane: in full lists they are in their order.
        (("crane", "x", "crane"), ("crane", "crane", "x"), (0, 2, 1)),
        (("crane", "x"), ("crane", "crane", "x"), (-1, 2)),
        (("cat", "emu"), ANIMALS, (0, -1)),
        (("d_red", "a_green"), ("0", "180"), (-1, -1)),
        (WNIDS, sorted(WORDS), (-1, -1, -1)),  # as class folders are sorted
        (WNIDS, WORDS[:2], (-1, -1, -1)),
        (WNIDS[:2], WNIDS[::-1], (2, 1)),
    ],
)
def test_by_name(names: Any, others: Any, places: Any) -> None:
    found = class_names.match(names, others)
    assert (found.by, found.places) == ("name", tuple(places))


@pytest.mark.parametrize(
    ("names", "others"),
    [
        (None, ANIMALS),
        (ANIMALS, None),
        (None, None),
        (WNIDS, WORDS),
        (WORDS, WNIDS),
        (ANIMALS, ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")),
        (("0", "1", "2", "3"), ANIMALS),
        (("class 00", "class 01"), ANIMALS),
    ],
)
def test_by_number(names: Any, others: Any) -> None:
    found = class_names.match(names, others)
    assert found.by == "number" and found.same and found.why


def folder_of_pictures(root: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """One picture a class, whose number among `names` it holds, as `told` reads it."""
    for i, name in enumerate(names):
        folder = root / "test" / name
        folder.mkdir(parents=True)
        Image.fromarray(told.images(i + 1)[i]).save(folder / "it.png")
    return told.data(root) | {"name": "folder"}


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)])
def test_an_evaluation_of_other_numbers(mesh: Any, tmp_path: Path) -> None:
    """The model is right of every picture, if its classes are found by their names."""
    section = folder_of_pictures(tmp_path, ("cow", "dog", "owl"))
    names = ("owl", "cat", "dog", "cow")  # of six classes: two have no names
    logits = np.zeros((16, 6), np.float32)
    logits[[0, 1, 2], [3, 2, 0]] = 5
    on = told.mesh(*mesh)
    result = told.evaluate(section, logits, on, label_names=names)
    assert result.scalars["it/accuracy"] == 1
    assert result.record["classes_matched_by"] == "name"
    assert result.record["class_names"] == [*names, "4", "5"]
    assert np.diagonal(result.record["confusion"]).tolist() == [1, 0, 1, 1, 0, 0]
    with pytest.raises(UserError, match='model does not know: "owl"; it knows "cat"'):
        told.evaluate(section, logits, on, label_names=("cat", "cow", "dog"))
    result = told.evaluate(section, logits, on)
    assert result.record["classes_matched_by"] == "number"
    assert result.scalars["it/accuracy"] == 0


def write_colours(root: Path, count: int, names: Iterable[str]) -> Path:
    """ROOT/NAME/i.png, each of the colour of its name and a little noise."""
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(count):
            noise = np.random.default_rng(i).integers(-20, 20, (8, 8, 3))
            pixels = np.clip(np.array(COLOURS[name]) + noise, 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i}.png")
    return root


def test_the_command_line(tmp_path: Path) -> None:
    """While it trains, alone, and for other weights than those of the config's data."""
    write_colours(tmp_path / "data" / "train", 16, COLOURS)
    write_colours(tmp_path / "data" / "test", 4, COLOURS)
    write_colours(tmp_path / "few" / "test", 8, ("0", "270", "90"))
    renamed = write_colours(tmp_path / "renamed" / "test", 8, COLOURS)
    (renamed / "0").rename(renamed / "red")
    flags = [
        "--config=tests/recipes/colours.py",
        f"--config.data.data_dir={tmp_path}/data",
        f"--workdir={tmp_path}/run",
    ]
    few, other = (
        f"--config.evals.other.data.data_dir={tmp_path}/{name}"
        for name in ("few", "renamed")
    )
    output = cli.run(*flags, few)
    assert "other: its 3 classes have other numbers in the model" in output
    line = cli.metric_lines(tmp_path / "run")[-1]
    assert line["test/accuracy"] == line["other/accuracy"] == 1
    assert "other/accuracy: 1.0" in cli.call(*flags, few, "--evaluate_only")
    output = cli.call(*flags, other, "--evaluate_only", expect=2)
    assert 'classes that the model does not know: "red"; it knows "0"' in output
    # The names of the run decide, not those of the config's data.
    names = tmp_path / "run" / "labels.json"
    names.write_text(json.dumps(["90", "180", "270", "0"]))
    output = cli.call(*flags, few, "--evaluate_only", "--evals=other")
    assert f"other/accuracy: {1 / 3}" in output
    output = cli.call(*flags, few, "--config.total_steps=50", expect=2)
    assert 'has learned the classes "90", "180", "270", "0"; those of the' in output


def with_head(names: tuple[str, ...] | None, classes: int) -> adapt.Weights:
    """A tiny model, whose bias is its class's number."""
    fields = {"patch_size": 7, "width": 4, "depth": 1, "mlp_dim": 4, "num_heads": 1}
    fields |= {"num_classes": classes, "distilled": True}
    random = np.random.default_rng(0)
    arrays = {
        path: random.normal(size=shape).astype(np.float32)
        for path, shape in adapt.shapes_of(fields, (14, 14)).items()
    }
    arrays["head/bias"] = np.arange(classes, dtype=np.float32)
    return adapt.Weights(
        arrays=arrays,
        model=fields,
        image_size=(14, 14),
        normalization=None,
        label_names=names,
    )


KEPT = "the head is kept, its classes in the order of this config's, by name"


@pytest.mark.parametrize(
    ("names", "classes", "head", "order", "said"),
    [
        (("dog", "owl", "cat", "cow"), 4, "auto", [2, 3, 0, 1], KEPT),
        (("dog", "owl", "cat", "cow"), 4, "keep", [2, 3, 0, 1], KEPT),
        (ANIMALS, 4, "auto", range(4), "is kept: its classes have the same names"),
        (
            ("dog", "owl", "cat", "emu"),
            4,
            "auto",
            None,
            'does not know the classes "cow"',
        ),
        (("dog", "owl", "cat", "emu"), 4, "keep", range(4), 'not know "cow"'),
        (("dog", "emu", "owl", "cat", "cow"), 5, "keep", [3, 4, 0, 2], KEPT),
        (("dog", "emu", "owl", "cat", "cow"), 5, "auto", None, "starts anew"),
        (None, 4, "auto", range(4), "by number (only one side has names"),
    ],
)
def test_heads(names: Any, classes: int, head: Any, order: Any, said: str) -> None:
    source = with_head(names, classes)
    target = {**source.model, "num_classes": 4}
    found, told = adapt.adapt(source, target, (14, 14), head=head, label_names=ANIMALS)
    assert said in "\n".join(told)
    paths = [p for p in source.arrays if p.startswith("head")]
    assert len(paths) == 4
    for path in paths:
        if order is None:
            assert path not in found
        else:
            kept = source.arrays[path][..., list(order)]
            np.testing.assert_array_equal(found[path], kept)


def test_a_wider_head_of_which_some_classes_have_names() -> None:
    source = with_head(("dog", "cat"), 4)
    found, _ = adapt.adapt(source, source.model, (14, 14), label_names=("cat", "dog"))
    assert found["head/bias"].tolist() == [1, 0, 2, 3]


def test_teachers(tmp_path: Path) -> None:
    """The logits of a teacher are put in the order of the student's classes."""
    path = files.of_fixture("hf-vit", tmp_path)
    theirs = json.loads((path / "config.json").read_text())
    known = ("dog", "emu", "owl", "cat", "cow")
    theirs["id2label"] = dict(enumerate(known))
    (path / "config.json").write_text(json.dumps(theirs))

    def read(*names: str) -> tuple[np.ndarray, str]:
        teacher, (*_, said) = read_teacher(
            Distillation(teacher="t"),
            epath.Path(path),
            num_classes=len(names),
            label_names=names,
            image_size=(28, 28),
            dtype="float32",
        )
        images = np.random.default_rng(0).normal(size=(3, 28, 28, 3))
        logits = teacher.apply({"params": teacher.arrays}, images.astype(np.float32))
        return np.asarray(logits), said

    same, said = read(*known)
    assert said == "its classes are taken by name"
    # A head of another width may be multiplied in another order of rounding.
    near = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    near(read("cat", "dog")[0], same[:, [3, 0]])
    near(read(*known[::-1])[0], same[:, ::-1])
    by_number, said = read("0", "1", "2", "3", "4")
    np.testing.assert_array_equal(by_number, same)
    assert said.startswith("its classes are taken by number")
    with pytest.raises(UserError, match='does not know the classes "yak" of the data'):
        read("cat", "yak", "dog")
