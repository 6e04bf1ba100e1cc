"""Examples that a run leaves out: each told once, all counted, not too many.

The count of a run is in its train state, the same on every process; the messages are
where the rows were read, and come together only when the count has risen.
"""

import json
from collections.abc import Callable, Sequence

from etils import epath

from vit_jax import distributed
from vit_jax.data import Dataset, Skipped
from vit_jax.errors import UserError
from vit_jax.jsonlines import JsonLines

FILE = "bad_examples.jsonl"


class BadExamples:
    """Writes `workdir/bad_examples.jsonl`, whose lines are as many as the state counts.

    Attributes:
        found: by the input pipeline of this process, and not yet told.
    """

    def __init__(
        self,
        workdir: epath.Path,
        dataset: Dataset,
        *,
        restored_step: int,
        count: int,
        tell: Callable[[str], None],
    ) -> None:
        """Drops the lines of steps that will be done again.

        Args:
            workdir: of the run.
            dataset: says how many are allowed.
            restored_step: the last step whose lines stay.
            count: of the train state at that step.
            tell: prints a message.
        """
        self.found: list[Skipped] = []
        self._path, self._restored_step = workdir / FILE, restored_step
        self._dataset, self._count, self._tell = dataset, count, tell
        self._lines: JsonLines | None = None
        if distributed.is_first() and self._path.exists():
            self._lines = self._open()

    def update(self, count: int, shown: int) -> None:
        """Tells what is new; every process calls it after the same step.

        Args:
            count: examples left out so far, by the train state.
            shown: examples so far, with these.

        Raises:
            UserError: on every process, if more were left out than is allowed.
        """
        if count == self._count:
            return
        self._count = count
        new = collect(self.found)
        self.found.clear()
        if distributed.is_first() and new:
            self._lines = self._lines or self._open()
            for skipped in new:
                self._lines.append(json.dumps(skipped))
                self._tell(f"left out in step {skipped['step']}: {skipped['why']}")
        check_count(self._dataset, count, shown, where=f" (see {self._path})")

    def flush(self) -> None:
        """Returns when the lines are durable."""
        if self._lines is not None:
            self._lines.flush()

    def close(self) -> None:
        if self._lines is not None:
            self._lines.close()

    def _open(self) -> JsonLines:
        return JsonLines(self._path, restored_step=self._restored_step)


def collect(found: Sequence[Skipped]) -> list[Skipped]:
    """Those of all processes in the order of examples; all have to call it.

    Processes may have read the same rows, as those that differ only along `tensor` do.
    """
    # A signal must not keep the others waiting here: it is heeded after the step.
    texts = distributed.gather(json.dumps(list(found)), heed_signals=False)
    every = {s["example"]: s for text in texts for s in json.loads(text)}
    return [every[example] for example in sorted(every)]


def check_count(dataset: Dataset, count: int, shown: int, *, where: str) -> None:
    """UserError, for every process alike, if more were left out than is allowed."""
    allowed = dataset.bad_examples_allowed(shown)
    if count > allowed:
        raise UserError.on_all(
            f"{count:,} of {shown:,} examples of {dataset.source.name} were left out "
            f"as bad{where}, but {allowed:,} are allowed. Repair the data, or raise "
            "config.data.max_bad_examples"
        )


def of_evaluation(name: str, dataset: Dataset, found: Sequence[Skipped]) -> int:
    """How many one pass over a dataset has left out; every process calls it after it.

    Args:
        name: of the evaluation.
        dataset: that the pass was made over; where it skips none, nobody is waited for.
        found: what this process skipped.

    Raises:
        UserError: on every process, if more were left out than is allowed, or all.
    """
    if not dataset.skip_bad:
        return 0
    left_out = collect(found)
    if distributed.is_first():
        for skipped in left_out:
            print(f"left out by evaluation {name}: {skipped['why']}", flush=True)
    count, shown = len(left_out), dataset.num_examples
    check_count(dataset, count, shown, where=f" in evaluation {name}")
    if count == shown:
        raise UserError.on_all(
            f"evaluation {name}: none of {shown:,} examples can be used"
        )
    return count
