"""What training and the evaluations of a config read: keyword arguments of `make`."""

from typing import Any

from vit_jax.data import holdout, splits
from vit_jax.data.sources import base

Plain = dict[str, Any]
_PLACE = ("name", "data_dir")


def of_evaluation(training: Plain, own: Plain, split: str) -> Plain:
    """What an evaluation reads: what training does, but for what the entry says.

    What is held out of the training data is known there alone: another folder without
    a test split is evaluated on as a whole.

    Args:
        training: `config.data`, as `with_holdout` makes it.
        own: keys of it that differ, `config.evals.NAME.data`.
        split: of the entry.
    """
    section = {**training, **own, "split": split}
    if "eval" in own:
        section["eval"] = {**training["eval"], **own["eval"]}
    elsewhere = any(section[key] != training[key] for key in _PLACE)
    if elsewhere and "holdout" not in own:
        section["holdout"] = None
    return section


def with_holdout(data: Plain, evals: Plain) -> Plain:
    """`config.data` with `holdout`, where that is not set and an evaluation needs it.

    Args:
        data: the section.
        evals: `config.evals`, complete.
    """
    if data["holdout"] is not None:
        return data
    wanted: list[str] = []
    for entry in evals.values():
        own = entry["data"] if "data" in entry else {}
        for key in [key for key in entry if key.endswith("split")]:
            section = of_evaluation(data, own, entry[key])
            same = all(section[place] == data[place] for place in _PLACE)
            if same and entry[key] is not None and "holdout" not in own:
                wanted += splits.split_names(entry[key])
    if wanted and base.lacks_test(data["name"], data["data_dir"], wanted):
        return {**data, "holdout": holdout.DEFAULT_SHARE}
    return data
