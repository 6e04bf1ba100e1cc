"""Every recipe is complete; the paper's numbers stand in those that quote it."""

from pathlib import Path

import pytest

from tests import cli
from vit_jax import config
from vit_jax.errors import UserError

RECIPES = sorted(p.stem for p in Path(cli.ROOT, "configs").glob("[a-z]*.py"))


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_complete_and_says_its_command(name: str) -> None:
    path = cli.ROOT / "configs" / f"{name}.py"
    config.load(str(path), [])
    text = path.read_text()
    assert f"--config=configs/{name}.py" in text
    assert "Needs" in text
    assert "Expected:" in text


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


def test_what_the_fine_tuning_recipe_refuses() -> None:
    path = f"{cli.ROOT}/configs/finetune.py"
    with pytest.raises(UserError, match="should be MODEL,DATASET"):
        config.load(f"{path}:b16", [])
    with pytest.raises(UserError, match="is no model"):
        config.load(f"{path}:16b,cifar10", [])
