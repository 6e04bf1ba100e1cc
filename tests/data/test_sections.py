"""What evaluations read, and when images are held out for them."""

from typing import Any

import numpy as np
import pytest

from vit_jax import config, data
from vit_jax.data import sections

RECIPE = "configs/quickstart.py"


def sizes(*overrides: str) -> dict[str, int]:
    """How many images training and each evaluation read."""
    pairs = [(key, value) for key, _, value in (o.partition("=") for o in overrides)]
    plain = config.load(RECIPE, pairs).to_dict()
    section = sections.with_holdout(plain["data"], plain["evals"])
    found = {"train": data.make(**section).num_examples}
    for name, entry in plain["evals"].items():
        own: dict[str, Any] = entry["data"]
        section_of = sections.of_evaluation(section, own, entry["split"])
        found[name] = data.make(**section_of).num_examples
    return found


def images(root, split, n=20):
    for name in "ab":
        path = root / split / name
        path.mkdir(parents=True)
        for i in range(n):
            (path / f"{i}.png").touch()
    return f"data.data_dir={root}"


FOLDER = "data.name=folder"


@pytest.mark.parametrize("split", ["", "train"])
def test_images_are_held_out_where_an_evaluation_asks_for_them(tmp_path, split):
    where = images(tmp_path, split)
    assert sizes(FOLDER, where) == {"train": 36, "test": 4}
    assert sizes(FOLDER, where, "evals.test.split=val") == {"train": 36, "test": 4}
    assert sizes(FOLDER, where, "data.holdout=0.3") == {"train": 28, "test": 12}
    whole = {"train": 40, "test": 40}
    assert sizes(FOLDER, where, "evals.test.split=train") == whole
    cut = ("data.split=train[:75%]", "evals.test.split=train[75%:]")
    assert sizes(FOLDER, where, *cut) == {"train": 30, "test": 10}


def test_nothing_is_held_out_where_there_is_a_test_split(tmp_path):
    where = images(tmp_path, "train")
    images(tmp_path, "val", 3)
    assert sizes(FOLDER, where) == {"train": 40, "test": 6}


def test_another_folder_is_evaluated_on_as_a_whole(tmp_path):
    where = images(tmp_path / "mine", "")
    images(tmp_path / "others", "", 5)
    other = f"evals.test.data.data_dir={tmp_path}/others"
    assert sizes(FOLDER, where, other) == {"train": 40, "test": 10}
    assert sizes(FOLDER, where, other, "data.holdout=0.5") == {"train": 20, "test": 10}
    share = "evals.test.data.holdout=0.2"
    assert sizes(FOLDER, where, other, share) == {"train": 40, "test": 2}


def test_arrays(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, x=np.zeros((40, 8, 8), np.uint8), y=np.arange(40) % 2)
    where = ("data.name=npz", f"data.data_dir={path}")
    assert sizes(*where) == {"train": 36, "test": 4}


def test_data_that_is_not_there_says_so_itself(tmp_path):
    with pytest.raises(ValueError, match=r'data_dir="/nowhere" is not a folder'):
        sizes(FOLDER, "data.data_dir=/nowhere")
    with pytest.raises(ValueError, match=r"holdout=1.5; expected a share"):
        sizes(FOLDER, images(tmp_path, ""), "data.holdout=1.5")
    with pytest.raises(
        ValueError, match=r'holdout=0.1 has no effect with .*"fashion_m'
    ):
        sizes("data.holdout=0.1")


def test_a_part_of_a_mixture(tmp_path):
    images(tmp_path, "")
    part: dict[str, Any] = {"name": "folder", "data_dir": str(tmp_path)}

    def size(**keys):
        mixture = {"a": {**part, **keys}, "b": part}
        made = data.make(
            name="mixture", mixture=mixture, image_size=8, train={}, eval={}
        )
        return made.num_examples

    assert size() == 80
    assert size(holdout=0.25) == 70
