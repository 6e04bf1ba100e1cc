"""A fake docker: takes `build` and `push`, and remembers what it was given."""

import sys
from pathlib import Path

import flags
import state

if __name__ == "__main__":
    given = flags.parse("docker", flags.DOCKER, sys.argv[1:])
    if given.verb == "build" and not Path(given.arguments[0], "Dockerfile").is_file():
        flags.refuse("docker build: no Dockerfile")
    with state.locked() as now:
        now["commands"].append(["docker", *sys.argv[1:]])
