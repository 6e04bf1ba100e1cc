"""A run whose training data has changed goes on only when its user says so."""

from pathlib import Path
from typing import Any

import pytest
from etils import epath

from tests.checkpoints.test_matching import abstract, state
from vit_jax.checkpoints import Checkpoints
from vit_jax.errors import UserError

STREAM: dict[str, Any] = {"seed": 0, "batch_size": 8, "data": "before"}
CHANGED = STREAM | {"data": "after"}


def opened(directory: Path, stream: dict[str, Any], **keys: Any) -> Checkpoints:
    return Checkpoints(epath.Path(directory), {}, stream, **keys)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints")
    with opened(path, STREAM) as saved:
        saved.position.step = 7
        saved.save(state(0))
    return path


def test_without_the_flag_it_is_refused_and_the_flag_is_named(directory: Path) -> None:
    with opened(directory, CHANGED) as saved:
        with pytest.raises(
            UserError, match=r"data before; this config .* data after"
        ) as e:
            saved.restore(abstract(state(0)))
        assert "--config.checkpoint.allow_changed_data=true" in str(e.value)


def test_with_it_the_run_goes_on_and_is_of_the_changed_data(directory: Path) -> None:
    with opened(directory, CHANGED, allow_changed_data=True) as saved:
        assert saved.restore(abstract(state(0))) is not None
        assert saved.position.step == 7
        assert saved.position.stream == CHANGED  # which the next checkpoint holds
        assert "training data has changed since step 7" in saved.notes[-1]


@pytest.mark.parametrize("other", [{"seed": 1}, {"batch_size": 16}])
def test_it_allows_nothing_else(directory: Path, other: dict[str, Any]) -> None:
    with opened(directory, CHANGED | other, allow_changed_data=True) as saved:
        with pytest.raises(UserError, match="some examples twice") as error:
            saved.restore(abstract(state(0)))
        assert "allow_changed_data" not in str(error.value)


def test_without_a_change_it_does_nothing(directory: Path) -> None:
    with opened(directory, STREAM, allow_changed_data=True) as saved:
        assert saved.restore(abstract(state(0))) is not None
        assert saved.notes == []


@pytest.mark.parametrize(
    "before, after, told",
    [("a", "b", True), ("a", "a", False), (None, "a", False), ("a", None, False)],
)
def test_other_files_under_the_same_names_are_said(
    tmp_path: Path, before: str | None, after: str | None, told: bool
) -> None:
    """Checkpoints of older versions know nothing of the files."""
    first, second = (
        STREAM if sample is None else STREAM | {"sample": sample}
        for sample in (before, after)
    )
    with opened(tmp_path, first) as saved:
        saved.position.step = 7
        saved.save(state(0))
    with opened(tmp_path, second) as saved:
        assert saved.restore(abstract(state(0))) is not None
        assert ["under the same names" in note for note in saved.notes] == [True] * told
        assert saved.position.stream == second
