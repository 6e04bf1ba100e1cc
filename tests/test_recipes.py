"""Every recipe is complete; the paper's numbers stand in those that quote it."""

import contextlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import vit_jax
from tests import cli
from vit_jax import config, data
from vit_jax.data import catalog
from vit_jax.data.crop import Crop, cut
from vit_jax.errors import UserError
from vit_jax.run import Run

RECIPES = sorted(p.stem for p in Path(cli.ROOT, "configs").glob("[a-z]*.py"))


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_complete_and_says_its_command(name: str) -> None:
    path = cli.ROOT / "configs" / f"{name}.py"
    config.load(str(path), [])
    text = path.read_text()
    assert f"--config=configs/{name}.py" in text
    assert "Needs" in text
    assert "Expected:" in text


class Photos:
    """A source with as many records and classes as are published; made-up pictures."""

    in_memory, label_names, fingerprint, notes = False, None, "photos", ()
    sample = ""

    def __init__(self, *, name: str, split: str, **keys: str | None) -> None:
        del keys
        # The files of MNIST's format: the recipe is for Fashion-MNIST's.
        named = {"idx": "fashion_mnist", "folder": "oxford_iiit_pet"}
        entry = catalog.find(named[name] if name in named else name)
        assert entry is not None, f"{name} is not in the catalog"
        self.name, self.num_classes = name, entry.num_classes
        self.multi_hot = entry.multi_label
        self._count = entry.count(split, where=name)

    def __len__(self) -> int:
        return self._count

    def read(
        self, index: int, crop: Crop | None = None
    ) -> tuple[np.ndarray, int | np.ndarray]:
        image = cut(np.full((40, 50, 3), index % 256, np.uint8), crop)
        label = index % self.num_classes
        if self.multi_hot:
            return image, np.eye(self.num_classes, dtype=np.float32)[label]
        return image, label

    def labels(self) -> None:
        """Unknown before every record is read."""

    def describe(self, index: int) -> str:
        return f"{self.name}, record {index}"


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(
    # Layers are alike: one traces in a twelfth of the time.
    "overrides",
    [[("model.depth", "1")], pytest.param([], marks=pytest.mark.slow)],
    ids=["one layer", "whole"],
)
def test_a_recipe_builds_its_data_model_and_step(
    name: str, overrides: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the pictures is real, up to what XLA would be given."""
    monkeypatch.setattr(data, "open_source", Photos)
    run = Run(**config.load(f"{cli.ROOT}/configs/{name}.py", overrides).to_dict())
    run.check_data()  # a batch of each; traces the evaluations' steps
    assert run.evaluators
    batches = run.dataset.train_batches(
        batch_size=run.batch_size,
        seed=run.seed,
        start_step=run.total_steps - 1,
        total_steps=run.total_steps,
        rows=np.arange(2),
    )
    with contextlib.closing(batches):
        (batch,) = batches
    step = run.program.lower_train_step()
    inputs, _ = step.in_avals
    for key, value in batch.items():
        assert inputs[1][key].shape[1:] == value.shape[1:]
        assert inputs[1][key].dtype == value.dtype
    state, scalars = step.out_info
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), run.abstract_state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == shapes
    assert scalars["loss"].shape == ()


def test_the_papers_settings() -> None:
    """Table 3 and section 4.1 of arXiv:2010.11929."""
    one = config.load(f"{cli.ROOT}/configs/imagenet1k.py:L/16", []).to_dict()
    full = config.load(f"{cli.ROOT}/configs/imagenet21k.py:B/16", []).to_dict()
    shared = {"name": "adamw", "b1": 0.9, "b2": 0.999, "clip_norm": 1.0}
    shared |= {"warmup_steps": 10_000}
    for c in (one, full):
        assert c["batch_size"] == 4096
        assert shared.items() <= c["optim"].items()
        assert c["data"]["image_size"] == 224
        assert c["model"]["dropout"] == 0.1
    of_one = {"learning_rate": 3e-3, "schedule": "cosine", "weight_decay": 0.3}
    of_full = {"learning_rate": 1e-3, "schedule": "linear", "weight_decay": 0.03}
    assert of_one.items() <= one["optim"].items()
    assert of_full.items() <= full["optim"].items()
    assert (one["total_epochs"], full["total_epochs"]) == (300, 90)
    assert one["model"]["variant"] == "L/16"
    assert one["model"]["representation_size"] == 1024
    assert full["model"]["num_classes"] == 21_843


def test_the_settings_of_better_plain_baselines() -> None:
    """Section 2 of arXiv:2205.01580, and big_vision's vit_s16_i1k for what it lacks."""
    c = config.load(f"{cli.ROOT}/configs/imagenet1k_small.py", []).to_dict()
    model = {"variant": "S/16", "pool": "gap", "posemb": "sincos2d", "dropout": 0.0}
    model |= {"representation_size": 384}
    assert model.items() <= c["model"].items()
    train = {"crop": "inception", "area": None, "flip": True, "erasing": 0.0}
    train |= {"augment": "randaugment_tf", "num_layers": 2, "magnitude": 10}
    assert train.items() <= c["data"]["train"].items()
    assert (c["data"]["split"], c["data"]["eval"]["resize"]) == ("train[:99%]", 256)
    assert (c["batch_size"], c["total_epochs"], c["mixup"]) == (1024, 90, 0.2)
    assert (c["cutmix"], c["loss"]["label_smoothing"]) == (0, 0)
    optim = {"name": "adamw", "b1": 0.9, "b2": 0.999, "clip_norm": 1.0}
    optim |= {"learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 10_000}
    assert optim.items() <= c["optim"].items()
    # Decoupled there from the learning rate, of which it is a multiple here.
    assert c["optim"]["weight_decay"] * c["optim"]["learning_rate"] == pytest.approx(
        1e-4
    )
    assert c["evals"]["minival"]["split"] == "train[99%:]"
    assert c["evals"]["val"]["split"] == "validation"


@pytest.mark.parametrize(
    "dataset, steps",
    [
        ("imagenet", 20_000),
        ("cifar10", 10_000),
        ("cifar100", 10_000),
        ("pets", 500),
        ("flowers", 500),
        ("smallnorb", 2_500),  # of VTAB
    ],
)
def test_the_papers_fine_tuning(dataset: str, steps: int) -> None:
    """Table 4 of arXiv:2010.11929."""
    c = config.load(f"{cli.ROOT}/configs/finetune.py:r50+b16,{dataset}", []).to_dict()
    assert c["total_steps"] == steps and c["batch_size"] == 512
    assert c["data"]["image_size"] == 384
    optim = {"name": "sgd", "momentum": 0.9, "schedule": "cosine", "clip_norm": 1.0}
    assert optim.items() <= c["optim"].items() and c["optim"]["weight_decay"] == 0
    assert c["model"]["variant"] == "R50+ViT-B/16"
    assert c["model"]["representation_size"] is None
    assert c["init_head"] == "new"


@pytest.mark.parametrize("said", ["vit-b16", "ViT-B/16", "B/16", "vit_b16", "b16"])
@pytest.mark.parametrize(
    "recipe", ["finetune.py:{},cifar10", "imagenet1k.py:{}", "imagenet_evals.py:{}"]
)
def test_names_of_models_as_others_write_them(recipe: str, said: str) -> None:
    given = config.load(f"{cli.ROOT}/configs/{recipe.format(said)}", []).to_dict()
    assert given["model"]["variant"] == "B/16"
    if "imagenet1k" in recipe:
        assert given["model"]["representation_size"] == 768


@pytest.mark.parametrize("said", ["X/16", "vit", "", "b", "vit_base_r50_s16", "50x1"])
def test_names_that_are_no_model(said: str) -> None:
    with pytest.raises(UserError, match=f'"{said}" is no model: expected .* B/16'):
        config.load(f"{cli.ROOT}/configs/finetune.py:{said},cifar10", [])


def test_every_listed_model_is_one_for_the_recipes() -> None:
    for name in vit_jax.list_models():
        loaded = config.load(f"{cli.ROOT}/configs/imagenet1k.py:{name}", []).to_dict()
        assert loaded["model"]["variant"] == name


def test_what_the_fine_tuning_recipe_refuses() -> None:
    path = f"{cli.ROOT}/configs/finetune.py"
    with pytest.raises(UserError, match="should be MODEL,DATASET"):
        config.load(f"{path}:b16", [])
    with pytest.raises(UserError, match="is no model"):
        config.load(f"{path}:16b,cifar10", [])


def test_vtab_is_19_tasks_in_the_papers_setting() -> None:
    """Appendix B.1.1 of arXiv:2010.11929; VTAB's Table 1 has 7, 4 and 8 tasks."""
    path = f"{cli.ROOT}/configs/vtab.py"
    recipe = config.recipe_module(path)
    points = list(recipe.sweep())
    assert len({point["data.name"] for point in points}) == 19
    groups = [recipe.group({"data": {"name": p["data.name"]}}) for p in points]
    assert [groups.count(g) for g in recipe.TASKS] == [7, 4, 8]
    assert {p["data.name"]: g for p, g in zip(points, groups, strict=True)} == {
        name: entry.group for name, entry in catalog.vtab.ENTRIES.items()
    }
    for point in points:
        c = config.load(f"{path}:l16", list(point.items())).to_dict()
        assert c["data"]["name"] == point["data.name"]
        assert c["data"]["split"] == "train800val200"
        assert (c["total_steps"], c["batch_size"]) == (2_500, 512)
        assert c["optim"]["learning_rate"] == 0.01
        assert c["data"]["image_size"] == 384
        assert catalog.vtab.TRAIN_TRANSFORM.items() <= c["data"]["train"].items()
        assert catalog.vtab.EVAL_TRANSFORM.items() <= c["data"]["eval"].items()
        assert c["model"]["variant"] == "L/16"


def of_folder(arg: str) -> dict[str, Any]:
    return config.load(f"{cli.ROOT}/configs/folder.py{arg}", []).to_dict()


def test_the_recipe_for_own_pictures() -> None:
    """Nothing of it is of Fashion-MNIST, as the quickstart's settings are."""
    paper = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    for arg, size in ((":x", 64), (":x,224", 224), (":x,b16", 224), (":x,s32,96", 96)):
        c = of_folder(arg)
        assert paper.items() <= c["data"].items()
        assert (c["data"]["name"], c["data"]["data_dir"]) == ("folder", "x")
        assert c["data"]["image_size"] == size
        train = {"crop": "inception", "flip": True, "padding": None}
        assert train.items() <= c["data"]["train"].items()
    assert of_folder(":x,b16")["model"]["variant"] == "B/16"
    assert of_folder(":x,b16")["init_head"] == "new"
    assert of_folder("")["data"]["data_dir"] is None


@pytest.mark.parametrize("size", [8, 32, 48, 64, 96, 112, 128, 160, 192, 224, 384])
def test_pictures_are_cut_into_at_most_14_by_14_patches(size: int) -> None:
    patch = of_folder(f":x,{size}")["model"]["patch_size"]
    assert size % patch == 0 and size // patch <= 14


@pytest.mark.parametrize(
    "arg, message",
    [
        (":x,30", "SIZE is 30; expected a multiple of 4"),
        (":a,b,c", "goes to --config.data.data_dir"),
        (":x,2", "such as photos,b16,224"),
        (":x,cat", '"cat" is no model'),
    ],
)
def test_arguments_of_the_recipe_for_own_pictures(arg: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        of_folder(arg)
