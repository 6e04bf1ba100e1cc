"""A fake vit_jax.main: ten steps of a moment each, a checkpoint after every one.

Process 0 writes the checkpoints and, in the end, the file `finished` with the command
line; the others wait for that. The scenario's `codes` say with which exit codes the
first starts end, after `code_after` steps.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import state

STEPS = 10
WATCHDOG = 0.3  # seconds until a process that misses another ends


def main(argv: list[str]) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    pairs = (a.removeprefix("--").partition("=") for a in argv)
    given = {name: text for name, _, text in pairs}
    workdir = Path(given["workdir"].replace("gs://bucket", str(state.CLOUD)))
    process = int(os.environ["TPU_WORKER"])
    with state.locked() as now:
        key = os.environ.get("VIT_JAX_RUN_KEY", "")
        now["keys"].append([os.environ["FAKE_RUN"], key])
    print(f"process {process} began", flush=True)
    if "FAKE_LOST" in os.environ:
        time.sleep(0.2)
        return 76
    finished = workdir / "finished"
    failed = workdir / f"failed-{os.environ['FAKE_RUN']}"
    if process:
        while not finished.exists() and not failed.exists():
            time.sleep(0.02)
        if failed.exists():
            time.sleep(WATCHDOG)
            return 76
        return 0
    failed.unlink(missing_ok=True)
    checkpoints = workdir / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    code = next_code()
    begin = max((int(p.name) for p in checkpoints.iterdir()), default=0)
    for step in range(begin + 1, STEPS + 1):
        if code and step > begin + state.scenario()["code_after"]:
            failed.touch()
            return code
        time.sleep(state.scenario()["step_seconds"])
        (checkpoints / str(step)).mkdir()
        print(f"step {step}", flush=True)
    finished.write_text(json.dumps(argv))
    return 0


def next_code() -> int:
    """What the scenario says that this start ends with, 0 for the end."""
    with state.locked() as now:
        now["starts"] += 1
        return (*state.scenario()["codes"][now["starts"] - 1 :], 0)[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
