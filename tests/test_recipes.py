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
    one = config.load(f"{cli.ROOT}/configs/imagenet1k.py:L/16", [])
    full = config.load(f"{cli.ROOT}/configs/imagenet21k.py:B/16", [])
    for c in (one, full):
        assert (c.batch_size, c.optim.warmup_steps) == (4096, 10_000)
        assert (c.optim.b1, c.optim.b2, c.optim.clip_norm) == (0.9, 0.999, 1.0)
        assert (c.data.image_size, c.model.dropout) == (224, 0.1)
    assert (one.total_epochs, one.optim.learning_rate) == (300, 3e-3)
    assert (one.optim.schedule, one.optim.weight_decay) == ("cosine", 0.3)
    assert (one.model.variant, one.model.representation_size) == ("L/16", 1024)
    assert (full.total_epochs, full.optim.learning_rate) == (90, 1e-3)
    assert (full.optim.schedule, full.optim.weight_decay) == ("linear", 0.03)
    assert full.model.num_classes == 21_843
