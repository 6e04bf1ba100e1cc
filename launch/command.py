"""Other people's command-line tools: gcloud, kubectl, docker, git."""

import os
import signal
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

from vit_jax.errors import UserError
from vit_jax.launch import job

INSTALL = {
    "docker": "https://docs.docker.com/get-docker/",
    "gcloud": "https://cloud.google.com/sdk/docs/install",
    "git": "https://git-scm.com/downloads",
    "kubectl": "https://kubernetes.io/docs/tasks/tools/",
}


class Result(NamedTuple):
    """What a command left: its exit code and what it printed."""

    code: int
    output: str
    error: str


def start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """Starts a command that prints to this terminal.

    It has a session of its own: Ctrl-C reaches the launcher alone, which decides what
    is to happen to it.

    Raises:
      UserError: if the tool is not installed.
    """
    try:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, start_new_session=True
        )
    except FileNotFoundError as error:
        raise _not_installed(command[0]) from error


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends what `start` began, with what that has started, if it still runs."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def capture(command: Sequence[str], *, text: str | None = None) -> Result:
    """Runs a command to its end; `text` is its standard input.

    Raises:
      UserError: if the tool is not installed.
    """
    try:
        done = subprocess.run(
            command,
            input=text or "",
            capture_output=True,
            text=True,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise _not_installed(command[0]) from error
    return Result(done.returncode, done.stdout, done.stderr.strip())


def output(command: Sequence[str], *, text: str | None = None) -> str:
    """What a command that has to succeed prints.

    Raises:
      UserError: if it fails, with what it said.
    """
    result = capture(command, text=text)
    if result.code:
        raise failed(command, result.error)
    return result.output


def failed(command: Sequence[str], said: str) -> UserError:
    """The error that tells of a command that failed, and repeats what it said."""
    return UserError(f"this command failed:\n  {job.shell(command)}\n{said}")


def _not_installed(tool: str) -> UserError:
    return UserError(f'there is no program "{tool}" here; install it: {INSTALL[tool]}')
