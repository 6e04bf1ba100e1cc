"""The table of a sweep: sweep.csv and sweep.md, best first."""

import csv
import dataclasses
import io
import math
import statistics
from collections.abc import Sequence
from typing import Any

from vit_jax.launch.sweep.trials import Status, Trial, order, shown

SEED = "seed"  # the parameter whose values are repetitions of a setting


@dataclasses.dataclass(frozen=True)
class Row:
    """A trial and how far it has come."""

    trial: Trial
    status: Status


@dataclasses.dataclass(frozen=True)
class Setting:
    """The finished trials that differ in the seed alone.

    Attributes:
      parameters: but for the seed.
      values: of the metric at the end, one a seed.
    """

    parameters: dict[str, Any]
    values: list[float]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """The standard deviation (n - 1), NaN for a single value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan


def ranked(rows: Sequence[Row], metric: str) -> list[Row]:
    """Best first; what has not finished, or is not a number, last."""
    return sorted(rows, key=lambda row: order(row.status, metric))


def settings(rows: Sequence[Row]) -> list[Setting]:
    """By setting, in the order of `rows`; [] unless some have several seeds."""
    groups: dict[str, Setting] = {}
    for row in rows:
        if row.status.state != "finished" or SEED not in row.trial.parameters:
            continue
        others = {k: v for k, v in row.trial.parameters.items() if k != SEED}
        group = groups.setdefault(repr(sorted(others.items())), Setting(others, []))
        group.values.append(row.status.last)
    several = any(len(group.values) > 1 for group in groups.values())
    return list(groups.values()) if several else []


def ranked_settings(rows: Sequence[Row], metric: str) -> list[Setting]:
    """Settings by their mean, best first."""
    return sorted(
        settings(rows), key=lambda s: order(Status("finished", last=s.mean), metric)
    )


def parameters(rows: Sequence[Row]) -> list[str]:
    """The keys that trials override, in the order of their first use."""
    return list(dict.fromkeys(key for row in rows for key in row.trial.parameters))


def records(rows: Sequence[Row], metric: str) -> list[dict[str, str]]:
    """The rows of sweep.csv, as text; numbers with all their digits."""
    keys = parameters(rows)
    return [
        {
            **{key: _parameter(row.trial, key) for key in keys},
            metric: _number(row.status.last),
            f"best {metric}": _number(row.status.best),
            "steps": str(row.status.steps),
            "seconds": f"{row.status.seconds:.1f}",
            "state": row.status.state,
            "trial": row.trial.name,
            "message": row.status.message,
        }
        for row in rows
    ]


def _parameter(trial: Trial, key: str) -> str:
    return shown(trial.parameters[key]) if key in trial.parameters else ""


def _number(value: float) -> str:
    return "" if math.isnan(value) else repr(value)


def as_csv(rows: Sequence[Row], metric: str) -> str:
    """The text of sweep.csv; `rows` are ranked."""
    return to_csv(records(rows, metric))


def settings_csv(found: Sequence[Setting], metric: str) -> str:
    """The text of sweep_settings.csv."""
    return to_csv(
        [
            {
                **{key: shown(value) for key, value in s.parameters.items()},
                f"mean {metric}": repr(s.mean),
                "standard deviation": _number(s.spread),
                "min": repr(min(s.values)),
                "max": repr(max(s.values)),
                "seeds": str(len(s.values)),
            }
            for s in found
        ]
    )


def to_csv(lines: Sequence[dict[str, str]]) -> str:
    """Rows that all have the keys of the first as text."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def as_markdown(rows: Sequence[Row], metric: str, title: str) -> str:
    """The text of sweep.md: all trials, then by setting if there are several seeds."""
    finished = sum(row.status.state == "finished" for row in rows)
    keys = parameters(rows)
    head = [*keys, metric, "best", "steps", "seconds", "state"]
    body = [
        [
            *(_parameter(row.trial, key) for key in keys),
            short(row.status.last),
            short(row.status.best),
            _steps(row.status),
            f"{row.status.seconds:,.0f}",
            row.status.state,
        ]
        for row in rows
    ]
    parts = [
        f"# {title}",
        f"{finished} of {len(rows)} trials finished, best first by {metric}.",
        as_table(head, body),
    ]
    if found := ranked_settings(rows, metric):
        parts += ["Over the seeds of a setting:", _settings_markdown(found, metric)]
    failures = [
        f"- `{row.trial.name}`: {row.status.message}"
        for row in rows
        if row.status.message
    ]
    if failures:
        parts.append("What went wrong:\n\n" + "\n".join(failures))
    return "\n\n".join(parts) + "\n"


def _settings_markdown(found: Sequence[Setting], metric: str) -> str:
    keys = list(dict.fromkeys(key for s in found for key in s.parameters))
    body = [
        [
            *(shown(s.parameters[key]) if key in s.parameters else "" for key in keys),
            *map(short, (s.mean, s.spread, min(s.values), max(s.values))),
            str(len(s.values)),
        ]
        for s in found
    ]
    head = [*keys, f"mean {metric}", "standard deviation", "min", "max", "seeds"]
    return as_table(head, body)


def short(value: float) -> str:
    """Four digits that count; nothing for what is not a number."""
    return "" if math.isnan(value) else f"{value:#.4g}"


def _steps(status: Status) -> str:
    if status.state == "finished" or status.total_steps is None:
        return f"{status.steps:,}"
    return f"{status.steps:,} of {status.total_steps:,}"


def as_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table whose columns are aligned in the text too, numbers to the right."""
    cells = [[c.replace("|", "\\|") for c in row] for row in (head, *body)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    rule = "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
