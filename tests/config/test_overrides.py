"""What the command line can do to a config besides setting a key that is there."""

from typing import Any

import pytest

from tests import cli
from vit_jax import config
from vit_jax.errors import UserError

QUICKSTART = str(cli.ROOT / "configs" / "quickstart.py")
TINY = "fashion_mnist_mini"


def load(*pairs: tuple[str, Any]) -> dict[str, Any]:
    return config.load(QUICKSTART, pairs).to_dict()


def test_an_evaluation_is_added_in_any_order_of_its_keys() -> None:
    found = load(
        ("evals.few.shots", "(1,5)"),
        ("evals.few.data.name", TINY),
        ("evals.few.type", "fewshot"),
        ("evals.few.train_split", "train[:50%]"),
    )["evals"]
    assert set(found) == {"test", "few"}
    assert found["few"]["shots"] == (1, 5)
    assert found["few"]["data"] == {"name": TINY}
    assert found["few"]["split"] == "test"  # a default of its type


def test_an_evaluation_is_removed() -> None:
    assert load(("evals.test", "none"))["evals"] == {}
    assert load(("evals.test", None))["evals"] == {}


def test_parts_of_a_mixture_are_added() -> None:
    found = load(
        ("data.name", "mixture"),
        ("data.mixture.a.name", TINY),
        ("data.mixture.b.weight", "3"),
        ("data.mixture.b.name", TINY),
    )["data"]["mixture"]
    assert {name: part["weight"] for name, part in found.items()} == {"a": 1, "b": 3}


def test_a_mapping_of_keys_or_of_sections() -> None:
    """Values of Python, or text as on the command line."""
    changes = {"optim": {"learning_rate": 1, "b1": "0.8"}, "evals.test.every": 7}
    found = config.load(QUICKSTART, changes).to_dict()
    assert found["optim"]["learning_rate"] == 1.0
    assert found["optim"]["b1"] == 0.8
    assert found["evals"]["test"]["every"] == 7
    added = {"evals": {"few": {"type": "fewshot", "shots": [1, 2]}}}
    assert config.load(QUICKSTART, added).to_dict()["evals"]["few"]["shots"] == (1, 2)


@pytest.mark.parametrize(
    "key, message",
    [
        ("evals.tset.every", 'did you mean "test".* give --config.evals.tset.type='),
        ("evals.tset", 'no config.evals.tset; did you mean "test"'),
        ("evals.few.type", 'is "1"; valid names'),
        ("data.mixture.a.weight", "give --config.data.mixture.a.name="),
        ("evals..every", "there is no config.evals."),
        ("evals", "is a section"),
        ("optim.lr", 'did you mean "learning_rate"'),
        ("optim.wd", 'did you mean "weight_decay"'),
        ("lr", "did you mean config.optim.learning_rate"),
        ("learning_rate", "did you mean config.optim.learning_rate"),
        ("bs", 'did you mean "batch_size"'),
        ("epochs", 'did you mean "total_epochs"'),
        ("image_size", "did you mean config.data.image_size"),
        ("model.drop_path", 'did you mean "stochastic_depth"'),
        ("model.hidden_size", 'did you mean "width"'),
        ("label_smoothing", "did you mean config.loss.label_smoothing"),
        ("optim.qqqqq", "valid names: .*learning_rate"),
        ("", "is not a key"),
        (".", "is not a section"),
        ("model.", "is not a key"),
        ("seed.x.y", "is a value"),
    ],
)
def test_what_cannot_be_set_names_what_can(key: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load((key, "1"))


def test_every_other_name_of_a_key_leads_to_one() -> None:
    """No alias of a key that does not exist, or that is a key itself."""
    from vit_jax.config import hints

    given = config.load(QUICKSTART).to_dict()
    names = {path.rpartition(".")[2] for path in hints.every_key(given)}
    assert set(hints.ALIASES.values()) <= names
    assert not set(hints.ALIASES) & names
