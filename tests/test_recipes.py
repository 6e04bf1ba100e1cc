"""Every recipe is complete; the paper's numbers stand in those that quote it."""

from pathlib import Path

import pytest

from tests import cli
from vit_jax import config

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
