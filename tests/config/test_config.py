"""Every way to write a config wrongly gives one message; the right ways work."""

import inspect
from pathlib import Path
from typing import Any

import pytest

from tests import cli
from vit_jax import config, optim
from vit_jax.errors import UserError

QUICKSTART = "configs/quickstart.py"


def load(*overrides: tuple[str, str]) -> dict[str, Any]:
    return config.load(QUICKSTART, overrides).to_dict()


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("optim.learning_rate", "1", 1.0),
        ("optim.learning_rate", "3e-4", 3e-4),
        ("seed", "1e3", 1000),
        ("model.pool", "token", "token"),
        ("model.patch_size", "(7, 14)", (7, 14)),
        ("model.variant", "S/16", "S/16"),
        ("data.image_size", "32,64", (32, 64)),
        ("data.train.flip", "false", False),
        ("total_epochs", "none", None),
        ("model.width", "none", None),  # left to the variant
        ("model.remat_policy", "none", "none"),  # a name, and not what "auto" chooses
        ("model.remat_names", "q,k", ("q", "k")),
        ("evals.test.batch_size", "50", 50),
        ("evals.test.data.image_size", "56", 56),
        ("optim.lr_multipliers", "(('head/.*', 10),)", (("head/.*", 10.0),)),
        ("optim.b1", "0.8", 0.8),  # a key that the recipe does not mention
    ],
)
def test_overrides(key: str, text: str, value: Any) -> None:
    section = load((key, text))
    for name in key.split("."):
        section = section[name]
    assert section == value
    assert type(section) is type(value)


@pytest.mark.parametrize(
    "key, text, message",
    [
        ("optim.learning_rat", "1", 'not a key; did you mean "learning_rate"'),
        ("modle.width", "1", 'did you mean "model"'),
        ("optim.learning_rate.x", "1", "is a value"),
        ("model", "1", "is a section"),
        ("batch_size", "many", '"many" .str.: it should be an int'),
        ("batch_size", "1.5", "it should be an int"),
        ("data.train.flip", "maybe", "should be true or false"),
        ("model.pool", "tokn", 'did you mean "token"'),
        ("model.name", "vitt", 'did you mean "vit"'),
        ("optim.name", "adam", 'did you mean "adamw"'),
        ("evals.test.type", "classify", 'did you mean "classification"'),
        ("evals.tset.every", "1", 'did you mean "test"'),
        ("data.train.crop", "incept", 'did you mean "inception"'),
        ("data.mean", "0.5", "a tuple"),
        ("checkpoint.every", "none", "should be an int"),
        ("evals.test", "5", "is a section"),
        ("cutmix", "1e999", "config.cutmix is inf: it should be finite"),
        ("model.layer_norm_epsilon", "1e999", "should be finite"),
        ("data.std", "(1e999, 1, 1)", "config.data.std is inf: it should be finite"),
        ("data.train.color_jitter", "(1e999, 0, 0, 0)", "should be finite"),
        ("optim.lr_multipliers", "(('head/.*', 1e999),)", "should be finite"),
        ("evals.test.data.std", "(0.5, -1e999, 0.5)", "should be finite"),
    ],
)
def test_overrides_that_cannot_be(key: str, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load((key, text))


@pytest.mark.parametrize(
    "recipe, message",
    [
        ("configs/quikstart.py", 'did you mean "configs/quickstart.py"'),
        ("nowhere/x.py", "there is no file"),
        ("configs/quickstart.py:B/16", "takes no argument"),
    ],
)
def test_recipes_that_are_not_there(
    recipe: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(cli.ROOT)
    with pytest.raises(UserError, match=message):
        config.load(recipe, [])


@pytest.mark.parametrize(
    "body, message",
    [
        ("{'batch_size': 8, 'lr': 1}", "config.lr is not a key"),
        ("{'model': {}}", "config.batch_size is not set: it should be an int"),
        ("{'batch_size': 8, 'data': 3}", "it is a section, not a value"),
        ("{'batch_size': 8, 'data': {}}", "config.data.name is not set"),
        ("{'batch_size': '8'}", "it should be an int"),
        ("{'batch_size': 8, 'mixup': float('nan')}", "config.mixup is nan: it should"),
    ],
)
def test_recipes_with_mistakes(body: str, message: str, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "from ml_collections import ConfigDict\n"
        f"def get_config():\n    return ConfigDict({body})\n"
    )
    with pytest.raises(UserError, match=message):
        config.load(str(recipe), [])


def test_the_signature_is_the_schema() -> None:
    keys = config.schema("optim", {})
    owned = inspect.signature(optim.make).parameters.values()
    assert set(keys) == {p.name for p in owned if p.kind is p.KEYWORD_ONLY}


def test_the_result_is_complete_and_locked() -> None:
    loaded = config.load(QUICKSTART, [])
    # The recipe leaves it to its owner.
    assert loaded.to_dict()["optim"]["schedule"] == "cosine"
    with pytest.raises(AttributeError):
        loaded.learning_rat = 1
