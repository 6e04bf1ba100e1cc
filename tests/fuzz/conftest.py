"""Counts the inputs of every test, and says how many there were."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.fuzz import mutation


@pytest.fixture(autouse=True)
def counted(record_property: Any) -> Iterator[None]:
    mutation.COUNTS.clear()
    yield
    for name, count in mutation.COUNTS.items():
        record_property(name, count)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [r for found in terminalreporter.stats.values() for r in found]
    counts = {
        report.nodeid.partition("::")[2]: dict(report.user_properties)
        for report in reports
        if getattr(report, "when", None) == "teardown" and report.user_properties
    }
    counts = {name: found for name, found in counts.items() if "inputs" in found}
    if counts:
        terminalreporter.section("inputs of the fuzz tests")
        for name, found in sorted(counts.items()):
            refused = found["inputs"] - found.get("used", 0)
            line = f"{found['inputs']:8,}, of which {refused:7,} refused  {name}"
            terminalreporter.line(line)
        total = sum(found["inputs"] for found in counts.values())
        terminalreporter.line(f"{total:8,} in all")
