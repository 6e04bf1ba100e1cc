"""Errors for the person who typed the command, and the exit codes of `main`."""

import difflib
from collections.abc import Iterable

EXIT_DONE = 0
EXIT_USER_ERROR = 2
EXIT_NON_FINITE_LOSS = 70
EXIT_PREEMPTED = 75


class UserError(ValueError):
    """Bad input: what was given, what was expected, what to do.

    `main` prints the message alone, without a traceback, and exits with 2. Anything
    else that is raised is a defect of ours and keeps its traceback.
    """


class NonFiniteLossError(Exception):
    """The loss or the update became NaN or infinite; `main` exits with 70."""


class Preempted(Exception):
    """SIGTERM or Ctrl-C arrived; raised where it is safe to stop. Exit code 75."""


def did_you_mean(given: str, valid: Iterable[str]) -> str:
    """The end of a sentence that names the nearest valid name, else all of them.

    >>> did_you_mean("learning_rat", ["learning_rate", "name"])
    'did you mean "learning_rate"?'
    >>> did_you_mean("xyzzy", ["adamw", "sgd"])
    'valid names: adamw, sgd'
    """
    valid = sorted(valid)
    near = difflib.get_close_matches(given, valid, n=1)
    return f'did you mean "{near[0]}"?' if near else f"valid names: {', '.join(valid)}"
