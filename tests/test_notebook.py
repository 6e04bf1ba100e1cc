"""The cells of docs/notebook.md, one after the other in one process."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import cli

PAGE = (cli.ROOT / "docs" / "notebook.md").read_text()
CELLS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
AFTER = """
assert 0.2 < results["test/accuracy"] < 1, results
assert found["test/accuracy"] == results["test/accuracy"]
assert any("10shot" in name for name in found)
assert curve[-1][0] == 250, curve
assert probabilities.shape == (10,)
assert 'did you mean "learning_rate"' in str(caught)
"""


@pytest.mark.slow
def test_the_cells_run_in_an_empty_folder(tmp_path: Path) -> None:
    assert len(CELLS) == 8
    code = "\n".join(CELLS).replace("print(error)", "caught = error")
    done = subprocess.run(
        [sys.executable, "-c", code + AFTER],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(cli.ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Goes on from step 125" in done.stdout
    assert "Finished at step 10 " in done.stdout
