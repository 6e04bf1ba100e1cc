"""Trials that Optuna proposes, from the results of those before."""

import importlib.util
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vit_jax.errors import UserError
from vit_jax.launch.sweep.points import Distribution, Point, as_text
from vit_jax.launch.sweep.trials import Status, Trial, falls


class Study:
    """A source of trials; what Optuna knows is kept in the sweep's directory.

    Optuna's record says which points it has asked for. How they ended is told from the
    workdirs: a trial that Optuna believes to be running is looked at again.
    """

    FILE = "optuna.sqlite3"

    def __init__(
        self,
        directory: Path,
        space: Mapping[str, Distribution],
        count: int,
        *,
        metric: str,
        seed: int,
        make: Callable[[Point], Trial],
    ) -> None:
        """Opens the study of this metric, or begins it.

        Args:
          directory: of the sweep.
          space: what is sampled.
          count: trials in all, those before included.
          metric: that is made small if it is a loss, else large.
          seed: of the sampler.
          make: the trial of a point.

        Raises:
          UserError: if Optuna is not installed, or the study is of another space.
        """
        if importlib.util.find_spec("optuna") is None:
            raise UserError(
                "--optuna needs Optuna: pip install optuna, or use --random"
            )
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._space, self._count, self._make = optuna, space, count, make
        storage = f"sqlite:///{directory / self.FILE}"
        self._study = optuna.create_study(
            storage=storage,
            study_name=metric,
            direction="minimize" if falls(metric) else "maximize",
            load_if_exists=True,
        )
        known = self._study.get_trials(deepcopy=False)
        # A sampler that began with the same seed again would propose the same again.
        self._study.sampler = optuna.samplers.TPESampler(seed=seed + len(known))
        self.trials: list[Trial] = []
        self._numbers: dict[str, list[int]] = {}  # of Optuna's trials, by our name
        self._ends: dict[str, Status] = {}
        self._again: list[Trial] = []  # which a sweep that was stopped has begun
        for old in known:
            if old.params.keys() < space.keys():
                continue  # the sweep was killed while it was being proposed
            trial, is_new = self._take(old.number, old.params)
            if old.values:
                self._ends[trial.name] = Status("finished", last=old.values[0])
            elif old.state.is_finished():
                self._ends[trial.name] = Status("failed")
            elif is_new:
                self._again.append(trial)

    def ask(self) -> Trial | None:
        if self._again:
            return self._again.pop(0)
        while self._asked() < self._count:
            number, parameters = self._propose()
            trial, is_new = self._take(number, parameters)
            if is_new:
                return trial
            if trial.name in self._ends:
                self._tell(number, self._ends[trial.name])
        return None

    def _propose(self) -> tuple[int, dict[str, Any]]:
        proposed = self._study.ask()
        try:
            for key, distribution in self._space.items():
                _suggest(proposed, key, distribution)
        except ValueError as error:  # the kind or the choices of a key are others now
            raise UserError(
                f"--sample: {error}: it was another one when this study was begun; use "
                "another --workdir"
            ) from error
        return proposed.number, proposed.params

    def tell(self, trial: Trial, status: Status) -> None:
        """Hands a result to Optuna; one that is not a number counts as a failure."""
        self._ends[trial.name] = status
        for number in self._numbers[trial.name]:
            self._tell(number, status)

    def left(self) -> int:
        return len(self._again) + max(0, self._count - self._asked())

    def _asked(self) -> int:
        return sum(map(len, self._numbers.values()))

    def _take(self, number: int, parameters: Mapping[str, Any]) -> tuple[Trial, bool]:
        """The trial of a proposal, and whether it is another than those before."""
        trial = self._make({k: _text(v) for k, v in parameters.items()})
        numbers = self._numbers.setdefault(trial.name, [])
        numbers.append(number)
        if len(numbers) == 1:
            self.trials.append(trial)
        return trial, len(numbers) == 1

    def _tell(self, number: int, status: Status) -> None:
        good = status.state == "finished" and not math.isnan(status.last)
        self._study.tell(
            number,
            status.last if good else None,
            state=None if good else self._optuna.trial.TrialState.FAIL,
            skip_if_finished=True,
        )


def _suggest(proposed: Any, key: str, distribution: Distribution) -> None:
    low, high = distribution.low, distribution.high
    if distribution.kind == "choice":
        proposed.suggest_categorical(key, distribution.choices)
    elif distribution.kind == "int":
        proposed.suggest_int(key, int(low), int(high))
    else:
        proposed.suggest_float(key, low, high, log=distribution.kind == "log")


def _text(value: Any) -> str:
    return as_text(value) if isinstance(value, float) else str(value)
